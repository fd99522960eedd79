//! `deploy.x-schedule`: when a job runs again.

use skep_proto::model::schedule::Times;

use crate::manifest::Problems;
use crate::manifest::decode::{boolean, duration, entries, text, unknown_key};
use crate::manifest::stack::{Concurrency, Schedule};
use crate::manifest::yaml::{Node, Value};

const KEYS: [&str; 5] = ["times", "timezone", "concurrency", "deadline", "suspend"];

/// Reads the times alone (`"0 3 * * *"`), or a mapping of them and of what happens when a run cannot begin.
pub fn read(node: &Node, problems: &mut Problems) -> Option<Schedule> {
    let mut schedule = Schedule {
        times: String::new(),
        time_zone: String::new(),
        concurrency: Concurrency::Forbid,
        deadline: None,
        is_suspended: false,
    };
    let mut place = node.place;
    if let Value::Mapping(_) = node.value {
        for field in entries(node, "a schedule", problems) {
            let value = &field.value;
            match field.key.as_str() {
                "times" => {
                    schedule.times = text(value, "times", problems);
                    place = value.place;
                }
                "timezone" => schedule.time_zone = text(value, "timezone", problems),
                "concurrency" => match text(value, "concurrency", problems).as_str() {
                    "forbid" => {}
                    "replace" => schedule.concurrency = Concurrency::Replace,
                    "allow" => schedule.concurrency = Concurrency::Allow,
                    other => problems.add(value.place, format!("concurrency is forbid (leave the run out), replace (end the other) or allow (begin beside it), not {other:?}")),
                },
                "deadline" => schedule.deadline = duration(value, "deadline", problems),
                "suspend" => schedule.is_suspended = boolean(value, "suspend", problems),
                _ => unknown_key(field, "a schedule", &KEYS, problems),
            }
        }
    } else {
        schedule.times = text(node, "a schedule", problems);
    }
    match Times::parse(&schedule.times) {
        Ok(_) => Some(schedule),
        Err(message) => {
            problems.add(place, message);
            None
        }
    }
}
