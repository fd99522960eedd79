//! Encryption on this node: its keys, its WireGuard link, and the path of each network.

use std::io;
use std::net::IpAddr;

use skep_proto::model::NetworkId;
use skep_proto::model::node::WireGuard;
use skep_proto::model::view::{NetworkView, OverlayNetwork};

use super::sandbox::Live;
use super::state::Record;
use super::{Inner, NodeNetwork, blocking, lock};
use crate::config::node_addresses;
use crate::error::{NetworkError, Step};
use crate::keys::{self, Keys};
use crate::netlink::{Requests, Rtnl};
use crate::plan::encryption;
use crate::plan::encryption::{Path, encrypted_path, plain_path, plain_port, plain_ports, tunnel};
use crate::spec::{LinkKind, SandboxLink};
use crate::tunnel::{Key, TunnelPath, TunnelStatus};

/// What an operator is told of encryption on this node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Encryption {
    /// What encrypts; `None` while the node has no WireGuard link.
    pub path: Option<TunnelPath>,
    /// Why it has none, where it should have one.
    pub failure: Option<String>,
    /// Networks of this node that are not encrypted.
    pub plain: Vec<String>,
}

impl NodeNetwork {
    /// How other nodes speak WireGuard with this one, for the managers. The first call makes the key.
    ///
    /// # Errors
    /// When the key cannot be read or written.
    pub fn wireguard(&self) -> Result<WireGuard, NetworkError> {
        let keys = self.inner.keys()?;
        Ok(WireGuard { port: self.inner.config.wireguard_port, key: keys.current, next: keys.next })
    }

    /// Makes the node's next key, unless it has one. It is used once [`NodeNetwork::switch_key`] says so; until then it
    /// is only told to the other nodes.
    ///
    /// # Errors
    /// When the key cannot be written.
    pub fn begin_key_change(&self) -> Result<(), NetworkError> {
        self.inner.keys()?;
        let mut held = lock(&self.inner.keys);
        held.as_mut().map_or(Ok(()), |keys| keys.begin().map(drop)).step("make a WireGuard key")
    }

    /// Goes over to the next key if `key` is it; true if so. All other nodes must know it by now.
    ///
    /// # Errors
    /// When the key cannot be written, or the link does not take it; the next [`NodeNetwork::apply`] tries again.
    pub async fn switch_key(&self, key: Key) -> Result<bool, NetworkError> {
        let inner = self.inner.clone();
        let switch = async move {
            let _one = inner.applying.lock().await;
            inner.keys()?;
            let switched = lock(&inner.keys).as_mut().map_or(Ok(false), |keys| keys.switch(key));
            if !switched.step("go over to another WireGuard key")? {
                return Ok(false);
            }
            let (index, view) = {
                let state = inner.state();
                (state.remembered.index, state.view.clone())
            };
            if let Some(index) = index {
                let synced = inner.sync_tunnel(index, &view).await;
                inner.or_behind(synced)?;
            }
            Ok(true)
        };
        tokio::spawn(switch).await.unwrap_or(Err(NetworkError::Stopped))
    }

    /// What an operator is told of encryption.
    pub async fn encryption(&self) -> Encryption {
        let status: Option<TunnelStatus> = self.inner.names.tunnel().await.ok().flatten();
        let state = self.inner.state();
        let plain = state.view.networks.values().filter(|network| !network.encrypted);
        Encryption {
            path: status.map(|status| status.path),
            failure: state.tunnel_failure.clone(),
            plain: plain.map(|network| network.name.clone()).collect(),
        }
    }

    /// The WireGuard link as it is; `None` when there is none.
    ///
    /// # Errors
    /// When the process that owns it does not answer.
    pub async fn tunnel(&self) -> io::Result<Option<TunnelStatus>> {
        self.inner.names.tunnel().await
    }
}

impl Inner {
    fn keys(&self) -> Result<Keys, NetworkError> {
        let mut held = lock(&self.keys);
        match held.as_ref() {
            Some(keys) => Ok(keys.clone()),
            None => {
                let keys = Keys::open(&self.config.key_dir()).step("open the node's WireGuard keys")?;
                Ok(held.insert(keys).clone())
            }
        }
    }

    pub(super) fn forget_keys(&self) -> Result<(), NetworkError> {
        *lock(&self.keys) = None;
        keys::forget(&self.config.key_dir()).step("remove the node's WireGuard keys")
    }

    /// Brings the WireGuard link to what the managers want. A host that cannot have one is no error: networks that are not
    /// encrypted go on, all others are refused with the reason.
    pub(super) async fn sync_tunnel(&self, index: u16, view: &NetworkView) -> Result<(), NetworkError> {
        let key = self.keys()?.current;
        let place = self.state().place.clone();
        let mtu = self.tunnel_underlay(self.mtu());
        let Some(wanted) = tunnel(&self.config, &place, view, index, mtu, key) else {
            return Err(NetworkError::RangeTooSmall { range: self.config.infra, index });
        };
        let (failure, result) = match self.names.put_tunnel(wanted).await {
            Ok(_) => (None, Ok(())),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => (Some(error.to_string()), Ok(())),
            Err(error) => {
                (Some(error.to_string()), Err(error).step("have the WireGuard link made as the managers want it"))
            }
        };
        let mut state = self.state();
        if failure.is_some() && failure != state.tunnel_failure {
            tracing::error!(reason = failure, "this node has no WireGuard link: nothing encrypted reaches it");
        }
        state.tunnel_failure = failure;
        result
    }

