//! When a container is probed and what follows from the answers (kubelet, `prober`). Pure.

use std::time::Duration;

use skep_proto::model::pod::{PodContainer, Probe};

use super::pod::Probed;

/// Which of a container's probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Holds the others back until it succeeds; failing, it ends the container.
    Startup,
    /// Failing, it takes new connections away.
    Readiness,
    /// Failing, it ends the container.
    Liveness,
}

impl Kind {
    /// All, in the order in which they are asked.
    pub const ALL: [Self; 3] = [Self::Startup, Self::Readiness, Self::Liveness];

    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Startup => "startup",
            Self::Readiness => "readiness",
            Self::Liveness => "liveness",
        }
    }

    /// The probe of a container.
    pub fn of(self, pod: &PodContainer) -> Option<&Probe> {
        match self {
            Self::Startup => pod.startup.as_ref(),
            Self::Readiness => pod.readiness.as_ref(),
            Self::Liveness => pod.liveness.as_ref(),
        }
    }
}

/// The probes of one container.
#[derive(Debug, Clone)]
pub struct Probes {
    pod: PodContainer,
    probed: Probed,
    /// Successes and failures in a row, and when the next one is due, for each kind.
    counts: [Count; 3],
}

#[derive(Debug, Clone, Copy, Default)]
struct Count {
    successes: u32,
    failures: u32,
    due: Duration,
}

impl Probes {
    /// The probes of a container. One that was taken over while it served, `serving`, goes on doing so until they say
    /// otherwise; its next probes come after a period.
    pub fn new(pod: &PodContainer, ran: Duration, serving: bool) -> Self {
        let started = serving || pod.startup.is_none();
        let probed = Probed { started, ready: serving || (started && pod.readiness.is_none()), failed: None };
        let due = |kind: Kind| {
            kind.of(pod)
                .map_or(Duration::ZERO, |probe| probe.initial_delay.max(if serving { ran + probe.period } else { ran }))
        };
        let counts = Kind::ALL.map(|kind| Count { due: due(kind), ..Count::default() });
        Self { pod: pod.clone(), probed, counts }
    }

    /// What they have shown.
    pub fn probed(&self) -> &Probed {
        &self.probed
    }

    /// The next probe and when it is due, as time since the container's start. `None` when there is none to come.
    pub fn next(&self) -> Option<(Kind, Duration)> {
        if self.probed.failed.is_some() {
            return None;
        }
        let waits = |kind: Kind| match kind {
            Kind::Startup => !self.probed.started,
            Kind::Readiness | Kind::Liveness => self.probed.started,
        };
        let due = Kind::ALL.into_iter().filter(|kind| waits(*kind) && kind.of(&self.pod).is_some());
        due.map(|kind| (kind, self.counts[kind as usize].due)).min_by_key(|(kind, due)| (*due, *kind))
    }

    /// Takes an answer in: `Err` says what went wrong. `ran` is how long the container has run.
    pub fn answer(&mut self, kind: Kind, ran: Duration, answer: Result<(), String>) {
        let Some(probe) = kind.of(&self.pod).cloned() else { return };
        let count = &mut self.counts[kind as usize];
        count.due = ran + probe.period;
        match answer {
            Ok(()) => {
                count.failures = 0;
                count.successes = count.successes.saturating_add(1);
                if count.successes >= probe.successes {
                    match kind {
                        Kind::Startup => self.has_started(ran),
                        Kind::Readiness => self.probed.ready = true,
                        Kind::Liveness => {}
                    }
                }
            }
            Err(error) => {
                count.successes = 0;
                count.failures = count.failures.saturating_add(1);
                if count.failures >= probe.failures {
                    match kind {
                        Kind::Readiness => self.probed.ready = false,
                        Kind::Startup | Kind::Liveness => {
                            self.probed.failed = Some(format!("its {} probe failed: {error}", kind.as_str()));
                        }
                    }
                }
            }
        }
    }

    /// The container must be ended for another reason.
    pub fn fail(&mut self, why: String) {
        self.probed.failed.get_or_insert(why);
    }

