//! Health checks: what is run, when, and what follows from the results (moby `daemon/health.go`). Pure.

use std::time::Duration;

use skep_proto::model::container::Healthcheck;
use skep_proto::model::{Health, HealthStatus, ProbeResult};

/// Docker's defaults.
const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const START_INTERVAL: Duration = Duration::from_secs(5);
const RETRIES: u32 = 3;
/// Results that are kept.
const KEPT: usize = 5;
/// Bytes of a probe's output that are kept.
const MOST_OUTPUT: usize = 4096;

/// What the container does not say of its health check is the image's (moby `daemon/commit.go`, `merge`).
pub fn merge(given: Option<&Healthcheck>, image: Option<&Healthcheck>) -> Option<Healthcheck> {
    let (Some(given), Some(image)) = (given, image) else { return given.or(image).cloned() };
    let span = |given: Duration, image: Duration| if given.is_zero() { image } else { given };
    Some(Healthcheck {
        test: if given.test.is_empty() { image.test.clone() } else { given.test.clone() },
        interval: span(given.interval, image.interval),
        timeout: span(given.timeout, image.timeout),
        start_period: span(given.start_period, image.start_period),
        start_interval: span(given.start_interval, image.start_interval),
        retries: if given.retries == 0 { image.retries } else { given.retries },
    })
}

/// A health check with Docker's defaults in place of zeros.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What is run in the container.
    pub command: Vec<String>,
    /// After this time a probe has failed.
    pub timeout: Duration,
    interval: Duration,
    start_period: Duration,
    start_interval: Duration,
    retries: u32,
}

impl Check {
    /// The check of a container; `None` when it has none, or one that is turned off.
    pub fn of(healthcheck: Option<&Healthcheck>) -> Option<Self> {
        let given = healthcheck?;
        let command = match given.test.split_first()? {
            (kind, words) if kind == "CMD" && !words.is_empty() => words.to_vec(),
            (kind, [line, ..]) if kind == "CMD-SHELL" => ["/bin/sh", "-c", line].map(str::to_owned).to_vec(),
            _ => return None,
        };
        let or = |given: Duration, default| if given.is_zero() { default } else { given };
        Some(Self {
            command,
            timeout: or(given.timeout, TIMEOUT),
            interval: or(given.interval, INTERVAL),
            start_period: given.start_period,
            start_interval: or(given.start_interval, START_INTERVAL),
            retries: if given.retries == 0 { RETRIES } else { given.retries },
        })
    }

    /// How long to wait for the next probe of a container that has run for `ran`.
    pub fn pause(&self, status: HealthStatus, ran: Duration) -> Duration {
        if status == HealthStatus::Starting && ran < self.start_period { self.start_interval } else { self.interval }
    }

    /// Takes a result in. `ran` is how long the container had run when the probe began.
    pub fn judge(&self, health: &mut Health, ran: Duration, result: ProbeResult) {
        if result.exit_code == 0 {
            health.failing_streak = 0;
            health.status = HealthStatus::Healthy;
        } else if health.status != HealthStatus::Starting || ran >= self.start_period {
            health.failing_streak = health.failing_streak.saturating_add(1);
            if health.failing_streak >= self.retries {
                health.status = HealthStatus::Unhealthy;
            }
        }
        health.log.push(result);
        health.log.drain(..health.log.len().saturating_sub(KEPT));
    }
}

/// A container that no probe of this process has looked at.
pub fn unprobed(status: HealthStatus) -> Health {
    Health { status, failing_streak: 0, log: Vec::new() }
}

/// What a probe wrote, as far as it is kept.
#[derive(Debug, Default)]
pub struct Output {
    bytes: Vec<u8>,
    is_cut: bool,
}

impl Output {
    /// Takes a piece in.
    pub fn push(&mut self, piece: &[u8]) {
        let room = MOST_OUTPUT - self.bytes.len();
        self.is_cut |= piece.len() > room;
        self.bytes.extend_from_slice(&piece[..piece.len().min(room)]);
    }

    /// As it is shown.
    pub fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.bytes);
        if self.is_cut { format!("{text}...") } else { text.into_owned() }
    }
}

/// The result of a probe that took too long, in Docker's words.
pub fn timed_out(timeout: Duration, output: &Output) -> String {
    let text = format!("Health check exceeded timeout ({})", span(timeout));
    match output.text() {
        output if output.is_empty() => text,
        output => format!("{text}: {output}"),
    }
}