    /// What WireGuard fills of the underlay's packets; `mtu` is the underlay's, both in bytes.
    fn tunnel_underlay(&self, mtu: u32) -> u32 {
        let state = self.state();
        encryption::tunnel_underlay(state.place.underlay(), &state.remembered.peers, mtu)
    }

    /// The path of the routing mesh. `mtu` is the underlay's, in bytes.
    pub(super) fn mesh_path(&self, index: u16, mtu: u32) -> Result<Path, NetworkError> {
        let mesh = self.state().remembered.mesh;
        let path = if mesh.encrypted {
            let addresses = node_addresses(self.config.infra, index);
            let too_small = NetworkError::RangeTooSmall { range: self.config.infra, index };
            encrypted_path(&addresses.ok_or(too_small)?, self.tunnel_underlay(mtu))
        } else {
            plain_path(mesh.port, self.data_path()?, mtu)
        };
        Ok(path.within(mesh.mtu))
    }

    /// The address that VXLAN which is not encrypted speaks from.
    fn data_path(&self) -> Result<IpAddr, NetworkError> {
        let underlay = self.state().place.underlay().preferred();
        underlay.ok_or_else(|| NetworkError::Config { what: "no data path".into() })
    }

    /// The path of a network on this node.
    pub(super) fn path(&self, network: &OverlayNetwork) -> Result<Path, NetworkError> {
        let path = if network.encrypted {
            let state = self.state();
            if let Some(reason) = &state.tunnel_failure {
                return Err(NetworkError::NoEncryption { network: network.name.clone(), reason: reason.clone() });
            }
            let addresses = state.addresses(&self.config)?;
            drop(state);
            encrypted_path(&addresses, self.tunnel_underlay(self.mtu()))
        } else {
            plain_path(plain_port(network, self.config.vxlan_port), self.data_path()?, self.mtu())
        };
        Ok(path.within(network.mtu))
    }

    /// The path of a network, whose port is filtered before anything is made that listens on it.
    pub(super) fn open_path(&self, network: &OverlayNetwork) -> Result<Path, NetworkError> {
        let path = self.path(network)?;
        let is_new = !path.is_encrypted() && self.state().vxlan_ports.insert(path.port);
        if is_new {
            self.load_node_rules()?;
        }
        Ok(path)
    }

    /// Notes the ports of the networks of a view, before its rules are made.
    pub(super) fn note_ports(&self, view: &NetworkView) {
        self.state().vxlan_ports.extend(plain_ports(view, self.config.vxlan_port));
    }

    /// Brings the switch of a network to its path, if it is another one than it was made for.
    pub(super) fn sync_path(
        &self,
        id: NetworkId,
        switch: &mut super::Switch,
        view: &NetworkView,
    ) -> Result<(), NetworkError> {
        match view.networks.get(&id) {
            Some(network) => {
                let passing = self.config.names().passing(network.vni);
                switch.set_path(&self.netns, &passing, network.vni, self.open_path(network)?)
            }
            None => Ok(()),
        }
    }

    /// Brings the links of a sandbox to the size that the paths of its networks have now: a packet that is too large for the
    /// switch would be lost without a word.
    pub(super) fn fit(&self, there: &mut Live, record: &Record) -> Result<(), NetworkError> {
        let view = self.state().view.clone();
        let overlay = |link: &SandboxLink| match &link.kind {
            LinkKind::Overlay(network) => view.networks.get(network),
            LinkKind::Bridge(_) | LinkKind::Task => None,
        };
        let size = |network| self.path(network).ok().map(|path| path.mtu);
        let wanted: Vec<Option<u32>> = record.links.iter().map(|link| overlay(link).and_then(size)).collect();
        if there.sizes == wanted {
            return Ok(());
        }
        let mut inside = Rtnl::open(&there.netns).step("open rtnetlink")?;
        let mut requests = Requests::new();
        for (link, mtu) in record.links.iter().zip(&wanted) {
            let found = inside.link(&link.name).step("read a link")?;
            if let (Some(found), Some(mtu)) = (found, mtu)
                && found.mtu != *mtu
            {
                requests.set_mtu(found.index, *mtu);
            }
        }
        inside.send(&requests).step("set the size of a sandbox's packets")?;
        there.sizes = wanted;
        Ok(())
    }

    /// Removes link and keys.
    pub(super) async fn clear_tunnel(self: &std::sync::Arc<Self>) -> Result<(), NetworkError> {
        let removed = self.names.remove_tunnel().await.step("remove the WireGuard link");
        let inner = self.clone();
        removed.and(blocking(move || inner.forget_keys()).await)
    }
}
