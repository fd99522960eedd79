//! When a job runs again by itself.
//!
//! A schedule is written in labels of a job service, so that every client can set and show it: [`LABEL`] holds the times,
//! the other labels what happens when a run is due and the last one still runs, or when its time was missed.

use std::time::Duration;

use super::Labels;

/// The label of the times: five fields as cron has them (minute, hour, day of month, month, day of week), or `@hourly`,
/// `@daily`, `@weekly`, `@monthly`, `@yearly`.
pub const LABEL: &str = "skep.schedule";
/// The label of the time zone, an IANA name; UTC where it is absent.
pub const ZONE_LABEL: &str = "skep.schedule.timezone";
/// The label of [`Concurrency`].
pub const CONCURRENCY_LABEL: &str = "skep.schedule.concurrency";
/// The label of the time within which a missed run is made up for, in seconds; 0 for never.
pub const DEADLINE_LABEL: &str = "skep.schedule.deadline-seconds";
/// The label that holds the schedule back while it is `true`.
pub const SUSPENDED_LABEL: &str = "skep.schedule.suspended";

/// All of them: a change of one takes effect from then on.
pub const LABELS: [&str; 5] = [LABEL, ZONE_LABEL, CONCURRENCY_LABEL, DEADLINE_LABEL, SUSPENDED_LABEL];

/// When a job runs again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// The times, as in [`LABEL`].
    pub times: String,
    /// Time zone, an IANA name; empty for UTC.
    pub time_zone: String,
    /// What a due run does while the last one still runs.
    pub concurrency: Concurrency,
    /// How late a missed run is made up for (once, however many were missed); `None` for however late.
    pub deadline: Option<Duration>,
    /// No run begins.
    pub is_suspended: bool,
}

/// What a due run does while the last one still runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Concurrency {
    /// It is left out.
    #[default]
    Forbid,
    /// It ends the other.
    Replace,
    /// It begins beside it.
    Allow,
}

/// The times of a schedule: what each field allows, as bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// Minutes, 0 to 59.
    pub minutes: u64,
    /// Hours, 0 to 23.
    pub hours: u64,
    /// Days of the month, 1 to 31.
    pub days: u64,
    /// Months, 1 to 12.
    pub months: u64,
    /// Days of the week, 0 for Sunday to 6.
    pub weekdays: u64,
    /// Both kinds of days are restricted: then one of them suffices (crontab(5)).
    pub either_day: bool,
}

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

impl Times {
    /// Reads five fields, or a word like `@daily`: numbers, names, `*`, ranges `1-5`, steps `*/15`, and lists of them.
    ///
    /// # Errors
    /// The field that cannot be understood, and what is expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = match text.trim() {
            "@hourly" => "0 * * * *",
            "@daily" | "@midnight" => "0 0 * * *",
            "@weekly" => "0 0 * * 0",
            "@monthly" => "0 0 1 * *",
            "@yearly" | "@annually" => "0 0 1 1 *",
            other => other,
        };
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields.as_slice() else {
            return Err(format!(
                "a schedule has five fields (minute, hour, day, month, day of week), like \"0 3 * * *\", or is @hourly, @daily, @weekly, @monthly or @yearly, not {text:?}"
            ));
        };
        let weekdays = bits(weekday, "day of week", 0, 7, &WEEKDAYS, 0)?;
        Ok(Self {
            minutes: bits(minute, "minute", 0, 59, &[], 0)?,
            hours: bits(hour, "hour", 0, 23, &[], 0)?,
            days: bits(day, "day", 1, 31, &[], 0)?,
            months: bits(month, "month", 1, 12, &MONTHS, 1)?,
            // Both 0 and 7 are Sunday.
            weekdays: (weekdays | weekdays >> 7) & 0x7f,
            either_day: !day.starts_with('*') && !weekday.starts_with('*'),
        })
    }
}

/// The bits of one field. Names stand for numbers from `first_name` on.
fn bits(field: &str, what: &str, least: u32, most: u32, names: &[&str], first_name: u32) -> Result<u64, String> {
    let wrong =
        || format!("the {what} of a schedule is a number from {least} to {most}, a range, a step or *, not {field:?}");
    let number = |text: &str| {
        let lower = text.to_ascii_lowercase();
        let named = names.iter().zip(first_name..).find(|(name, _)| **name == lower).map(|(_, number)| number);
        named.or_else(|| text.parse().ok()).filter(|n| (least..=most).contains(n))
    };
    let mut all = 0;
    for part in field.split(',') {
        let (range, step) = part.split_once('/').map_or((part, None), |(range, step)| (range, Some(step)));
        let step: u32 = step.map_or(Ok(1), str::parse).ok().filter(|step| *step > 0).ok_or_else(wrong)?;
        let (first, last) = match range.split_once('-') {
            _ if range == "*" => (least, most),
            Some((first, last)) => (number(first).ok_or_else(wrong)?, number(last).ok_or_else(wrong)?),
            None => {
                let first = number(range).ok_or_else(wrong)?;
                // `5/15` counts from 5 on.
                (first, if part.contains('/') { most } else { first })
            }
        };
        if first > last {
            return Err(wrong());
        }
        all |= (first..=last).step_by(usize::try_from(step).unwrap_or(usize::MAX)).fold(0, |bits, n| bits | 1 << n);
    }
    Ok(all)
}