/// As Go writes durations: `1m30s`, `1.5s`, `200ms`.
fn span(span: Duration) -> String {
    let seconds = span.as_secs_f64();
    match span.as_secs() {
        0 => format!("{}ms", seconds * 1000.0),
        1..60 => format!("{seconds}s"),
        minutes @ 60..3600 => format!("{}m{}s", minutes / 60, seconds % 60.0),
        hours => format!("{}h{}m{}s", hours / 3600, hours / 60 % 60, seconds % 60.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use HealthStatus::{Healthy, Starting, Unhealthy};
    use proptest::prelude::*;
    use skep_proto::model::Timestamp;

    const SECOND: Duration = Duration::from_secs(1);

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|w| (*w).to_owned()).collect()
    }

    fn check() -> Check {
        let given = Healthcheck {
            test: words(&["CMD", "true"]),
            start_period: SECOND * 10,
            retries: 2,
            ..Healthcheck::default()
        };
        Check::of(Some(&given)).unwrap()
    }

    fn after(results: &[(i32, u32)]) -> Health {
        let mut health = unprobed(Starting);
        for (exit_code, ran) in results {
            let at = Timestamp(u64::from(*ran) * 1000);
            let result = ProbeResult { start: at, end: at, exit_code: *exit_code, output: String::new() };
            check().judge(&mut health, SECOND * *ran, result);
        }
        health
    }

    #[test]
    fn what_the_container_leaves_open_is_the_images_and_then_dockers() {
        let image =
            Healthcheck { test: words(&["CMD-SHELL", "ask"]), interval: SECOND, retries: 7, ..Default::default() };
        let given = Healthcheck { interval: SECOND * 2, ..Default::default() };
        let merged = merge(Some(&given), Some(&image)).unwrap();
        assert_eq!((merged.interval, merged.retries, &merged.test), (SECOND * 2, 7, &image.test));
        let check = Check::of(Some(&merged)).unwrap();
        assert_eq!(check.command, ["/bin/sh", "-c", "ask"]);
        assert_eq!((check.timeout, check.start_interval), (SECOND * 30, SECOND * 5));
        assert_eq!(merge(None, Some(&image)), Some(image.clone()));
        let off = Healthcheck { test: words(&["NONE"]), ..Default::default() };
        assert_eq!(Check::of(merge(Some(&off), Some(&image)).as_ref()), None);
        for nothing in [&[][..], &["CMD"], &["CMD-SHELL"], &["WHAT", "x"]] {
            assert_eq!(Check::of(Some(&Healthcheck { test: words(nothing), ..Default::default() })), None);
        }
    }

    #[test]
    fn failures_count_after_the_start_period_or_a_success_and_enough_of_them_are_unhealthy() {
        type Row = (&'static [(i32, u32)], HealthStatus, u32);
        let rows: [Row; 6] = [
            (&[(1, 1), (1, 2), (1, 9)], Starting, 0),
            (&[(1, 1), (1, 10)], Starting, 1),
            (&[(1, 10), (-1, 11)], Unhealthy, 2),
            (&[(0, 1), (1, 2)], Healthy, 1),
            (&[(0, 1), (1, 2), (1, 3)], Unhealthy, 2),
            (&[(1, 20), (1, 21), (0, 22)], Healthy, 0),
        ];
        for (results, status, streak) in rows {
            let health = after(results);
            assert_eq!((health.status, health.failing_streak), (status, streak), "{results:?}");
        }
    }

    #[test]
    fn probes_come_often_only_while_a_container_starts() {
        let pauses = [(Starting, 9), (Starting, 10), (Healthy, 1)].map(|(s, ran)| check().pause(s, SECOND * ran));
        assert_eq!(pauses, [SECOND * 5, SECOND * 30, SECOND * 30]);
    }

    #[test]
    fn a_probe_out_of_time_says_so_in_dockers_words() {
        let mut output = Output::default();
        assert_eq!(timed_out(SECOND * 90, &output), "Health check exceeded timeout (1m30s)");
        output.push(b"busy");
        assert_eq!(timed_out(SECOND / 5, &output), "Health check exceeded timeout (200ms): busy");
    }

    proptest! {
        #[test]
        fn five_results_and_4096_bytes_are_kept(codes in proptest::collection::vec((0..2i32, 0..30u32), 0..20), pieces in proptest::collection::vec(0..3000usize, 0..5)) {
            prop_assert_eq!(after(&codes).log.len(), codes.len().min(KEPT));
            let mut output = Output::default();
            pieces.iter().for_each(|len| output.push(&vec![b'x'; *len]));
            let all: usize = pieces.iter().sum();
            prop_assert_eq!(output.text().len(), if all > MOST_OUTPUT { MOST_OUTPUT + 3 } else { all });
        }
    }
}
