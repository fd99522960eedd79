//! Events of this node's containers, images, volumes and networks, in Docker's words.
//!
//! What containers do is heard from the engine, so it does not matter who made them do it: a client, or the agent for a
//! task. A container that is gone still has to be named, so what is told of each is remembered while it is there.

use std::collections::{BTreeMap, HashMap};

use skep_api::ports::events::{Event, EventKind};
use skep_engine::containers::{Event as ContainerEvent, EventKind as Happened, ExecEvent};
use skep_proto::model::ContainerId;
use skep_proto::model::engine::{Container, LocalNetwork, NetworkMode};
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use super::NodeEngine;

type Attributes = BTreeMap<String, String>;

/// What is told of a container whatever happens to it.
#[derive(Default)]
struct Known {
    attributes: Attributes,
    /// Networks of the node that it joins while it runs.
    networks: Vec<String>,
}

impl Known {
    /// Labels, name and image, as dockerd has it.
    fn of(container: &Container) -> Self {
        let config = &container.config;
        let mut attributes = config.spec.labels.clone();
        attributes.insert("name".to_owned(), config.name.clone());
        attributes.insert("image".to_owned(), config.spec.image.clone());
        let networks = match &config.network {
            NetworkMode::Bridge => vec!["bridge".to_owned()],
            NetworkMode::Networks(all) => all.iter().map(|n| n.network.clone()).collect(),
            NetworkMode::Host | NetworkMode::None | NetworkMode::Container(_) | NetworkMode::Sandbox(_) => Vec::new(),
        };
        Self { attributes, networks }
    }
}

impl NodeEngine {
    /// Records what containers do until `stop`.
    pub(super) async fn record_events(&self, stop: CancellationToken) {
        let mut happened = self.inner.containers.events();
        let mut known: HashMap<ContainerId, Known> = HashMap::new();
        loop {
            for container in self.inner.containers.list(true) {
                known.insert(container.config.id, Known::of(&container));
            }
            let lagged = loop {
                let next = tokio::select! {
                    () = stop.cancelled() => return,
                    next = happened.recv() => next,
                };
                match next {
                    Ok(event) => self.tell(&mut known, event).await,
                    Err(RecvError::Lagged(events)) => break events,
                    Err(RecvError::Closed) => return,
                }
            };
            tracing::warn!(events = lagged, "events of containers were lost: more happened than could be recorded");
        }
    }

    async fn tell(&self, known: &mut HashMap<ContainerId, Known>, ContainerEvent { id, kind }: ContainerEvent) {
        let container = self.inner.containers.inspect(id).ok();
        if let Some(container) = &container {
            known.insert(id, Known::of(container));
        }
        let Some(about) = known.get(&id) else { return };
        if kind == Happened::Start {
            self.tell_of_connections("connect", id, about).await;
        }
        let mut attributes = about.attributes.clone();
        let mut with = |key: &str, value: String| drop(attributes.insert(key.to_owned(), value));
        let exec = |with: &mut dyn FnMut(&str, String), action: &str, exec: &ExecEvent| {
            with("execID", exec.id.clone());
            format!("{action}: {}", exec.command)
        };
        let action = match &kind {
            Happened::Create => "create".to_owned(),
            Happened::Start => "start".to_owned(),
            Happened::Oom => "oom".to_owned(),
            Happened::Destroy => "destroy".to_owned(),
            Happened::Stop => "stop".to_owned(),
            Happened::Pause => "pause".to_owned(),
            Happened::Unpause => "unpause".to_owned(),
            Happened::Die { exit_code } => {
                with("exitCode", exit_code.to_string());
                with("execDuration", run_time(container.as_ref()).to_string());
                "die".to_owned()
            }
            Happened::Kill { signal } => {
                with("signal", signal.to_string());
                "kill".to_owned()
            }
            Happened::Rename { old } => {
                with("oldName", format!("/{old}"));
                "rename".to_owned()
            }
            Happened::ExecCreate(process) => exec(&mut with, "exec_create", process),
            Happened::ExecStart(process) => exec(&mut with, "exec_start", process),
            Happened::ExecDie { exec: process, exit_code } => {
                with("execID", process.id.clone());
                with("exitCode", exit_code.to_string());
                "exec_die".to_owned()
            }
        };
        self.publish(EventKind::Container, &action, id.to_string(), attributes);
        if matches!(kind, Happened::Die { .. }) {
            self.tell_of_connections("disconnect", id, about).await;
        } else if kind == Happened::Destroy {
            known.remove(&id);
        }
    }

