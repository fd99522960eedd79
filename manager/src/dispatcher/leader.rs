//! Who leads, as Raft tells it.

use std::net::SocketAddr;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::ports::Leadership;
use crate::raft::Leader;

/// Keeps `out` right until `stop`; then nobody leads. `tenure` and `leader` are those of the Raft member.
pub async fn follow(
    mut tenure: watch::Receiver<Option<u64>>,
    mut leader: watch::Receiver<Option<Leader>>,
    out: watch::Sender<Leadership>,
    stop: CancellationToken,
) {
    loop {
        let now = leadership(*tenure.borrow_and_update(), leader.borrow_and_update().as_ref());
        out.send_if_modified(|old| {
            let changed = *old != now;
            *old = now;
            changed
        });
        let goes_on = tokio::select! {
            () = stop.cancelled() => false,
            changed = tenure.changed() => changed.is_ok(),
            changed = leader.changed() => changed.is_ok(),
        };
        if !goes_on {
            out.send_replace(Leadership::Following { leader: None });
            return;
        }
    }
}

fn leadership(tenure: Option<u64>, leader: Option<&Leader>) -> Leadership {
    match tenure {
        Some(term) => Leadership::Leading { term },
        None => Leadership::Following { leader: leader.and_then(address) },
    }
}

fn address(leader: &Leader) -> Option<SocketAddr> {
    leader.peer.address.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::types::Peer;

    #[test]
    fn a_leader_that_may_not_act_yet_is_named_and_does_not_lead() {
        let peer = Peer { address: "10.0.0.1:2377".into(), node_id: String::new() };
        let leader = Leader { id: 1, peer, term: 5 };
        let address = Some("10.0.0.1:2377".parse().unwrap());
        assert_eq!(leadership(None, Some(&leader)), Leadership::Following { leader: address });
        assert_eq!(leadership(Some(5), Some(&leader)), Leadership::Leading { term: 5 });
        assert_eq!(leadership(None, None), Leadership::Following { leader: None });
    }
}
