//! Values in the words of people, as Docker prints them.

use jiff::Timestamp;

/// Digits of an id that lists show.
const SHORT: usize = 12;

/// The beginning of an id, or all of it.
pub fn short_id(id: &str, whole: bool) -> String {
    if whole { id.to_owned() } else { id.trim_start_matches("sha256:").chars().take(SHORT).collect() }
}

/// How long something took or is past (go-units, `HumanDuration`).
pub fn duration(seconds: i64) -> String {
    let plural = |n: i64, unit: &str| format!("{n} {unit}");
    match seconds {
        i64::MIN..1 => "Less than a second".into(),
        1 => "1 second".into(),
        2..60 => plural(seconds, "seconds"),
        60..120 => "About a minute".into(),
        120..3600 => plural(seconds / 60, "minutes"),
        3600..5400 => "About an hour".into(),
        5400..172_800 => plural((seconds + 1800) / 3600, "hours"),
        172_800..1_209_600 => plural(seconds / 86_400, "days"),
        1_209_600..5_184_000 => plural(seconds / 604_800, "weeks"),
        5_184_000..63_072_000 => plural(seconds / 2_592_000, "months"),
        _ => plural(seconds / 31_536_000, "years"),
    }
}

/// How long ago a time is that the API gave (RFC 3339); empty for none.
pub fn ago(rfc3339: &str, now: Timestamp) -> String {
    match rfc3339.parse::<Timestamp>() {
        Ok(at) => format!("{} ago", duration(now.as_second() - at.as_second())),
        Err(_) => String::new(),
    }
}

/// A size in decimal units with three digits (go-units, `HumanSizeWithPrecision`).
pub fn size(bytes: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB", "PB"];
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    let text = if value >= 100.0 {
        format!("{value:.0}")
    } else if value >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    };
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text };
    format!("{text}{}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_read_as_dockers() {
        let words: Vec<String> = [0, 1, 59, 61, 130, 4000, 7300, 200_000].iter().map(|s| duration(*s)).collect();
        assert_eq!(
            words,
            [
                "Less than a second",
                "1 second",
                "59 seconds",
                "About a minute",
                "2 minutes",
                "About an hour",
                "2 hours",
                "2 days"
            ]
        );
        assert_eq!([size(0), size(1499), size(133_000_000), size(4_260_000)], ["0B", "1.5kB", "133MB", "4.26MB"]);
    }
}
