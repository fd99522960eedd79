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

/// What a due run does while the last one still runs. Runs of one service never overlap: a new one replaces what is left
/// of the old one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Concurrency {
    /// It is left out.
    #[default]
    Forbid,
    /// It ends the other.
    Replace,
}

impl Schedule {
    /// Puts it into labels.
    pub fn write(&self, labels: &mut Labels) {
        labels.insert(LABEL.to_owned(), self.times.clone());
        if !self.time_zone.is_empty() {
            labels.insert(ZONE_LABEL.to_owned(), self.time_zone.clone());
        }
        if self.concurrency == Concurrency::Replace {
            labels.insert(CONCURRENCY_LABEL.to_owned(), "replace".to_owned());
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
            Some(other) => return Err(format!("the label {CONCURRENCY_LABEL} is forbid or replace, not {other:?}")),
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
        assert!(Schedule::read(&labels).unwrap_err().contains("forbid or replace"));
    }
}
