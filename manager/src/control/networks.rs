//! Networks of the cluster.

use std::collections::BTreeMap;
use std::sync::Arc;

use skep_api::ports::control::{ControlError, ObjectFilter};
use skep_proto::model::{Meta, Network, NetworkId, NetworkSpec, addressing};

use super::{Control, PATIENCE, lookup, names};
use crate::store::{Change, INGRESS, State};

/// Names that every node uses for its own networks.
const PREDEFINED: [&str; 4] = ["bridge", "host", "none", "default"];

impl Control {
    pub(super) async fn list_networks(&self, filter: &ObjectFilter) -> Result<Vec<Arc<Network>>, ControlError> {
        let state = self.read().await?;
        let visible = state.networks().values().filter(|n| !n.pending_delete);
        let matching = visible.filter(|n| lookup::passes(filter, &n.id, &n.spec.annotations));
        let sorted: BTreeMap<NetworkId, Arc<Network>> = matching.map(|n| (n.id, n.clone())).collect();
        Ok(sorted.into_values().collect())
    }

    pub(super) async fn get_network(&self, reference: &str) -> Result<Arc<Network>, ControlError> {
        find(&*self.read().await?, reference)
    }

    pub(super) async fn make_network(&self, spec: NetworkSpec) -> Result<NetworkId, ControlError> {
        check(&spec)?;
        if spec.ingress {
            return self.make_ingress(spec).await;
        }
        check_free(&*self.read().await?, &spec)?;
        let id = NetworkId::random(&mut rand::rng());
        let network =
            Network { id, meta: Meta::default(), spec, vni: None, subnets: Vec::new(), pending_delete: false };
        self.change(Change::create(&network)).await?;
        self.wait_for_subnets(id).await?;
        Ok(id)
    }

    /// The allocator gives subnets a moment later; who makes a network expects to see them.
    async fn wait_for_subnets(&self, id: NetworkId) -> Result<(), ControlError> {
        let (mut state, mut watch) = self.parts.store.view_and_watch();
        let allocated = async {
            loop {
                match state.networks().get(id) {
                    Some(network) if network.vni.is_none() => {}
                    Some(_) => return Ok(()),
                    None => return Err(ControlError::NotFound { kind: "network", reference: id.to_string() }),
                }
                state = watch.next().await.ok_or(ControlError::NoLeader)?.0;
            }
        };
        match tokio::time::timeout(PATIENCE, allocated).await {
            Ok(result) => result,
            Err(_) => Err(ControlError::FailedPrecondition(
                "the network was made, but no subnet is free for it yet: remove unused networks or name one with --subnet".into(),
            )),
        }
    }

    pub(super) async fn delete_network(&self, reference: &str) -> Result<(), ControlError> {
        // The others are asked for it only where it may be the routing mesh, which is more than one object.
        let is_other = find(&self.parts.store.view(), reference).is_ok_and(|network| !network.spec.ingress);
        if !is_other && self.delete_ingress(reference).await? {
            return Ok(());
        }
        self.change_latest(|state| {
            let mut network = (*find(state, reference)?).clone();
            network.pending_delete = true;
            Ok(Some(Change::update(&network)))
        })
        .await
    }
}

/// A network that is not being removed.
pub fn find(state: &State, reference: &str) -> Result<Arc<Network>, ControlError> {
    lookup::find(state.networks(), "network", reference, |n| !n.pending_delete)
}

fn check(spec: &NetworkSpec) -> Result<(), ControlError> {
    names::check_network_name(&spec.annotations.name)?;
    let invalid = |text: String| Err(ControlError::InvalidArgument(text));
    let name = spec.annotations.name.as_str();
    if PREDEFINED.contains(&name) || (name == INGRESS && !spec.ingress) {
        return Err(ControlError::FailedPrecondition(format!(
            "operation is not permitted on predefined {name} network"
        )));
    }
    if !matches!(spec.driver.name.as_str(), "" | "overlay") {
        return Err(ControlError::Unsupported(format!("the network driver {} in swarm scope", spec.driver.name)));
    }
    // Encrypted unless somebody says otherwise; a value that is neither could be meant either way.
    if let Some(value) = spec.driver.options.get("encrypted")
        && !matches!(value.as_str(), "" | "true" | "false")
    {
        return invalid(format!("the option encrypted={value} is neither true nor false"));
    }
    match addressing::contradiction(spec.ipv6, &spec.ipam) {
        Some(text) => invalid(text),
        None => Ok(()),
    }
}

/// Whether what a network asks for is another's: it would wait for it for ever. In Docker's words.
fn check_free(state: &State, spec: &NetworkSpec) -> Result<(), ControlError> {
    let asked: Vec<_> = spec.ipam.iter().filter_map(|config| config.subnet).collect();
    for network in state.networks().values() {
        let theirs = network.subnets.iter().map(|s| s.subnet);
        let clash = theirs.flat_map(|a| asked.iter().map(move |b| (a, *b))).find(|(a, b)| addressing::overlap(*a, *b));
        if let Some((subnet, own)) = clash {
            return Err(ControlError::FailedPrecondition(format!(
                "invalid pool request: Pool overlaps with other one on this address space: {own} overlaps {subnet} of \
                 network {}",
                network.spec.annotations.name
            )));
        }
    }
    Ok(())
}
