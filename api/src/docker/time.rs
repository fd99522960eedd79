//! Points in time and spans as Docker writes them.

use std::time::Duration;

use skep_proto::model::Timestamp;

/// Go's zero time: "never".
pub(crate) const ZERO: &str = "0001-01-01T00:00:00Z";

/// RFC 3339 in UTC, with as many digits of the second as there are.
pub(crate) fn rfc3339(at: Timestamp) -> String {
    i64::try_from(at.0)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .map_or_else(|| ZERO.to_owned(), |t| t.to_string())
}

/// RFC 3339, or Go's zero time.
pub(crate) fn rfc3339_or_zero(at: Option<Timestamp>) -> String {
    at.map_or_else(|| ZERO.to_owned(), rfc3339)
}

/// RFC 3339 in UTC with nine digits of the second: how lines of logs are stamped.
pub(crate) fn log_stamp(nanos: u64) -> String {
    let seconds = i64::try_from(nanos / 1_000_000_000).unwrap_or(i64::MAX);
    let fraction = nanos % 1_000_000_000;
    let whole = jiff::Timestamp::from_second(seconds).map_or_else(|_| ZERO.to_owned(), |t| t.to_string());
    format!("{}.{fraction:09}Z", whole.trim_end_matches('Z'))
}

/// What [`log_stamp`] wrote, as nanoseconds since the Unix epoch.
pub(crate) fn parse_log_stamp(text: &str) -> Option<u64> {
    let at: jiff::Timestamp = text.parse().ok()?;
    u64::try_from(at.as_nanosecond()).ok()
}

/// `since` and `until` of a query: seconds with an optional fraction, or RFC 3339. `None` for an empty one or 0.
///
/// # Errors
/// The text, when it is neither.
pub(crate) fn parse_moment(text: &str) -> Result<Option<u64>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let wrong = || format!("invalid value for time: {text}");
    if text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
        let seconds: u64 = seconds.parse().map_err(|_| wrong())?;
        let fraction = format!("{fraction:0<9}");
        let nanos: u64 = fraction.get(..9).and_then(|f| f.parse().ok()).ok_or_else(wrong)?;
        let total = seconds.checked_mul(1_000_000_000).and_then(|s| s.checked_add(nanos)).ok_or_else(wrong)?;
        return Ok((total > 0).then_some(total));
    }
    parse_log_stamp(text).map(Some).ok_or_else(wrong)
}

/// Go's `time.Duration`: nanoseconds.
pub(crate) fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// A span as `docker ps` shows it (`units.HumanDuration`).
pub(crate) fn human(span: Duration) -> String {
    let seconds = span.as_secs();
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    match () {
        () if seconds < 1 => "Less than a second".into(),
        () if seconds == 1 => "1 second".into(),
        () if seconds < 60 => format!("{seconds} seconds"),
        () if minutes == 1 => "About a minute".into(),
        () if minutes < 60 => format!("{minutes} minutes"),
        () if hours == 1 => "About an hour".into(),
        () if hours < 48 => format!("{hours} hours"),
        () if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        () if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        () if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        () => format!("{} years", seconds / 3600 / 24 / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times_have_the_form_that_go_writes() {
        assert_eq!(rfc3339(Timestamp(1_795_216_777_876)), "2026-11-20T23:19:37.876Z");
        assert_eq!(rfc3339(Timestamp(1_795_216_777_000)), "2026-11-20T23:19:37Z");
        assert_eq!(log_stamp(1_795_216_777_000_000_005), "2026-11-20T23:19:37.000000005Z");
    }

    #[test]
    fn moments_are_seconds_or_rfc3339() {
        assert_eq!(parse_moment("12.5"), Ok(Some(12_500_000_000)));
        assert_eq!(parse_moment("0"), Ok(None));
        assert_eq!(parse_moment("1970-01-01T00:00:01Z"), Ok(Some(1_000_000_000)));
        assert!(parse_moment("yesterday").is_err());
    }

    proptest! {
        #[test]
        fn a_stamp_is_read_back(nanos in 0u64..4_000_000_000_000_000_000) {
            prop_assert_eq!(parse_log_stamp(&log_stamp(nanos)), Some(nanos));
        }

        #[test]
        fn arbitrary_moments_never_panic(text in ".{0,40}", secs: u64, at: u64) {
            let _ = parse_moment(&text);
            let _ = human(Duration::from_secs(secs));
            let _ = rfc3339(Timestamp(at));
        }
    }
}
