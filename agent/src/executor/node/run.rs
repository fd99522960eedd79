//! The containers of one task, brought from one state to the next.
//!
//! ```text
//! start --> advance: those whose turn it is         wait --> an end, a probe's news --> advance again
//! stop  --> hooks, stop signals: main containers first, sidecars last
//! ```
//! A start that was begun is finished, whether its caller still waits or not: whoever stops the task waits for it.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all, select_all};
use skep_engine::containers::{ContainerError, EtcContents, StartWith, WaitCondition};
use skep_proto::model::engine::{Container, ContainerConfig, NetworkMode};
use skep_proto::model::pod::{PodContainer, Role};
use skep_proto::model::task::RestartCondition;
use skep_proto::model::{Health, TaskId, TaskState};
use tokio::time::Instant;
use tracing::warn;

use super::act::{Target, act};
use super::again::Again;
use super::plan::Connection;
use super::pod::{self, Member, Probed};
use super::watch::Watched;
use super::{NodeExecutor, Prepared, create_error, mounts, plan, resources, stopping};
use crate::engine_port::{etc, prepare};
use crate::executor::{Containers, ExecutorError, Exit, Running, Seen, TaskUnit};

/// Docker's grace between the stop signal and SIGKILL.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// What is left of the grace at least when a container's turn to stop comes (kubelet's figure).
const LEAST_GRACE: Duration = Duration::from_secs(2);

impl NodeExecutor {
    /// The containers of the task, and what their probes have shown.
    pub(super) fn members(&self, unit: &TaskUnit) -> Vec<Member> {
        let specs = unit.spec.task.containers.iter().enumerate();
        let member = |(index, spec): (usize, &skep_proto::model::ContainerSpec)| {
            let id = unit.container_id(index);
            Member {
                role: pod::role(spec),
                name: spec.name.clone(),
                container: self.parts.containers.inspect(id).ok(),
                probed: self.watchers.probed(id, spec.pod.as_ref()),
            }
        };
        specs.map(member).collect()
    }

    /// What is known of running containers by their sandbox.
    pub(super) async fn sandbox_of(&self, task: TaskId) -> Result<Running, ExecutorError> {
        let sandbox = self.parts.sandboxes.find(task).await?;
        Ok(sandbox.map_or_else(Running::default, |sandbox| Running {
            mesh: sandbox.mesh,
            host_ports: sandbox.host_ports,
            ..Running::default()
        }))
    }

    /// Where the task stands.
    pub(super) async fn together(&self, unit: &TaskUnit) -> Result<Containers, ExecutorError> {
        let members = self.members(unit);
        let is_running = |member: &Member| member.container.as_ref().is_some_and(|c| c.state.pid != 0);
        let running =
            if members.iter().any(is_running) { self.sandbox_of(unit.task.id).await? } else { Running::default() };
        Ok(pod::together(&members, restart_condition(unit), running))
    }

    /// Where the task stands; where it has ended, none of its containers goes on. Running ones are watched from now on.
    pub(super) async fn settled(&self, unit: &TaskUnit) -> Result<Containers, ExecutorError> {
        self.watch_running(unit).await?;
        match self.together(unit).await? {
            Containers::Ended(exit) if unit.spec.task.containers.len() > 1 => {
                self.stop_all(unit).await?;
                Ok(Containers::Ended(exit))
            }
            found => Ok(found),
        }
    }

    pub(super) async fn create_one(
        &self,
        unit: &TaskUnit,
        prepared: &Prepared,
        index: usize,
    ) -> Result<(), ExecutorError> {
        if self.parts.containers.inspect(unit.container_id(index)).is_ok() {
            return Ok(());
        }
        let image = &prepared.images[index];
        let network = match (&prepared.connection, &prepared.sandbox) {
            (Connection::Host, _) => NetworkMode::Host,
            (_, Some(sandbox)) => NetworkMode::Sandbox(sandbox.netns.clone()),
            (_, None) => NetworkMode::None,
        };
        let spec = prepared.containers[index].0.clone();
        let mut config =
            plan::container_config(unit, spec, self.parts.node, index, network, &self.parts.description.hostname);
        // Until the container exists, and with it the record of what it has.
        let _choosing = self.choose_resources(unit, &mut config).await?;
        let new = prepare::new_container(&self.parts.volumes, config, image).await?;
        self.held().insert(new.config.id, image.clone());
        self.parts.containers.create(new).await.map_err(create_error)
    }

