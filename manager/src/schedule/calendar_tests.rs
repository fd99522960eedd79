use std::collections::BTreeSet;

use proptest::prelude::*;
use skep_proto::model::schedule::Concurrency;

use super::*;

fn calendar(times: &str, zone: &str) -> Result<Calendar, String> {
    Calendar::of(&Schedule {
        times: times.into(),
        time_zone: zone.into(),
        concurrency: Concurrency::Forbid,
        deadline: None,
        is_suspended: false,
    })
}

fn at(text: &str) -> Timestamp {
    Timestamp(u64::try_from(text.parse::<jiff::Timestamp>().unwrap().as_millisecond()).unwrap())
}

/// The next times after `from`.
fn next(times: &str, zone: &str, from: &str, count: usize) -> Vec<String> {
    let calendar = calendar(times, zone).unwrap();
    let all = std::iter::successors(calendar.first_after(at(from)), |last| calendar.first_after(*last));
    all.take(count).map(|at| jiff::Timestamp::from_millisecond(at.0 as i64).unwrap().to_string()).collect()
}

#[test]
fn times_come_in_order_in_their_zone() {
    for (times, zone, from, expected) in [
        ("0 3 * * *", "", "2026-11-21T02:59:59Z", ["2026-11-21T03:00:00Z", "2026-11-22T03:00:00Z"]),
        ("0 3 * * *", "", "2026-11-21T03:00:00Z", ["2026-11-22T03:00:00Z", "2026-11-23T03:00:00Z"]),
        ("0 3 * * *", "Europe/Berlin", "2026-11-21T00:00:00Z", ["2026-11-21T02:00:00Z", "2026-11-22T02:00:00Z"]),
        ("*/20 9-10 * * mon-fri", "", "2026-11-20T10:39:00Z", ["2026-11-20T10:40:00Z", "2026-11-23T09:00:00Z"]),
        ("0 0 29 feb *", "", "2026-01-01T00:00:00Z", ["2028-02-29T00:00:00Z", "2032-02-29T00:00:00Z"]),
        ("0 0 13 * fri", "", "2026-11-01T00:00:00Z", ["2026-11-06T00:00:00Z", "2026-11-13T00:00:00Z"]),
        ("@hourly", "Asia/Kolkata", "2026-11-21T00:00:00Z", ["2026-11-21T00:30:00Z", "2026-11-21T01:30:00Z"]),
        ("@yearly", "", "2026-11-21T00:00:00Z", ["2027-01-01T00:00:00Z", "2028-01-01T00:00:00Z"]),
        // 2026-03-29 at 02:00 the clocks of Berlin go to 03:00.
        ("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", ["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]),
        ("*/30 2-3 * * *", "Europe/Berlin", "2026-03-29T00:00:00Z", ["2026-03-29T01:00:00Z", "2026-03-29T01:30:00Z"]),
        ("30 * * * *", "Europe/Berlin", "2026-03-29T00:30:00Z", ["2026-03-29T01:30:00Z", "2026-03-29T02:30:00Z"]),
        // 2026-10-25 at 03:00 they go back to 02:00.
        ("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]),
        ("30 * * * *", "Europe/Berlin", "2026-10-25T00:00:00Z", ["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z"]),
    ] {
        assert_eq!(next(times, zone, from, 2), expected, "{times} {zone} {from}");
    }
}

#[test]
fn what_never_comes_or_is_not_known_is_refused() {
    for (times, zone, reason) in [
        ("0 0 31 2 *", "", "a day that never comes"),
        ("0 0 * * *", "Europe/Nowhere", "the time zone \"Europe/Nowhere\" is not known"),
        ("0 0 * * *", "../../etc/passwd", "is not known"),
        ("0 0 * *", "", "five fields"),
    ] {
        let said = calendar(times, zone).unwrap_err();
        assert!(said.contains(reason), "{said}");
    }
}

#[test]
fn the_ends_of_time_are_no_trouble() {
    let calendar = calendar("0 3 * * *", "Europe/Berlin").unwrap();
    assert_eq!(calendar.first_after(Timestamp(u64::MAX)), None);
    assert_eq!(calendar.last_between(Timestamp(0), Timestamp(u64::MAX)), None);
    assert_eq!(calendar.last_between(Timestamp(5), Timestamp(5)), None);
    assert_eq!(calendar.last_between(at("2026-01-02T00:00:00Z"), at("2026-01-01T00:00:00Z")), None);
    assert!(calendar.first_after(Timestamp(0)).is_some());
    // The last day that can be told.
    assert_eq!(calendar.first_after(at("9999-12-30T20:00:00Z")), None);
}

const ZONES: [&str; 6] =
    ["", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Antarctica/Troll", "Asia/Kathmandu"];
const TIMES: [&str; 8] = [
    "* * * * *",
    "*/7 * * * *",
    "30 2 * * *",
    "15,45 1-3 * * *",
    "0 */2 * * sun",
    "5 0 1,15 * *",
    "59 23 * * mon",
    "0 0-2 * * *",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Both directions agree on the times, whatever clocks do in between.
    #[test]
    fn forth_and_back_are_the_same_times(times in 0..TIMES.len(), zone in 0..ZONES.len(), day in 0_u64..365, minutes in 0_u64..1440) {
        let calendar = calendar(TIMES[times], ZONES[zone]).unwrap();
        let start = Timestamp(at("2026-01-01T00:00:00Z").0 + day * 86_400_000 + minutes * 60_000);
        let end = start.after(std::time::Duration::from_secs(30 * 3600));
        let mut forth = BTreeSet::new();
        let mut last = start;
        while let Some(next) = calendar.first_after(last).filter(|next| *next <= end) {
            prop_assert!(next > last);
            forth.insert(next);
            last = next;
        }
        let mut back = BTreeSet::new();
        let mut until = end;
        while let Some(previous) = calendar.last_between(start, until) {
            prop_assert!(previous <= until && previous > start);
            back.insert(previous);
            until = Timestamp(previous.0 - 1);
        }
        prop_assert_eq!(forth, back);
    }
}
