//! Which handshake messages are worth public-key cryptography (paper, section 5.3): all while there are few; above
//! that, those whose sender has shown by a cookie where it is, each address at a limited rate.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use crate::Limits;

/// Addresses whose rate is remembered. When there are more, new ones wait for those of this second to go.
const MAX_ADDRESSES: usize = 8192;
/// The load is measured over, and lasts, this long.
const WINDOW: Duration = Duration::from_secs(1);

/// What to do with a handshake message whose mac1 is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Read it.
    Work,
    /// Answer by a cookie.
    Cookie,
    /// Drop it: its sender is above its rate.
    Drop,
}

/// Counts handshake messages.
pub struct Gate {
    limits: Limits,
    since: Duration,
    count: u32,
    loaded_until: Duration,
    addresses: HashMap<IpAddr, Bucket>,
}

/// Messages that an address may still send, in thousandths.
struct Bucket {
    left: u64,
    at: Duration,
}

impl Gate {
    pub fn new(limits: Limits) -> Gate {
        Gate { limits, since: Duration::ZERO, count: 0, loaded_until: Duration::ZERO, addresses: HashMap::new() }
    }

    /// Judges one message; `has_cookie` is only asked under load.
    pub fn judge(&mut self, from: SocketAddr, now: Duration, has_cookie: impl FnOnce() -> bool) -> Verdict {
        if now.saturating_sub(self.since) >= WINDOW {
            (self.since, self.count) = (now, 0);
            self.forget(now);
        }
        self.count = self.count.saturating_add(1);
        if self.count > self.limits.handshakes_per_second {
            self.loaded_until = now + WINDOW;
        }
        if now >= self.loaded_until {
            return Verdict::Work;
        }
        match has_cookie() {
            false => Verdict::Cookie,
            true if self.take(from.ip(), now) => Verdict::Work,
            true => Verdict::Drop,
        }
    }

    fn take(&mut self, ip: IpAddr, now: Duration) -> bool {
        let key = match ip {
            IpAddr::V4(_) => ip,
            // A host has a /64 to choose from.
            IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) >> 64 << 64).into()),
        };
        let full = u64::from(self.limits.per_address_burst) * 1000;
        let rate = u64::from(self.limits.per_address_per_second);
        if self.addresses.len() >= MAX_ADDRESSES && !self.addresses.contains_key(&key) {
            return false;
        }
        let bucket = self.addresses.entry(key).or_insert(Bucket { left: full, at: now });
        let gained = (now.saturating_sub(bucket.at).as_millis() as u64).saturating_mul(rate);
        bucket.left = bucket.left.saturating_add(gained).min(full);
        bucket.at = now;
        match bucket.left.checked_sub(1000) {
            Some(left) => {
                bucket.left = left;
                true
            }
            None => false,
        }
    }

    /// Forgets addresses whose bucket is full again.
    fn forget(&mut self, now: Duration) {
        let refill =
            u64::from(self.limits.per_address_burst) * 1000 / u64::from(self.limits.per_address_per_second.max(1));
        let refill = Duration::from_millis(refill);
        self.addresses.retain(|_, bucket| now.saturating_sub(bucket.at) < refill);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits { handshakes_per_second: 10, per_address_per_second: 4, per_address_burst: 2 }
    }

    #[test]
    fn few_messages_need_no_cookie_and_many_do() {
        let mut gate = Gate::new(limits());
        let from = "10.0.0.1:1".parse().unwrap();
        let at = Duration::from_millis(5000);
        for _ in 0..10 {
            assert_eq!(gate.judge(from, at, || panic!("not asked")), Verdict::Work);
        }
        assert_eq!(gate.judge(from, at, || false), Verdict::Cookie);
        assert_eq!(gate.judge(from, at, || true), Verdict::Work);
        assert_eq!(gate.judge(from, at, || true), Verdict::Work);
        assert_eq!(gate.judge(from, at, || true), Verdict::Drop);
        assert_eq!(gate.judge("10.0.0.2:1".parse().unwrap(), at, || true), Verdict::Work);
        assert_eq!(gate.judge(from, at + Duration::from_millis(250), || true), Verdict::Work);
        // The load lasts a second beyond the last message too many.
        assert_eq!(gate.judge(from, at + Duration::from_millis(2500), || panic!("not asked")), Verdict::Work);
    }

    #[test]
    fn addresses_of_one_network_share_a_rate_and_memory_is_bounded() {
        let mut gate = Gate::new(Limits { handshakes_per_second: 0, ..limits() });
        let at = Duration::from_secs(9);
        let v6 = |i: u64| SocketAddr::new(IpAddr::V6((u128::from(i) | 0x2001_0db8 << 96).into()), 1);
        assert_eq!([1, 2, 3].map(|i| gate.judge(v6(i), at, || true)), [Verdict::Work, Verdict::Work, Verdict::Drop]);
        for i in 0..20_000u32 {
            gate.judge(SocketAddr::new(IpAddr::V4(i.into()), 1), at, || true);
        }
        assert_eq!(gate.addresses.len(), MAX_ADDRESSES);
        gate.judge(v6(1), at + Duration::from_secs(2), || true);
        assert_eq!(gate.addresses.len(), 1);
    }
}
