//! This node's seat among the managers: taken, moved and given up as the cluster says, while the daemon and its
//! containers go on.
//!
//! The certificate is the word of command. It says manager: the seat is taken. It says worker: the seat is given up, and
//! what Raft kept is removed. Both begin anew after a crash at any step, because a step is decided from the certificate,
//! the file `swarm.json` and what is on disk, and each may be repeated:
//!
//! | certificate | `swarm.json` | then |
//! |---|---|---|
//! | manager | no number | ask for one, note it, start |
//! | manager | a number | start with it; also once the disk that its log lies on failed it |
//! | worker | a number | stop, forget the number, remove the Raft folder |
//!
//! While managers are locked, the seat also keeps the node's TLS key sealed.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwapOption;
use skep_agent::session::SessionStatus;
use skep_identity::{Clock, Connector, Disk, NodeSeal};
use skep_manager::raft::keys::UnlockKey;
use skep_manager::{Birth, Config as ManagerConfig, Manager, membership};
use skep_proto::model::NodeRole;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::saved::Saved;

/// Looked at again this often: what failed is tried again, and not everything that matters is told.
const SWEEP: Duration = Duration::from_secs(1);
/// Pause before a manager whose disk failed it, often because it was full, is started again.
const DISK_PAUSE: Duration = Duration::from_secs(3);

/// The seat.
pub struct Seat {
    root: PathBuf,
    connector: Connector,
    disk: Disk,
    clock: Arc<dyn Clock>,
    saved: Mutex<Saved>,
    manager: ArcSwapOption<Manager>,
    /// Ends [`Self::keep`] and questions to other managers, which may take long.
    stop: CancellationToken,
}

impl Seat {
    /// A seat that nobody has taken yet.
    pub fn new(root: &Path, connector: Connector, disk: Disk, clock: Arc<dyn Clock>, saved: Saved) -> Self {
        let (saved, manager) = (Mutex::new(saved), ArcSwapOption::empty());
        Self { root: root.to_owned(), connector, disk, clock, saved, manager, stop: CancellationToken::new() }
    }

    /// The manager, while this node is one.
    pub fn manager(&self) -> Option<Arc<Manager>> {
        self.manager.load_full()
    }