    fn has_started(&mut self, ran: Duration) {
        self.probed.started = true;
        self.probed.ready |= self.pod.readiness.is_none();
        for kind in [Kind::Readiness, Kind::Liveness] {
            let count = &mut self.counts[kind as usize];
            count.due = count.due.max(ran);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use skep_proto::model::pod::Action;

    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn probe(initial_delay: u32, successes: u32, failures: u32) -> Probe {
        let action = Action::TcpSocket { host: String::new(), port: 80 };
        Probe { action, initial_delay: S * initial_delay, period: S * 10, timeout: S, successes, failures }
    }

    fn pod(startup: Option<Probe>, readiness: Option<Probe>, liveness: Option<Probe>) -> PodContainer {
        PodContainer { startup, readiness, liveness, ..PodContainer::default() }
    }

    fn no() -> Result<(), String> {
        Err("no".into())
    }

    #[test]
    fn without_probes_a_container_is_ready_at_once_and_nothing_is_due() {
        let probes = Probes::new(&PodContainer::default(), Duration::ZERO, false);
        assert_eq!((probes.probed(), probes.next()), (&Probed::FINE, None));
    }

    #[test]
    fn a_startup_probe_holds_the_others_back_and_ends_the_container_when_it_fails_too_often() {
        let pod = pod(Some(probe(0, 1, 2)), Some(probe(5, 1, 3)), None);
        let mut probes = Probes::new(&pod, Duration::ZERO, false);
        assert_eq!(probes.next(), Some((Kind::Startup, Duration::ZERO)));
        let mut slow = probes.clone();
        probes.answer(Kind::Startup, S, no());
        assert_eq!(probes.next(), Some((Kind::Startup, S * 11)));
        probes.answer(Kind::Startup, S * 11, Ok(()));
        assert_eq!(probes.next(), Some((Kind::Readiness, S * 11)));
        assert_eq!(*probes.probed(), Probed { started: true, ready: false, failed: None });
        probes.answer(Kind::Readiness, S * 11, Ok(()));
        assert_eq!(*probes.probed(), Probed::FINE);
        for at in [1, 11] {
            slow.answer(Kind::Startup, S * at, no());
        }
        assert_eq!(slow.probed().failed.as_deref(), Some("its startup probe failed: no"));
        assert_eq!(slow.next(), None);
    }

    #[test]
    fn readiness_comes_and_goes_by_its_thresholds_and_liveness_ends_the_container() {
        let pod = pod(None, Some(probe(0, 2, 2)), Some(probe(0, 1, 3)));
        let mut probes = Probes::new(&pod, Duration::ZERO, false);
        let mut ready = |answers: &[Result<(), String>]| {
            answers.iter().for_each(|answer| probes.answer(Kind::Readiness, S, answer.clone()));
            probes.probed().ready
        };
        assert!(!ready(&[Ok(())]));
        assert!(ready(&[Ok(())]));
        assert!(ready(&[no(), Ok(()), no()]));
        assert!(!ready(&[no()]));
        for _ in 0..2 {
            probes.answer(Kind::Liveness, S, no());
        }
        assert_eq!(probes.probed().failed, None);
        probes.answer(Kind::Liveness, S, no());
        assert!(probes.probed().failed.is_some());
    }

    #[test]
    fn a_container_that_was_taken_over_goes_on_serving_until_its_probes_say_otherwise() {
        let pod = pod(Some(probe(0, 1, 1)), Some(probe(0, 1, 1)), None);
        let probes = Probes::new(&pod, S * 100, true);
        assert_eq!(*probes.probed(), Probed::FINE);
        assert_eq!(probes.next(), Some((Kind::Readiness, S * 110)));
    }

    proptest! {
        /// Whatever the answers: the next probe is never before the last answer, and a failed container is asked no more.
        #[test]
        fn probes_never_go_back_in_time(answers in prop::collection::vec(any::<bool>(), 0..40)) {
            let pod = pod(Some(probe(1, 2, 5)), Some(probe(2, 1, 2)), Some(probe(3, 1, 4)));
            let mut probes = Probes::new(&pod, Duration::ZERO, false);
            let mut now = Duration::ZERO;
            for ok in answers {
                let Some((kind, due)) = probes.next() else {
                    prop_assert!(probes.probed().failed.is_some());
                    break;
                };
                prop_assert!(due + S * 10 >= now);
                now = now.max(due);
                probes.answer(kind, now, if ok { Ok(()) } else { no() });
                prop_assert!(!probes.probed().ready || probes.probed().started);
            }
        }
    }
}
