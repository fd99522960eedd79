//! The `healthcheck` section of a service.

use skep_proto::model::container::Healthcheck;

use crate::manifest::Problems;
use crate::manifest::decode::{boolean, duration, entries, parsed, text, texts, unknown_key};
use crate::manifest::yaml::{Node, Value};

const KEYS: [&str; 7] = ["test", "interval", "timeout", "retries", "start_period", "start_interval", "disable"];

/// Reads `healthcheck`.
pub fn read(node: &Node, problems: &mut Problems) -> Healthcheck {
    let (mut check, mut disabled) = (Healthcheck::default(), None);
    for field in entries(node, "healthcheck", problems) {
        let value = &field.value;
        match field.key.as_str() {
            "test" => check.test = test(value, problems),
            "interval" => check.interval = duration(value, "interval", problems).unwrap_or_default(),
            "timeout" => check.timeout = duration(value, "timeout", problems).unwrap_or_default(),
            "retries" => check.retries = parsed(value, "retries", "a number", problems).unwrap_or_default(),
            "start_period" => check.start_period = duration(value, "start_period", problems).unwrap_or_default(),
            "start_interval" => check.start_interval = duration(value, "start_interval", problems).unwrap_or_default(),
            "disable" => disabled = boolean(value, "disable", problems).then_some(field.place),
            _ => unknown_key(field, "healthcheck", &KEYS, problems),
        }
    }
    if let Some(place) = disabled {
        if !check.test.is_empty() {
            problems.add(place, "disable and test exclude each other: remove one");
        }
        return Healthcheck { test: vec!["NONE".to_owned()], ..Healthcheck::default() };
    }
    check
}

/// A line for the shell, or words that begin with what they are.
fn test(node: &Node, problems: &mut Problems) -> Vec<String> {
    if !matches!(node.value, Value::Sequence(_)) {
        return vec!["CMD-SHELL".to_owned(), text(node, "test", problems)];
    }
    let words = texts(node, "test", problems);
    let is_whole = match words.first().map(String::as_str) {
        Some("NONE") => words.len() == 1,
        Some("CMD") => words.len() > 1,
        Some("CMD-SHELL") => words.len() == 2,
        _ => false,
    };
    if !is_whole {
        problems.add(node.place, "a test is a line, or [CMD, PROGRAM, WORD…], [CMD-SHELL, LINE] or [NONE]");
    }
    words
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::manifest::fake::{self, FakeDisk};

    fn check(section: &str) -> Result<Healthcheck, String> {
        let content = format!("services:\n  web:\n    image: x\n    healthcheck: {section}\n");
        let stack =
            fake::read(&[("f", &content)], &fake::options(), &FakeDisk::default()).map_err(|p| p.to_string())?;
        Ok(stack.parts.services[0].spec.task.containers[0].healthcheck.clone().expect("there is one"))
    }

    #[test]
    fn a_health_check_is_read_in_every_form() {
        let full = check(
            "{test: [CMD, ask, me], interval: 1m30s, timeout: 2s, retries: 4, start_period: 5s, start_interval: 1s}",
        );
        let want = Healthcheck {
            test: ["CMD", "ask", "me"].map(str::to_owned).to_vec(),
            interval: Duration::from_secs(90),
            timeout: Duration::from_secs(2),
            start_period: Duration::from_secs(5),
            start_interval: Duration::from_secs(1),
            retries: 4,
        };
        assert_eq!(full, Ok(want));
        assert_eq!(check("{test: ask me}").unwrap().test, ["CMD-SHELL", "ask me"]);
        assert_eq!(check("{disable: true}").unwrap().test, ["NONE"]);
        assert_eq!(check("{disable: false, retries: 2}").unwrap().retries, 2);
    }

    #[test]
    fn a_health_check_that_would_do_something_else_is_refused() {
        for (section, because) in [
            ("{test: [ask, me]}", "a test is a line"),
            ("{test: [CMD]}", "a test is a line"),
            ("{test: ask, disable: true}", "exclude each other"),
            ("{intervall: 1s}", "did you mean interval"),
        ] {
            let error = check(section).unwrap_err();
            assert!(error.contains(because), "{section}: {error}");
        }
    }
}