impl Schedule {
    /// Puts it into labels.
    pub fn write(&self, labels: &mut Labels) {
        labels.insert(LABEL.to_owned(), self.times.clone());
        if !self.time_zone.is_empty() {
            labels.insert(ZONE_LABEL.to_owned(), self.time_zone.clone());
        }
        let word = match self.concurrency {
            Concurrency::Forbid => None,
            Concurrency::Replace => Some("replace"),
            Concurrency::Allow => Some("allow"),
        };
        if let Some(word) = word {
            labels.insert(CONCURRENCY_LABEL.to_owned(), word.to_owned());
        }
        if let Some(deadline) = self.deadline {
            labels.insert(DEADLINE_LABEL.to_owned(), deadline.as_secs().to_string());
        }
        if self.is_suspended {
            labels.insert(SUSPENDED_LABEL.to_owned(), "true".to_owned());
        }
    }

    /// The schedule that labels say.
    ///
    /// # Errors
    /// The label that cannot be understood, and what is expected. Whether the times make sense is not looked at.
    pub fn read(labels: &Labels) -> Result<Option<Self>, String> {
        let Some(times) = labels.get(LABEL) else { return Ok(None) };
        let concurrency = match labels.get(CONCURRENCY_LABEL).map(String::as_str) {
            None | Some("forbid") => Concurrency::Forbid,
            Some("replace") => Concurrency::Replace,
            Some("allow") => Concurrency::Allow,
            Some(other) => {
                return Err(format!("the label {CONCURRENCY_LABEL} is forbid, replace or allow, not {other:?}"));
            }
        };
        let deadline = labels.get(DEADLINE_LABEL).map(|text| {
            let seconds: u32 =
                text.parse().map_err(|_| format!("the label {DEADLINE_LABEL} is a number of seconds, not {text:?}"))?;
            Ok::<_, String>(Duration::from_secs(seconds.into()))
        });
        let is_suspended = match labels.get(SUSPENDED_LABEL).map(String::as_str) {
            None | Some("false") => false,
            Some("true") => true,
            Some(other) => return Err(format!("the label {SUSPENDED_LABEL} is true or false, not {other:?}")),
        };
        Ok(Some(Self {
            times: times.clone(),
            time_zone: labels.get(ZONE_LABEL).cloned().unwrap_or_default(),
            concurrency,
            deadline: deadline.transpose()?,
            is_suspended,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_cron_reads_them() {
        let times = Times::parse("*/15 3,5-6 * jan-MAR 1-5").unwrap();
        assert_eq!((times.minutes, times.hours), (1 | 1 << 15 | 1 << 30 | 1 << 45, 1 << 3 | 1 << 5 | 1 << 6));
        assert_eq!((times.months, times.weekdays, times.either_day), (0b1110, 0b11_1110, false));
        assert_eq!(Times::parse("0 0 1 * 7").map(|t| (t.weekdays, t.either_day)), Ok((1, true)));
        assert_eq!(Times::parse("@daily"), Times::parse("0 0 * * *"));
        assert_eq!(Times::parse("50/5 * * * *").map(|t| t.minutes), Ok(1 << 50 | 1 << 55));
        for wrong in [
            "",
            "* * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "5-1 * * * *",
            "*/0 * * * *",
            "a * * * *",
            "1- * * * *",
            "@never",
            "99999999999 * * * *",
        ] {
            assert!(Times::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let schedule = Schedule {
            times: "0 3 * * *".into(),
            time_zone: "Europe/Berlin".into(),
            concurrency: Concurrency::Replace,
            deadline: Some(Duration::from_secs(60)),
            is_suspended: true,
        };
        let mut labels = Labels::new();
        assert_eq!(Schedule::read(&labels), Ok(None));
        schedule.write(&mut labels);
        assert_eq!(Schedule::read(&labels), Ok(Some(schedule)));
        labels.insert(CONCURRENCY_LABEL.to_owned(), "allow".to_owned());
        assert_eq!(Schedule::read(&labels).unwrap().unwrap().concurrency, Concurrency::Allow);
        labels.insert(CONCURRENCY_LABEL.to_owned(), "queue".to_owned());
        assert!(Schedule::read(&labels).unwrap_err().contains("forbid, replace or allow"));
    }
}