    /// What the node remembers of its cluster.
    pub fn saved(&self) -> Saved {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Saved> {
        self.saved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what the node remembers, and writes it down.
    pub fn remember(&self, change: impl FnOnce(&mut Saved)) -> anyhow::Result<()> {
        let mut saved = self.lock();
        change(&mut saved);
        saved.save(&self.root)
    }

    fn is_manager_by_certificate(&self) -> bool {
        self.connector.live().identity().role == NodeRole::Manager
    }

    /// Takes a seat that this node had before, or the first one of a new cluster. One that was lost while the node was
    /// down is given up.
    pub async fn resume(&self, birth: Option<Birth>, unlock: Option<UnlockKey>) -> anyhow::Result<()> {
        match (self.is_manager_by_certificate(), self.saved().raft_id) {
            (true, Some(number)) => self.start(number, birth, unlock).await,
            (false, Some(_)) => self.give_up(&[]).await,
            (true | false, None) => Ok(()),
        }
    }

    /// Takes a new seat: any of `managers` is asked for the number.
    pub async fn take(&self, managers: &[SocketAddr]) -> anyhow::Result<()> {
        let number = self.ask_for_number(managers).await?;
        self.sit_down(number).await
    }

    async fn sit_down(&self, number: u64) -> anyhow::Result<()> {
        // What an earlier seat left is of another number.
        remove_dir(&self.root.join("raft"))?;
        self.remember(|saved| saved.raft_id = Some(number))?;
        self.start(number, None, None).await
    }

    async fn ask_for_number(&self, managers: &[SocketAddr]) -> anyhow::Result<u64> {
        let own = self.saved().advertise;
        let mut refusal = anyhow::anyhow!("no other manager is known");
        for manager in managers.iter().filter(|address| **address != own) {
            let asked = tokio::select! {
                () = self.stop.cancelled() => anyhow::bail!("the daemon stops"),
                asked = membership::ask_to_join(&self.connector, *manager, own) => asked,
            };
            match asked {
                Ok(number) => return Ok(number),
                Err(status) => refusal = anyhow::anyhow!("{}", status.message().to_owned()),
            }
        }
        Err(refusal)
    }

    async fn start(&self, number: u64, birth: Option<Birth>, unlock: Option<UnlockKey>) -> anyhow::Result<()> {
        let Saved { listen, advertise, .. } = self.saved();
        let identity = self.connector.live().identity();
        let listener = TcpListener::bind(listen).await;
        let listener = listener.with_context(|| format!("listening on {listen} for the cluster"))?;
        let settings = ManagerConfig {
            node: identity.node,
            cluster: identity.cluster,
            raft_id: number,
            dir: self.root.join("raft"),
            advertise,
            unlock,
        };
        let clock = Arc::clone(&self.clock);
        let manager = Manager::start(settings, listener, self.connector.clone(), clock, birth).await?;
        self.manager.store(Some(Arc::new(manager)));
        Ok(())
    }

    /// Stops a manager whose log could not be written, and starts it from what is on disk: all that it acknowledged.
    async fn start_again(&self, manager: Arc<Manager>) -> anyhow::Result<()> {
        let (number, reason) = (manager.raft_id(), manager.disk_failure().unwrap_or_default());
        tracing::error!(reason, "the managers' log cannot be written here; tried again shortly");
        drop(manager);
        self.stop().await;
        tokio::select! {
            () = self.stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(DISK_PAUSE) => {}
        }
        self.start(number, None, None).await
    }

    /// Stops the manager and removes what it kept. `managers` are those that the node will ask from now on.
    async fn give_up(&self, managers: &[SocketAddr]) -> anyhow::Result<()> {
        self.stop().await;
        self.remember(|saved| {
            saved.raft_id = None;
            if !managers.is_empty() {
                saved.managers = managers.to_vec();
            }
        })?;
        remove_dir(&self.root.join("raft"))
    }

    /// Stops the manager; the seat stays this node's.
    pub async fn stop(&self) {
        if let Some(manager) = self.manager.swap(None) {
            manager.stop().await;
        }
    }

    /// Ends [`Self::keep`] soon.
    pub fn end(&self) {
        self.stop.cancel();
    }

    /// Keeps the seat as the certificate and the cluster's list of managers say, until [`Self::end`]. Not to be dropped: a
    /// manager may be starting.
    pub async fn keep(self: Arc<Self>, session: watch::Receiver<SessionStatus>) {
        let mut credentials = self.connector.live().subscribe();
        let mut said = String::new();
        while !self.stop.is_cancelled() {
            let status = session.borrow().clone();
            if let Err(error) = self.follow(&status).await
                && !self.stop.is_cancelled()
            {
                let text = crate::output::chain(&error);
                if text != said {
                    tracing::warn!(error = text, "this node does not take its part among the managers yet");
                    said = text;
                }
            }
            tokio::select! {
                () = self.stop.cancelled() => return,
                _ = credentials.changed() => {}
                () = tokio::time::sleep(SWEEP) => {}
            }
        }
    }

    /// One step towards what the cluster says.
    async fn follow(&self, session: &SessionStatus) -> anyhow::Result<()> {
        let own = (self.connector.live().identity().node, self.saved().advertise);
        let known: Vec<SocketAddr> = session.managers.iter().map(|m| m.address).collect();
        let others = || if known.is_empty() { self.saved().managers } else { known.clone() };
        match (self.is_manager_by_certificate(), self.manager()) {
            (true, None) => match self.saved().raft_id {
                Some(number) => self.start(number, None, None).await,
                None => {
                    tracing::info!("this node becomes a manager");
                    self.take(&others()).await
                }
            },
            (false, Some(_)) => {
                tracing::info!("this node is a manager no more");
                self.give_up(&others()).await
            }
            (true, Some(manager)) if manager.disk_failure().is_some() => self.start_again(manager).await,
            (true, Some(manager)) => {
                let seal = manager.seal().map(NodeSeal::new);
                self.disk.set_seal(seal, &self.connector.live().current())?;
                manager.announce(own.1).await.map_err(|status| anyhow::anyhow!("{}", status.message().to_owned()))?;
                let is_listed = session.managers.iter().any(|m| (m.node, m.address) == own);
                let is_cut_off = session.manager.is_none() && !manager.has_leader();
                if !is_cut_off && (session.manager.is_none() || is_listed) {
                    return Ok(());
                }
                // It moved, or was demoted and promoted again before it noticed. Its number tells which. What its own log
                // knows of the others may be newer than what its agent was told.
                let mut asked: Vec<SocketAddr> = manager.managers().into_iter().map(|(_, address)| address).collect();
                asked.extend(others().into_iter().filter(|address| !asked.contains(address)).collect::<Vec<_>>());
                if asked.iter().all(|address| *address == own.1) {
                    return Ok(());
                }
                let number = self.ask_for_number(&asked).await?;
                if number == manager.raft_id() {
                    return Ok(());
                }
                tracing::info!(number, "this node becomes a manager anew");
                drop(manager);
                self.stop().await;
                self.sit_down(number).await
            }
            (false, None) => Ok(()),
        }
    }
}

/// Removes a folder, which need not exist.
pub fn remove_dir(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}