    async fn tell_of_connections(&self, action: &str, id: ContainerId, about: &Known) {
        if about.networks.is_empty() {
            return;
        }
        let Ok(networks) = self.list_networks().await else { return };
        let joined = networks.iter().filter(|n| about.networks.iter().any(|wish| *wish == n.name || *wish == n.id));
        for network in joined {
            self.tell_of_connection(action, id, network);
        }
    }

    /// Of a container that joins or leaves a network of this node.
    pub(super) fn tell_of_connection(&self, action: &str, id: ContainerId, network: &LocalNetwork) {
        let mut attributes = of_network(network);
        attributes.insert("container".to_owned(), id.to_string());
        self.publish(EventKind::LocalNetwork, action, network.id.clone(), attributes);
    }

    /// Of a container that joins or leaves a network of the cluster.
    pub(super) fn tell_of_overlay(&self, action: &str, id: ContainerId, network: &str, name: &str) {
        let attributes = [("name", name.to_owned()), ("type", "overlay".to_owned()), ("container", id.to_string())];
        let attributes = attributes.map(|(key, value)| (key.to_owned(), value)).into();
        self.publish(EventKind::LocalNetwork, action, network.to_owned(), attributes);
    }

    /// Of a container that is there.
    pub(super) fn tell_of_container(&self, id: ContainerId, action: &str) {
        if let Ok(container) = self.inner.containers.inspect(id) {
            self.publish(EventKind::Container, action, id.to_string(), Known::of(&container).attributes);
        }
    }

    /// Of an image, by what the client called it. A name that is no more is told as it was.
    pub(super) fn tell_of_image(&self, action: &str, reference: &str) {
        let mut attributes = Attributes::from([("name".to_owned(), reference.to_owned())]);
        let found = self.inner.images.get(reference).ok();
        let id = match (action, found) {
            // dockerd names the reference for a pull, the image for all else.
            ("pull", _) | (_, None) => reference.to_owned(),
            (_, Some(image)) => image.id,
        };
        if action == "delete" {
            attributes.insert("name".to_owned(), id.clone());
        }
        self.publish(EventKind::Image, action, id, attributes);
    }

    pub(super) fn tell_of_volume(&self, action: &str, name: &str, driver: &str) {
        let attributes = Attributes::from([("driver".to_owned(), driver.to_owned())]);
        self.publish(EventKind::Volume, action, name.to_owned(), attributes);
    }

    pub(super) fn tell_of_network(&self, action: &str, network: &LocalNetwork) {
        self.publish(EventKind::LocalNetwork, action, network.id.clone(), of_network(network));
    }

    fn publish(&self, kind: EventKind, action: &str, id: String, attributes: Attributes) {
        self.inner.events.publish(Event { kind, action: action.to_owned(), id, attributes, at: (self.inner.clock)() });
    }
}

fn of_network(network: &LocalNetwork) -> Attributes {
    Attributes::from([("name".to_owned(), network.name.clone()), ("type".to_owned(), network.driver.clone())])
}

/// Seconds of the last run.
fn run_time(container: Option<&Container>) -> u64 {
    let state = container.map(|c| &c.state);
    let span = state.and_then(|s| Some(s.finished_at?.since(s.started_at?)));
    span.unwrap_or_default().as_secs()
}
