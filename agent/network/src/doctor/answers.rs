//! Whether containers get the answers that the managers' last word asks for: judged by questions that were really asked
//! in their namespaces.

use std::collections::BTreeSet;
use std::net::IpAddr;

use skep_proto::model::doctor::Check;

use crate::dns::message::Transport;
use crate::names::DnsPorts;

/// What is to be answered, or was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Addresses, or none though the name exists.
    Addresses {
        /// All that came.
        all: BTreeSet<IpAddr>,
        /// There are more, which did not fit.
        cut: bool,
    },
    /// The name does not exist.
    NoSuchName,
    /// Another word of the server, in the field's terms.
    Refusal(String),
    /// Nothing, for that reason.
    Silence(String),
}

/// One question, asked as a container does and, when the answer was not right, where the name server itself listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The sandbox.
    pub sandbox: String,
    /// The name.
    pub name: String,
    /// How it was asked.
    pub transport: Transport,
    /// Where the name server listens there.
    pub ports: DnsPorts,
    /// What should be answered.
    pub wanted: Reply,
    /// What came from 127.0.0.11:53.
    pub heard: Reply,
    /// What came from the name server's own port; `None` when that was not asked.
    pub own: Option<Reply>,
}

/// What is broken, the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    /// The name server is there no more, or hangs.
    Server,
    /// Port 53 leads elsewhere, or nowhere.
    Redirect,
    /// The name server says something else.
    Stale,
}

impl Reply {
    /// Whether it may stand for what should be answered.
    fn fits(&self, wanted: &Self) -> bool {
        match (self, wanted) {
            (Self::Addresses { all, cut: true }, Self::Addresses { all: wanted, .. }) => all.is_subset(wanted),
            (Self::Addresses { all, .. }, Self::Addresses { all: wanted, .. }) => all == wanted,
            _ => self == wanted,
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Addresses { all, .. } if all.is_empty() => "no address".into(),
            Self::Addresses { all, .. } => {
                let told: Vec<String> = all.iter().take(TOLD).map(ToString::to_string).collect();
                let more = if all.len() > TOLD { format!(" and {} more", all.len() - TOLD) } else { String::new() };
                told.join(", ") + &more
            }
            Self::NoSuchName => "no such name".into(),
            Self::Refusal(code) => code.clone(),
            Self::Silence(why) => format!("no answer ({why})"),
        }
    }
}

/// Addresses, and containers, that are told at most.
const TOLD: usize = 3;

impl Asked {
    /// Whether the answer was the right one.
    pub fn is_right(&self) -> bool {
        self.heard.fits(&self.wanted)
    }

    fn fault(&self) -> Option<Fault> {
        if self.is_right() {
            return None;
        }
        Some(match &self.own {
            Some(own) if own.fits(&self.wanted) => Fault::Redirect,
            Some(Reply::Silence(_)) => Fault::Server,
            // Two who both say something else, and not the same: port 53 is not ours.
            Some(own) if *own != self.heard => Fault::Redirect,
            _ => Fault::Stale,
        })
    }

    fn text(&self, fault: Fault) -> String {
        let (protocol, port) = match self.transport {
            Transport::Udp => ("UDP", self.ports.udp),
            Transport::Tcp => ("TCP", self.ports.tcp),
        };
        let (name, heard) = (&self.name, self.heard.text());
        let asked = format!("{name} asked by {protocol} at 127.0.0.11:53 is {heard} instead of {}", self.wanted.text());
        match (fault, &self.own) {
            (Fault::Redirect, Some(own)) => format!("{asked}; the name server's own port {port} says {}", own.text()),
            (Fault::Server, _) => format!("{asked}, and nothing answers at the name server's own port {port}"),
            _ => asked,
        }
    }
}

/// Judges what came of the questions of so many containers, of all that the node has.
pub fn judge(asked: &[Asked], containers: usize, of: usize) -> Vec<Check> {
    let mut checks = Vec::new();
    for fault in [Fault::Server, Fault::Redirect, Fault::Stale] {
        let wrong: Vec<&Asked> = asked.iter().filter(|asked| asked.fault() == Some(fault)).collect();
        let Some(first) = wrong.first() else { continue };
        let places: BTreeSet<&str> = wrong.iter().map(|asked| asked.sandbox.as_str()).collect();
        let named: Vec<&str> = places.iter().take(TOLD).copied().collect();
        let more = if places.len() > TOLD { format!(" and {} more", places.len() - TOLD) } else { String::new() };
        let seen = format!(
            "in {} of {containers} containers asked ({}{more}): {}",
            places.len(),
            named.join(", "),
            first.text(fault)
        );
        checks.push(Check::failed("answers", seen, advice(fault)));
    }
    if checks.is_empty() {
        let seen = match (containers, of) {
            (0, 0) => "no container asks the name server".to_owned(),
            (containers, of) => {
                format!("{} questions in {containers} of {of} containers answered rightly", asked.len())
            }
        };
        checks.push(Check::ok("answers", seen));
    }
    checks
}

