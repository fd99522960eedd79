//! From the times of a schedule, as its zone's clocks show them, to points in time.
//!
//! Where clocks go forward, what falls into the time that they skip comes at the moment they do, once. Where they go back, what
//! names an hour comes once, the first time that the hour is shown; what comes in every hour comes in each of them.
//! Zones are those of this build, so that managers agree whatever their machines have.

use std::ops::RangeInclusive;
use std::sync::LazyLock;

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::{AmbiguousOffset, TimeZone, TimeZoneDatabase};
use skep_proto::model::Timestamp;
use skep_proto::model::schedule::{Schedule, Times};

static ZONES: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);

/// Days looked at: between two 29ths of February lie up to eight years, and a day of the week may be asked for, too.
const MOST_DAYS: usize = 366 * 41;
/// Clocks are put forward or back by less than this: so far the order of civil times may differ from that of points in time.
const SHIFT: i64 = 3;
const EVERY_HOUR: u64 = (1 << 24) - 1;

/// When a job is due.
#[derive(Debug, Clone)]
pub struct Calendar {
    times: Times,
    zone: TimeZone,
}

impl Calendar {
    /// The calendar of a schedule.
    ///
    /// # Errors
    /// What of the times or the zone cannot be understood, or that such a day never comes.
    pub fn of(schedule: &Schedule) -> Result<Self, String> {
        let times = Times::parse(&schedule.times)?;
        let zone = match schedule.time_zone.as_str() {
            "" => TimeZone::UTC,
            name => ZONES.get(name).map_err(|_| {
                format!("the time zone {name:?} is not known: name one like \"Europe/Berlin\", or leave it out for UTC")
            })?,
        };
        let calendar = Self { times, zone };
        // Any time will do: what comes once in these years comes again.
        calendar
            .first_after(Timestamp(0))
            .ok_or_else(|| format!("the schedule {:?} names a day that never comes", schedule.times))?;
        Ok(calendar)
    }

    /// The first time after `after`; `None` when there is none that can be told.
    pub fn first_after(&self, after: Timestamp) -> Option<Timestamp> {
        let (first_day, first_hour) = moved(self.civil(after)?, -SHIFT);
        let is_after = |at: &Timestamp| *at > after;
        for day in days(first_day, Date::tomorrow).filter(|day| self.has_day(*day)) {
            for hour in (if day == first_day { first_hour } else { 0 })..24 {
                if self.in_hour(day, hour).iter().any(is_after) {
                    return self.around(day, hour, 0..=SHIFT).filter(is_after).min();
                }
            }
        }
        None
    }

    /// The last time after `after`, up to and including `until`.
    pub fn last_between(&self, after: Timestamp, until: Timestamp) -> Option<Timestamp> {
        let (last_day, last_hour) = moved(self.civil(until)?, SHIFT);
        let (first_day, _) = moved(self.civil(after)?, -SHIFT);
        let is_between = |at: &Timestamp| *at > after && *at <= until;
        let back = days(last_day, Date::yesterday).take_while(|day| *day >= first_day);
        for day in back.filter(|day| self.has_day(*day)) {
            for hour in (0..=if day == last_day { last_hour } else { 23 }).rev() {
                if self.in_hour(day, hour).iter().any(is_between) {
                    return self.around(day, hour, -SHIFT..=0).filter(is_between).max();
                }
            }
        }
        None
    }

    /// The points in time in the hours around one: those beside it may come first.
    fn around(&self, day: Date, hour: i8, by: RangeInclusive<i64>) -> impl Iterator<Item = Timestamp> {
        let hours = by.map(move |by| moved(day.at(hour, 0, 0, 0), by));
        hours.flat_map(|(day, hour)| self.in_hour(day, hour))
    }

    fn civil(&self, at: Timestamp) -> Option<DateTime> {
        let at = jiff::Timestamp::from_millisecond(i64::try_from(at.0).ok()?).ok()?;
        Some(self.zone.to_datetime(at))
    }

    /// crontab(5): where the day of the month and the day of the week are both restricted, one of them suffices.
    fn has_day(&self, date: Date) -> bool {
        let of_month = self.times.days >> date.day() & 1 == 1;
        let of_week = self.times.weekdays >> date.weekday().to_sunday_zero_offset() & 1 == 1;
        let is_day = if self.times.either_day { of_month || of_week } else { of_month && of_week };
        is_day && self.times.months >> date.month() & 1 == 1
    }

    /// The points in time in that hour of that day, which may be none or, where the hour is shown twice, twice as many.
    fn in_hour(&self, date: Date, hour: i8) -> Vec<Timestamp> {
        if self.times.hours >> hour & 1 == 0 || !self.has_day(date) {
            return Vec::new();
        }
        let minutes = (0..60).filter(|minute| self.times.minutes >> minute & 1 == 1);
        let civil = minutes.filter_map(|minute| Some(date.to_datetime(Time::new(hour, minute, 0, 0).ok()?)));
        civil
            .flat_map(|civil| self.points(civil))
            .filter_map(|at| u64::try_from(at.as_millisecond()).ok())
            .map(Timestamp)
            .collect()
    }

    fn points(&self, civil: DateTime) -> Vec<jiff::Timestamp> {
        let is_hourly = self.times.hours == EVERY_HOUR;
        let offsets = match self.zone.to_ambiguous_timestamp(civil).offset() {
            AmbiguousOffset::Unambiguous { offset } => vec![offset],
            AmbiguousOffset::Fold { before, after } if is_hourly => vec![before, after],
            AmbiguousOffset::Fold { before, .. } => vec![before],
            // The hours around it have their own.
            AmbiguousOffset::Gap { .. } if is_hourly => Vec::new(),
            AmbiguousOffset::Gap { after, .. } => {
                let earlier = after.to_timestamp(civil).ok();
                let forward = earlier.and_then(|at| self.zone.following(at).next());
                return forward.into_iter().map(|transition| transition.timestamp()).collect();
            }
        };
        offsets.into_iter().filter_map(|offset| offset.to_timestamp(civil).ok()).collect()
    }
}

/// Days from `first` on, in one direction.
fn days(first: Date, next: fn(Date) -> Result<Date, jiff::Error>) -> impl Iterator<Item = Date> {
    std::iter::successors(Some(first), move |day| next(*day).ok()).take(MOST_DAYS)
}

/// The hour that is so many hours away; the one itself at the ends of time.
fn moved(civil: DateTime, hours: i64) -> (Date, i8) {
    let moved = civil.checked_add(jiff::SignedDuration::from_hours(hours)).unwrap_or(civil);
    (moved.date(), moved.hour())
}

#[cfg(test)]
#[path = "calendar_tests.rs"]
mod tests;