    /// Gives the task its generic resources. All its containers share those of the first.
    async fn choose_resources(
        &self,
        unit: &TaskUnit,
        config: &mut ContainerConfig,
    ) -> Result<Option<tokio::sync::MutexGuard<'_, ()>>, ExecutorError> {
        let Some(reserved) = &unit.spec.task.resources.reservations else { return Ok(None) };
        if reserved.generic.is_empty() {
            return Ok(None);
        }
        let choosing = self.choosing.lock().await;
        let all = self.parts.containers.list(true);
        let others: Vec<_> =
            all.into_iter().filter(|c| c.config.task.as_ref().is_none_or(|t| t.task != unit.task.id)).collect();
        let held = resources::held(&others);
        let environment = resources::environment(&reserved.generic, &self.parts.named_resources, &held);
        config.spec.env.extend(environment.map_err(|error| ExecutorError::Temporary(error.to_string()))?);
        Ok(Some(choosing))
    }

    /// Starts the containers whose turn it is.
    pub(super) async fn advance(&self, unit: &TaskUnit) -> Result<(), ExecutorError> {
        for index in pod::next(&self.members(unit)) {
            let prepared = self.prepared_of(unit)?;
            self.start_one(unit, &prepared, index, false).await?;
        }
        if pod::next(&self.members(unit)).is_empty()
            && unit.spec.task.containers.len() == 1
            && let Some(prepared) = self.prepared().get_mut(&unit.task.id)
        {
            // They are in the container now, which does not start twice.
            prepared.containers.iter_mut().for_each(|(_, files)| files.clear());
        }
        Ok(())
    }

    /// # Cancel safety
    /// The start goes on, and holds the task's turn until it is through.
    pub(super) async fn start_one(
        &self,
        unit: &TaskUnit,
        prepared: &Prepared,
        index: usize,
        again: bool,
    ) -> Result<(), ExecutorError> {
        let id = unit.container_id(index);
        let turn = self.turn(unit.task.id).lock_owned().await;
        let permit = Arc::clone(&self.starts).acquire_owned().await.map_err(|_| stopping())?;
        let known = self.parts.containers.inspect(id).map_err(create_error)?;
        prepare::mount_again(&self.parts.volumes, &known.mounts).await.map_err(mounts::volume_error)?;
        let spec = &prepared.containers[index].0;
        let etc = prepared.sandbox.as_ref().map(|sandbox| {
            let hostname = known.process.hostname.clone();
            EtcContents {
                hosts: etc::hosts(&hostname, &spec.hosts, &sandbox.addresses),
                hostname: format!("{hostname}\n"),
                resolv_conf: sandbox.resolv_conf.clone(),
            }
        });
        let files = prepared.containers[index].1.clone();
        let with = StartWith { network: known.config.network, etc, files, again, ipc_of: self.ipc_of(unit, index) };
        // A start is asked for once: whatever went wrong, the task is over.
        let failed = |error: ContainerError| {
            ExecutorError::Permanent(format!("starting container failed: {}", crate::chain(&error)))
        };
        let containers = self.parts.containers.clone();
        let started = tokio::spawn(async move {
            let started = containers.start(id, with).await;
            drop((turn, permit));
            started
        });
        started.await.map_err(|_| stopping())?.map_err(failed)?;
        self.watch(
            unit,
            index,
            prepared.sandbox.as_ref().map(|sandbox| (sandbox.netns.clone(), &*sandbox.addresses)),
            true,
        );
        Ok(())
    }

    /// The container whose System V and POSIX objects this one shares: the first of those that stay. Init containers have
    /// their own, as nothing of them stays.
    fn ipc_of(&self, unit: &TaskUnit, index: usize) -> Option<skep_proto::model::ContainerId> {
        if pod::role(&unit.spec.task.containers[index]) == Role::Init {
            return None;
        }
        let members = self.members(unit);
        let stays = |(_, member): &(usize, &Member)| member.role != Role::Init;
        let runs = |member: &Member| member.container.as_ref().is_some_and(|c| c.state.pid != 0);
        let mut others = members.iter().enumerate().filter(stays);
        others.find(|(other, member)| *other != index && runs(member)).map(|(other, _)| unit.container_id(other))
    }

    /// Watches a container that runs.
    fn watch(&self, unit: &TaskUnit, index: usize, sandbox: Option<(std::path::PathBuf, &[IpAddr])>, fresh: bool) {
        let spec = &unit.spec.task.containers[index];
        let (Some(pod), id) = (&spec.pod, unit.container_id(index)) else { return };
        let Ok(container) = self.parts.containers.inspect(id) else { return };
        if !pod::is_live(container.state.status) {
            return;
        }
        let (netns, address) = match sandbox {
            Some((netns, addresses)) => (Some(netns), addresses.first().copied()),
            None => (None, None),
        };
        self.watchers.watch(
            &self.parts.containers,
            Watched {
                task: unit.task.id,
                name: spec.name.clone(),
                pod: PodContainer::clone(pod),
                target: Target { container: id, netns, address: address.unwrap_or(Ipv4Addr::LOCALHOST.into()) },
                ran: self.parts.containers.running_for(id),
                serving: !fresh && unit.task.observed >= TaskState::Running,
                fresh,
            },
        );
    }

    /// Watches what an earlier process started.
    async fn watch_running(&self, unit: &TaskUnit) -> Result<(), ExecutorError> {
        if unit.spec.task.containers.iter().all(|spec| spec.pod.is_none()) {
            return Ok(());
        }
        let sandbox = self.parts.sandboxes.find(unit.task.id).await?;
        for index in 0..unit.spec.task.containers.len() {
            let sandbox = sandbox.as_ref().map(|sandbox| (sandbox.netns.clone(), &*sandbox.addresses));
            self.watch(unit, index, sandbox, false);
        }
        Ok(())
    }

    /// Waits until the task shows something else than `seen`, or has ended. Containers whose turn comes are started.
    pub(super) async fn wait_for_change(&self, unit: &TaskUnit, seen: Seen) -> Result<Containers, ExecutorError> {
        loop {
            // Before looking, so that nothing falls in between.
            let mut changes = self.changes(unit)?;
            match self.settled(unit).await? {
                Containers::Running(running) => {
                    let due = !pod::next(&self.members(unit)).is_empty();
                    if running.seen() != seen {
                        return Ok(Containers::Running(running));
                    }
                    if due {
                        if let Err(error) = self.advance(unit).await {
                            // What could not be started says so itself, and has ended the task.
                            return match self.settled(unit).await? {
                                Containers::Ended(exit) => Ok(Containers::Ended(exit)),
                                _ => Err(error),
                            };
                        }
                        continue;
                    }
                    match self.start_again(unit).await? {
                        Again::None => {}
                        Again::Changed => continue,
                        Again::At(at) => changes.push(tokio::time::sleep_until(at).boxed()),
                    }
                }
                ended @ Containers::Ended(_) => return Ok(ended),
                Containers::Absent | Containers::Created => {
                    return Err(ExecutorError::Temporary("the container ended and left no trace".into()));
                }
            }
            if changes.is_empty() {
                return Err(ExecutorError::Temporary("no container of the task is left".into()));
            }
            select_all(changes).await;
        }
    }

    /// Each resolves when something of a container that runs is not as it is now.
    fn changes(&self, unit: &TaskUnit) -> Result<Vec<BoxFuture<'static, ()>>, ExecutorError> {
        let gone = |error: ContainerError| ExecutorError::Temporary(error.to_string());
        let mut changes: Vec<BoxFuture<'static, ()>> = Vec::new();
        for (index, member) in self.members(unit).into_iter().enumerate() {
            let id = unit.container_id(index);
            let Some(container) = member.container.filter(|c: &Container| pod::is_live(c.state.status)) else {
                continue;
            };
            let end = self.parts.containers.wait(id, WaitCondition::NotRunning).map_err(gone)?;
            changes.push(end.map(drop).boxed());
            let mut health = self.parts.containers.health(id).map_err(gone)?;
            let before = container.health.map(|health| health.status);
            changes.push(
                async move {
                    let other = |now: &Option<Health>| now.as_ref().map(|health| health.status) != before;
                    if health.wait_for(other).await.is_err() {
                        std::future::pending::<()>().await;
                    }
                }
                .boxed(),
            );
            if let Some(mut shown) = self.watchers.changes(id) {
                let before = member.probed;
                changes.push(
                    async move {
                        if shown.wait_for(|now: &Probed| *now != before).await.is_err() {
                            std::future::pending::<()>().await;
                        }
                    }
                    .boxed(),
                );
            }
        }
        Ok(changes)
    }

    /// Ends all containers: main ones first, sidecars last. How the task ended.
    pub(super) async fn stop_all(&self, unit: &TaskUnit) -> Result<Exit, ExecutorError> {
        // A start that goes on ends first.
        drop(self.turn(unit.task.id).lock_owned().await);
        let members = self.members(unit);
        let failed = members.iter().find_map(|member| {
            let why = member.probed.failed.as_ref()?;
            Some(if member.name.is_empty() { why.clone() } else { format!("{}: {why}", member.name) })
        });
        let begun = Instant::now();
        for group in pod::stop_order(&members) {
            let stops = group.into_iter().map(|index| self.stop_one(unit, index, begun));
            for stopped in join_all(stops).await {
                match stopped {
                    Ok(_) | Err(ContainerError::NotFound(_)) => {}
                    Err(error) => return Err(ExecutorError::Temporary(crate::chain(&error).to_string())),
                }
            }
        }
        // Nothing is started again any more: an end is an end.
        let exit = match pod::together(&self.members(unit), restart_condition(unit), Running::default()) {
            Containers::Ended(exit) => exit,
            // Removed by hand meanwhile, or never started: they do not run, which is what was asked for.
            Containers::Absent | Containers::Created => Exit::default(),
            Containers::Running(_) if self.members(unit).iter().any(is_running) => {
                return Err(ExecutorError::Temporary("the container still runs".into()));
            }
            // Between two init containers.
            Containers::Running(_) => Exit::default(),
        };
        Ok(match failed {
            Some(error) => Exit { error, unhealthy: true, ..exit },
            None => exit,
        })
    }

    /// The hook before the stop, then the stop signal, then SIGKILL; all within the grace.
    pub(super) async fn stop_one(&self, unit: &TaskUnit, index: usize, begun: Instant) -> Result<bool, ContainerError> {
        let (spec, id) = (&unit.spec.task.containers[index], unit.container_id(index));
        self.watchers.stop(id);
        let Some(pod) = &spec.pod else { return self.parts.containers.stop(id, None, None).await };
        if self.parts.containers.inspect(id)?.state.pid == 0 {
            return Ok(false);
        }
        let grace = spec.stop_grace.unwrap_or(STOP_GRACE);
        let left = || grace.saturating_sub(begun.elapsed());
        if let Some(hook) = &pod.pre_stop
            && !left().is_zero()
        {
            let sandbox = self.parts.sandboxes.find(unit.task.id).await.ok().flatten();
            let address = sandbox.as_ref().and_then(|sandbox| sandbox.addresses.first().copied());
            let target = Target {
                container: id,
                netns: sandbox.map(|sandbox| sandbox.netns),
                address: address.unwrap_or(Ipv4Addr::LOCALHOST.into()),
            };
            let done = tokio::time::timeout(left(), act(&self.parts.containers, &target, hook, left())).await;
            if let Err(error) = done.unwrap_or_else(|_| Err("it took longer than the grace".to_owned())) {
                warn!(task.id = %unit.task.id, container = spec.name, error, "the hook before the stop failed");
            }
        }
        let grace = if grace.is_zero() { grace } else { left().max(LEAST_GRACE.min(grace)) };
        self.parts.containers.stop(id, None, Some(grace)).await
    }
}

fn is_running(member: &Member) -> bool {
    member.container.as_ref().is_some_and(|container| container.state.pid != 0)
}

/// Docker's default is to run for ever.
pub(super) fn restart_condition(unit: &TaskUnit) -> RestartCondition {
    unit.spec.task.restart.as_ref().map(|policy| policy.condition).unwrap_or_default()
}