fn advice(fault: Fault) -> &'static str {
    match fault {
        Fault::Server => {
            "the name server (the process skep net) is stopped, hangs or does not serve these containers: look for it (ps, \
             state T is stopped) and in netd.log; killing it makes the daemon start another, which is told everything"
        }
        Fault::Redirect => {
            "the rules that lead port 53 to the name server are gone or others in the container's namespace: find what \
             changes rules there (a privileged container, nft flush ruleset); the daemon loads them again within a second, \
             else its log says why not"
        }
        Fault::Stale => {
            "the name server was not told the managers' last word: look in this node's log for why; killing the process skep \
             net makes the daemon start another, which is told everything"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_proto::model::doctor::Outcome;

    fn addresses(last: &[u8]) -> Reply {
        Reply::Addresses { all: last.iter().map(|last| IpAddr::from([10, 0, 1, *last])).collect(), cut: false }
    }

    fn silence() -> Reply {
        Reply::Silence("timed out".into())
    }

    fn asked(wanted: Reply, heard: Reply, own: Option<Reply>) -> Asked {
        let ports = DnsPorts { udp: 40001, tcp: 40002 };
        let (sandbox, name, transport) = ("a".into(), "web".into(), Transport::Udp);
        Asked { sandbox, name, transport, ports, wanted, heard, own }
    }

    #[test]
    fn what_answers_as_it_should_is_well() {
        let cut = Reply::Addresses { all: [IpAddr::from([10, 0, 1, 2])].into(), cut: true };
        let right = [
            asked(addresses(&[1]), addresses(&[1]), None),
            asked(addresses(&[1, 2, 3]), cut, None),
            asked(Reply::NoSuchName, Reply::NoSuchName, None),
        ];
        assert_eq!(
            judge(&right, 2, 300),
            [Check::ok("answers", "3 questions in 2 of 300 containers answered rightly")]
        );
        assert_eq!(judge(&[], 0, 0)[0].outcome, Outcome::Ok);
    }

    #[test]
    fn the_broken_link_is_named() {
        let judged = |heard: Reply, own: Reply| {
            let check = judge(&[asked(addresses(&[1]), heard, Some(own))], 1, 1).remove(0);
            assert_eq!(check.outcome, Outcome::Failed);
            (check.seen, check.advice)
        };
        let (seen, advice) = judged(silence(), silence());
        assert!(
            seen.contains("nothing answers at the name server's own port 40001") && advice.contains("stopped"),
            "{seen}"
        );
        let (seen, advice) = judged(silence(), addresses(&[1]));
        assert!(seen.contains("own port 40001 says 10.0.1.1") && advice.contains("lead port 53"), "{seen}");
        let (seen, advice) = judged(addresses(&[9]), addresses(&[1]));
        assert!(seen.contains("is 10.0.1.9 instead of 10.0.1.1;") && advice.contains("lead port 53"), "{seen}");
        let (seen, advice) = judged(addresses(&[9]), addresses(&[9]));
        assert!(seen.ends_with("is 10.0.1.9 instead of 10.0.1.1") && advice.contains("was not told"), "{seen}");
        let (_, advice) = judged(Reply::NoSuchName, Reply::Refusal("SERVFAIL".into()));
        assert!(advice.contains("lead port 53"));
        let unknown = asked(Reply::NoSuchName, addresses(&[]), Some(addresses(&[])));
        assert!(judge(&[unknown], 1, 1)[0].seen.contains("is no address instead of no such name"));
    }

    #[test]
    fn each_kind_of_fault_is_one_line_and_many_containers_are_counted() {
        let of = |sandbox: &str, own: Reply| Asked {
            sandbox: sandbox.into(),
            ..asked(addresses(&[1]), silence(), Some(own))
        };
        let all: Vec<Asked> = ["a", "b", "c", "d", "e"].map(|sandbox| of(sandbox, silence())).into();
        let checks = judge(&[all, vec![of("f", addresses(&[1]))]].concat(), 6, 6);
        assert_eq!(checks.len(), 2);
        assert!(checks[0].seen.starts_with("in 5 of 6 containers asked (a, b, c and 2 more): "), "{}", checks[0].seen);
        assert!(checks[1].seen.starts_with("in 1 of 6 containers asked (f): "), "{}", checks[1].seen);
    }
}
