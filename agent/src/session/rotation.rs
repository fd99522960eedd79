//! Which manager next, and after what pause. No clock; the pauses are drawn from the generator that is passed in.

use std::net::SocketAddr;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;

/// Longest pause after the first round of failures; doubled with each round.
const FIRST: Duration = Duration::from_millis(200);
/// Longest pause ever. A cluster whose managers return is whole again within this time.
const LAST: Duration = Duration::from_secs(5);

/// The managers in turn.
#[derive(Debug)]
pub struct Rotation {
    managers: Vec<SocketAddr>,
    /// Addresses that the operator gave, and this node's own where it is a manager: tried after those that are known.
    seeds: Vec<SocketAddr>,
    next: usize,
    /// Where the last manager sent this node: tried before all others, once.
    redirect: Option<SocketAddr>,
    failures: u32,
    rng: StdRng,
}

impl Rotation {
    /// Begins at a random one of `managers`, so that the nodes of a new cluster spread; `seeds` follow, because all that
    /// is known may be out of date.
    pub fn new(managers: Vec<SocketAddr>, seeds: Vec<SocketAddr>, mut rng: StdRng) -> Self {
        let next = rng.random_range(0..managers.len().max(1));
        Self { managers, seeds, next, redirect: None, failures: 0, rng }
    }

    /// The next manager and the pause before it is asked.
    pub fn take_next(&mut self) -> (Option<SocketAddr>, Duration) {
        let pause = self.pause();
        if let Some(manager) = self.redirect.take() {
            return (Some(manager), pause);
        }
        let addresses = self.addresses();
        match addresses.get(self.next % addresses.len().max(1)) {
            Some(manager) => (Some(*manager), pause),
            None => (None, LAST),
        }
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        let seeds = self.seeds.iter().filter(|seed| !self.managers.contains(seed));
        self.managers.iter().chain(seeds).copied().collect()
    }

    /// The manager did not answer, or its session was lost.
    pub fn failed(&mut self) {
        self.failures = self.failures.saturating_add(1);
        self.next = self.next.wrapping_add(1);
    }

    /// The manager sent this node to another one, or to any other.
    pub fn redirected(&mut self, to: Option<SocketAddr>) {
        self.redirect = to;
        // Two managers that send a node back and forth must not keep it busy.
        self.failed();
    }

    /// A session lasted.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// The cluster's managers are now these.
    pub fn replace(&mut self, managers: Vec<SocketAddr>) {
        self.managers = managers;
    }

    /// No pause at first; every manager is tried once with little pause, then pauses grow.
    fn pause(&mut self) -> Duration {
        if self.failures == 0 {
            return Duration::ZERO;
        }
        let known = u32::try_from(self.addresses().len().max(1)).unwrap_or(u32::MAX);
        let rounds = (self.failures - 1) / known;
        let longest = FIRST.saturating_mul(1u32.checked_shl(rounds.min(16)).unwrap_or(u32::MAX)).min(LAST);
        longest.mul_f64(self.rng.random_range(0.2..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 2377))
    }

    fn rotation() -> Rotation {
        Rotation::new(vec![address(1), address(2), address(3)], vec![address(9)], StdRng::seed_from_u64(1))
    }

    #[test]
    fn after_a_failure_the_next_manager_is_asked() {
        let mut rotation = rotation();
        let mut asked: Vec<_> = (0..4)
            .map(|_| {
                let manager = rotation.take_next().0.unwrap();
                rotation.failed();
                manager
            })
            .collect();
        asked.sort();
        assert_eq!(asked, [address(1), address(2), address(3), address(9)], "at last the operator's");
    }

    #[test]
    fn pauses_grow_with_each_round_stay_below_the_limit_and_end_with_success() {
        let mut rotation = rotation();
        assert_eq!(rotation.take_next().1, Duration::ZERO);
        for failures in 1..100 {
            rotation.failed();
            let pause = rotation.take_next().1;
            assert!(pause > Duration::ZERO && pause <= LAST);
            if failures <= 4 {
                assert!(pause <= FIRST);
            }
        }
        assert!(rotation.take_next().1 >= LAST.mul_f64(0.2));
        rotation.succeeded();
        assert_eq!(rotation.take_next().1, Duration::ZERO);
    }

    #[test]
    fn a_redirect_is_followed_once() {
        let mut rotation = rotation();
        rotation.redirected(Some(address(7)));
        assert_eq!(rotation.take_next().0, Some(address(7)));
        rotation.failed();
        assert_ne!(rotation.take_next().0, Some(address(7)));
    }

    #[test]
    fn without_known_managers_the_operators_addresses_are_asked() {
        let mut rotation = Rotation::new(Vec::new(), vec![address(9)], StdRng::seed_from_u64(1));
        assert_eq!(rotation.take_next().0, Some(address(9)));
        let mut nobody = Rotation::new(Vec::new(), Vec::new(), StdRng::seed_from_u64(1));
        assert_eq!(nobody.take_next(), (None, LAST));
    }
}
