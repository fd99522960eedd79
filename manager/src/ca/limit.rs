//! How often the calls that need no certificate are answered.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

/// Sources remembered at most; beyond it those that are full again are forgotten, and else new sources wait.
const MAX_SOURCES: usize = 4096;

/// A bucket a source: `burst` calls at once, one more each `period`.
#[derive(Debug)]
pub struct RateLimit {
    burst: u32,
    period: Duration,
    /// When the bucket of a source will be full again. Touched briefly and never across an await.
    full_at: Mutex<HashMap<IpAddr, Instant>>,
}

impl RateLimit {
    /// `burst` calls at once for each source, then one each `period`.
    pub fn new(burst: u32, period: Duration) -> Self {
        Self { burst, period, full_at: Mutex::default() }
    }

    /// Takes one call of `source` at `now`, or says how long it must wait.
    ///
    /// # Errors
    /// The time until the next call is allowed.
    pub fn take(&self, source: IpAddr, now: Instant) -> Result<(), Duration> {
        let mut full_at = self.full_at.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if full_at.len() >= MAX_SOURCES && !full_at.contains_key(&source) {
            full_at.retain(|_, at| *at > now);
            if full_at.len() >= MAX_SOURCES {
                return Err(self.period);
            }
        }
        let next = full_at.get(&source).map_or(now, |at| (*at).max(now)) + self.period;
        let allowed = self.period * self.burst;
        let debt = next - now;
        if debt > allowed {
            return Err(debt - allowed);
        }
        full_at.insert(source, next);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    #[test]
    fn after_a_burst_one_call_a_period_is_allowed_and_others_are_not_touched() {
        let limit = RateLimit::new(2, Duration::from_secs(1));
        let start = Instant::now();
        assert_eq!([limit.take(A, start), limit.take(A, start)], [Ok(()), Ok(())]);
        assert_eq!(limit.take(A, start), Err(Duration::from_secs(1)));
        assert_eq!(limit.take(B, start), Ok(()));
        let later = start + Duration::from_secs(1);
        assert_eq!(limit.take(A, later), Ok(()));
        assert!(limit.take(A, later).is_err());
    }

    #[test]
    fn many_sources_do_not_grow_the_memory() {
        let limit = RateLimit::new(1, Duration::from_secs(1));
        let start = Instant::now();
        let taken = (0..2 * MAX_SOURCES as u32).filter(|n| limit.take(IpAddr::V4((*n).into()), start).is_ok()).count();
        assert_eq!(taken, MAX_SOURCES);
        assert_eq!(limit.take(A, start + Duration::from_secs(2)), Ok(()));
    }
}
