//! What fails when, from a seed. Everything that fails is whole again at the end.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use super::Random;

/// One thing that is done to a lab; nodes by name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// SIGKILL for the daemon.
    Kill(String),
    /// SIGKILL for the name server, which the daemon is to start again.
    KillNames(String),
    /// Every process, mount, link and namespace of the node is gone.
    PowerOff(String),
    /// A daemon that was killed, or a node without power, starts.
    Start(String),
    /// The node's link goes down.
    Cut(String),
    /// It comes up.
    Heal(String),
    /// Two nodes no longer hear each other.
    Part(String, String),
    /// They do again.
    Join(String, String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(node) => write!(f, "kill {node}"),
            Self::KillNames(node) => write!(f, "kill the name server of {node}"),
            Self::PowerOff(node) => write!(f, "power-off {node}"),
            Self::Start(node) => write!(f, "start {node}"),
            Self::Cut(node) => write!(f, "cut {node}"),
            Self::Heal(node) => write!(f, "heal {node}"),
            Self::Part(a, b) => write!(f, "cut {a} {b}"),
            Self::Join(a, b) => write!(f, "heal {a} {b}"),
        }
    }
}

/// Least and most milliseconds between two faults.
const PAUSE: (u64, u64) = (300, 2500);
/// Least and most milliseconds for which something is gone; short ones hit what is still starting.
const GONE: (u64, u64) = (200, 9000);

/// Faults with the time at which each is due, in order, the last of them no later than `within`.
pub fn plan(seed: u64, nodes: &[String], within: Duration) -> Vec<(Duration, Fault)> {
    let within = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
    // Its own numbers: a longer run begins as a shorter one.
    let mut random = Random::new(seed ^ 0x5c4e_d01e);
    let managers: Vec<&String> = nodes.iter().filter(|n| n.starts_with('m')).collect();
    let mut planned: Vec<(u64, u64, Fault)> = Vec::new();
    // What is down or cut, and until when.
    let mut busy: Vec<(u64, BTreeSet<String>)> = Vec::new();
    let (mut now, mut number) = (500, 0);
    while now < within {
        busy.retain(|(until, _)| *until > now);
        let node = random.pick(nodes).clone();
        let other = random.pick(nodes).clone();
        let kind = random.below(12);
        let gone = GONE.0 + random.below(GONE.1 - GONE.0) * random.below(100) / 100;
        // Mostly a majority of managers is left; now and then not, and then nothing may be acknowledged.
        let may_take_majority = random.below(6) == 0;
        let is_busy = |name: &String| busy.iter().any(|(_, names)| names.contains(name));
        let lost = managers.iter().filter(|m| is_busy(m) || **m == &node).count();
        let fits = lost * 2 < managers.len() || may_take_majority || !node.starts_with('m');
        let until = now + gone;
        if !is_busy(&node) && fits && until < within {
            let (begin, end) = match kind {
                0..4 => (Fault::Kill(node.clone()), Some(Fault::Start(node.clone()))),
                4..6 => (Fault::PowerOff(node.clone()), Some(Fault::Start(node.clone()))),
                6..9 => (Fault::Cut(node.clone()), Some(Fault::Heal(node.clone()))),
                9..11 if node != other && !is_busy(&other) => {
                    (Fault::Part(node.clone(), other.clone()), Some(Fault::Join(node.clone(), other.clone())))
                }
                _ => (Fault::KillNames(node.clone()), None),
            };
            let mut names = BTreeSet::from([node]);
            if let Fault::Part(_, b) = &begin {
                names.insert(b.clone());
            }
            planned.push((now, number, begin));
            if let Some(end) = end {
                planned.push((until, number + 1, end));
                busy.push((until, names));
            }
            number += 2;
        }
        now += PAUSE.0 + random.below(PAUSE.1 - PAUSE.0);
    }
    planned.sort();
    planned.into_iter().map(|(at, _, fault)| (Duration::from_millis(at), fault)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn nodes() -> Vec<String> {
        ["m1", "m2", "m3", "w1", "w2"].map(String::from).to_vec()
    }

    #[test]
    fn it_follows_from_the_seed_alone() {
        let minute = Duration::from_secs(60);
        assert_eq!(plan(7, &nodes(), minute), plan(7, &nodes(), minute));
        assert_ne!(plan(7, &nodes(), minute), plan(8, &nodes(), minute));
    }

    #[test]
    fn all_that_fails_is_whole_again_and_only_what_is_whole_fails() {
        let mut kinds = HashSet::new();
        for seed in 0..200 {
            let mut broken = BTreeSet::new();
            for (at, fault) in plan(seed, &nodes(), Duration::from_secs(60)) {
                assert!(at < Duration::from_secs(60));
                kinds.insert(std::mem::discriminant(&fault));
                match &fault {
                    Fault::Kill(n) | Fault::PowerOff(n) => assert!(broken.insert(Fault::Start(n.clone())), "{fault}"),
                    Fault::Cut(n) => assert!(broken.insert(Fault::Heal(n.clone())), "{fault}"),
                    Fault::Part(a, b) => assert!(broken.insert(Fault::Join(a.clone(), b.clone())), "{fault}"),
                    Fault::KillNames(_) => {}
                    end => assert!(broken.remove(end), "{fault} of what is whole"),
                }
            }
            assert!(broken.is_empty(), "seed {seed} leaves {broken:?}");
        }
        assert_eq!(kinds.len(), 8, "every kind of fault is there");
    }
}
