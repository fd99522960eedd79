//! What managers are asked.

use super::*;

#[async_trait]
impl ControlPlane for World {
    fn events(&self) -> skep_api::ports::events::EventFeed {
        skep_api::ports::events::EventFeed::none()
    }
    async fn cluster(&self) -> Result<Arc<Cluster>, ControlError> {
        Ok(Arc::new(self.state.lock().unwrap().cluster.clone().unwrap()))
    }

    async fn update_cluster(&self, at: Version, spec: ClusterSpec, rotate: Rotations) -> Result<(), ControlError> {
        let mut state = self.state.lock().unwrap();
        let mut cluster = state.cluster.clone().unwrap();
        state.touch(&mut cluster.meta, at)?;
        cluster.spec = spec;
        if rotate.worker_token {
            cluster.join_tokens.worker.push('x');
        }
        if rotate.manager_token {
            cluster.join_tokens.manager.push('x');
        }
        state.cluster = Some(cluster);
        Ok(())
    }

    async fn unlock_key(&self) -> Result<String, ControlError> {
        Ok("SWMKEY-1-key".into())
    }

    async fn nodes(&self) -> Result<Vec<NodeStatus>, ControlError> {
        let state = self.state.lock().unwrap();
        let mut nodes: Vec<_> = state.nodes.values().cloned().collect();
        nodes.sort_by_key(|n| n.index);
        Ok(nodes
            .into_iter()
            .map(|node| NodeStatus {
                tls: state.cluster.as_ref().map(root_of).unwrap_or_default(),
                manager: node.manager.map(|m| ManagerStatus {
                    leader: node.index == 0,
                    reachable: true,
                    address: m.address,
                }),
                node: Arc::new(node),
            })
            .collect())
    }

    async fn node(&self, reference: &str) -> Result<NodeStatus, ControlError> {
        let nodes = self.nodes().await?;
        let named = nodes.iter().map(|n| (n.node.id.to_string(), n.node.description.hostname.clone(), n));
        find("node", reference, named).cloned()
    }

    async fn update_node(&self, id: NodeId, at: Version, spec: NodeSpec) -> Result<(), ControlError> {
        {
            let mut state = self.state.lock().unwrap();
            let mut node = state.nodes[&id].clone();
            state.touch(&mut node.meta, at)?;
            node.manager = (spec.role == NodeRole::Manager).then(|| ManagerMembership {
                raft_id: u64::from(node.index) + 1,
                address: SocketAddr::new(node.address.unwrap(), 2377),
            });
            node.spec = spec;
            state.nodes.insert(id, node);
        }
        self.settle().await;
        Ok(())
    }

    async fn remove_node(&self, reference: &str, force: bool) -> Result<(), ControlError> {
        let id = self.node(reference).await?.node.id;
        if !force {
            return Err(ControlError::FailedPrecondition(format!("node {id} is not down and can't be removed")));
        }
        self.state.lock().unwrap().nodes.remove(&id);
        Ok(())
    }

    async fn services(&self, filter: &ObjectFilter) -> Result<Vec<ServiceStatus>, ControlError> {
        let state = self.state.lock().unwrap();
        let mode = |service: &Service| match service.spec.mode {
            ServiceMode::Replicated { .. } => "replicated",
            ServiceMode::Global => "global",
            ServiceMode::ReplicatedJob { .. } => "replicated-job",
            ServiceMode::GlobalJob => "global-job",
        };
        Ok(state
            .services
            .values()
            .filter(|s| selected(filter, &s.id.to_string(), &s.spec.annotations))
            .filter(|s| filter.modes.is_empty() || filter.modes.contains(mode(s)))
            .map(|s| self.status_of(&state, s))
            .collect())
    }

    async fn service(&self, reference: &str) -> Result<ServiceStatus, ControlError> {
        let state = self.state.lock().unwrap();
        let named = state.services.values().map(|s| (s.id.to_string(), s.spec.annotations.name.clone(), s));
        find("service", reference, named).map(|s| self.status_of(&state, s))
    }

    async fn create_service(&self, spec: ServiceSpec) -> Result<ServiceId, ControlError> {
        let id = {
            let mut state = self.state.lock().unwrap();
            let name = spec.annotations.name.clone();
            if state.services.values().any(|s| s.spec.annotations.name == name) {
                return Err(ControlError::NameConflict(format!(
                    "name conflicts with an existing object: service {name} already exists"
                )));
            }
            let ports = spec.endpoint.iter().flat_map(|e| e.ports.iter());
            for number in ports.filter_map(|p| p.published) {
                let clash = state
                    .services
                    .values()
                    .find(|s| s.spec.endpoint.iter().flat_map(|e| e.ports.iter()).any(|p| p.published == Some(number)));
                if let Some(other) = clash {
                    return Err(ControlError::InvalidArgument(format!(
                        "port '{number}' is already in use by service '{}' ({}) as an ingress port",
                        other.spec.annotations.name, other.id
                    )));
                }
            }
            let (id, meta) = (ServiceId(state.id()), state.meta());
            let version = meta.version.0;
            let endpoint = allocated(&spec, &state.networks);
            state.services.insert(
                id,
                Service {
                    id,
                    meta,
                    spec,
                    spec_version: version,
                    previous: None,
                    endpoint,
                    update_status: None,
                    pending_delete: false,
                    runs: None,
                },
            );
            id
        };
        self.settle().await;
        Ok(id)
    }

    async fn update_service(&self, reference: &str, update: ServiceUpdate) -> Result<(), ControlError> {
        let mut service = (*self.service(reference).await?.service).clone();
        {
            let mut state = self.state.lock().unwrap();
            state.touch(&mut service.meta, update.at)?;
            let old = PreviousSpec { spec: service.spec.clone(), spec_version: service.spec_version };
            let spec = match (&service.previous, update.rollback) {
                (Some(previous), true) => previous.spec.clone(),
                (None, true) => {
                    return Err(ControlError::FailedPrecondition(format!(
                        "service {} does not have a previous spec",
                        service.id
                    )));
                }
                (_, false) => update.spec,
            };
            if spec.task != service.spec.task {
                service.spec_version = service.meta.version.0;
                service.update_status = Some(UpdateStatus {
                    state: if update.rollback { UpdateState::RollbackCompleted } else { UpdateState::Completed },
                    started_at: now(),
                    completed_at: Some(now()),
                    message: "update completed".into(),
                });
            }
            let had = service.endpoint.spec.is_some();
            service.endpoint = allocated(&spec, &state.networks);
            if had && service.endpoint.spec.is_none() {
                service.endpoint.spec = spec.endpoint.clone();
            }
            service.spec = spec;
            service.previous = Some(Box::new(old));
            state.services.insert(service.id, service);
        }
        self.settle().await;
        Ok(())
    }

    async fn remove_service(&self, reference: &str) -> Result<(), ControlError> {
        let id = self.service(reference).await?.service.id;
        let gone: Vec<_> = {
            let mut state = self.state.lock().unwrap();
            state.services.remove(&id);
            let gone = state.tasks.values().filter(|t| t.service == Some(id)).map(|t| (t.id, t.node)).collect();
            state.tasks.retain(|_, t| t.service != Some(id));
            gone
        };
        for (task, node) in gone {
            let _ = self.engines[&node.unwrap()].remove(&ContainerId::of_task(task, 0).to_string(), true, true).await;
        }
        Ok(())
    }

    async fn tasks(&self, filter: &TaskFilter) -> Result<Vec<TaskView>, ControlError> {
        let state = self.state.lock().unwrap();
        let prefix = |set: &std::collections::BTreeSet<String>, texts: &[&str]| {
            set.is_empty() || set.iter().any(|p| texts.iter().any(|t| t.starts_with(p.as_str())))
        };
        Ok(state
            .tasks
            .values()
            .filter(|t| {
                let id = t.id.to_string();
                let service = t.service.map(|s| s.to_string()).unwrap_or_default();
                let node = t.node.map(|n| (n.to_string(), state.nodes.get(&n)));
                let (node_id, host) = node
                    .map(|(id, n)| (id, n.map(|n| n.description.hostname.clone()).unwrap_or_default()))
                    .unwrap_or_default();
                let current = t.service.and_then(|s| state.services.get(&s));
                prefix(&filter.ids, &[&id])
                    && prefix(&filter.services, &[&service, &t.service_name])
                    && prefix(&filter.nodes, &[&node_id, &host])
                    && prefix(&filter.names, &[&format!("{}.{}.{id}", t.service_name, t.slot)])
                    && (filter.desired.is_empty() || filter.desired.contains(&t.desired))
                    && (!filter.up_to_date || current.is_some_and(|s| s.spec_version == t.spec_version))
            })
            .map(|t| self.view(&state, t))
            .collect())
    }

    fn started_tasks(&self, service: ServiceId) -> BoxStream<'static, TaskView> {
        let state = self.state.lock().unwrap();
        let later = self.started.subscribe();
        let of_service = state.tasks.values().filter(|t| t.service == Some(service)).map(|t| self.view(&state, t));
        let now: Vec<TaskView> = of_service.filter(|view| view.container.is_some()).collect();
        let next = |mut later: broadcast::Receiver<TaskView>| async move { Some((later.recv().await.ok()?, later)) };
        let later = futures_util::stream::unfold(later, next)
            .filter(move |view| std::future::ready(view.task.service == Some(service)));
        futures_util::stream::iter(now).chain(later).boxed()
    }

    async fn task(&self, reference: &str) -> Result<TaskView, ControlError> {
        let state = self.state.lock().unwrap();
        let named = state.tasks.values().map(|t| (t.id.to_string(), String::new(), t));
        find("task", reference, named).map(|t| self.view(&state, t))
    }

    async fn networks(&self, filter: &ObjectFilter) -> Result<Vec<Arc<Network>>, ControlError> {
        let state = self.state.lock().unwrap();
        let mut list: Vec<_> = state
            .networks
            .values()
            .filter(|n| selected(filter, &n.id.to_string(), &n.spec.annotations))
            .cloned()
            .collect();
        list.sort_by_key(|n| (n.spec.ingress, n.meta.version));
        Ok(list)
    }

    async fn network(&self, reference: &str) -> Result<Arc<Network>, ControlError> {
        let state = self.state.lock().unwrap();
        let named = state.networks.values().map(|n| (n.id.to_string(), n.spec.annotations.name.clone(), n));
        find("network", reference, named).cloned()
    }

    async fn network_usage(&self, reference: &str) -> Result<NetworkUsage, ControlError> {
        let network = self.network(reference).await?.id;
        let state = self.state.lock().unwrap();
        let of = |service: &&Service| service.endpoint.virtual_ips.iter().any(|vip| vip.network == network);
        let services: Vec<ServiceUsage> = state
            .services
            .values()
            .filter(of)
            .map(|service| {
                let tasks = state.tasks.values().filter(|task| task.service == Some(service.id));
                let usage = |task: &Task| EndpointUsage {
                    name: format!("{}.{}.{}", service.spec.annotations.name, task.slot, task.id),
                    container: ContainerId::of_task(task.id, 0),
                    addresses: vec!["10.0.0.9/24".parse().unwrap(), "fd01::9/64".parse().unwrap()],
                    host: Some([10, 1, 0, 1].into()),
                };
                ServiceUsage {
                    service: Arc::new(service.clone()),
                    virtual_ips: service.endpoint.virtual_ips.iter().map(|vip| vip.address).collect(),
                    tasks: tasks.map(usage).collect(),
                }
            })
            .collect();
        let nodes =
            if services.is_empty() { Vec::new() } else { state.nodes.values().cloned().map(Arc::new).collect() };
        Ok(NetworkUsage { nodes, services, containers: Vec::new() })
    }

    async fn create_network(&self, spec: NetworkSpec) -> Result<NetworkId, ControlError> {
        let mut state = self.state.lock().unwrap();
        let (id, meta) = (NetworkId(state.id()), state.meta());
        let n = state.networks.len();
        let subnet =
            spec.ipam.first().and_then(|c| c.subnet).unwrap_or_else(|| format!("10.0.{n}.0/24").parse().unwrap());
        let gateway = subnet.hosts().next().unwrap();
        let network = Network {
            id,
            meta,
            spec,
            vni: Some(4096 + u32::try_from(n).unwrap()),
            subnets: vec![Subnet { subnet, range: None, gateway }],
            pending_delete: false,
        };
        state.networks.insert(id, Arc::new(network));
        Ok(id)
    }

    async fn remove_network(&self, reference: &str) -> Result<(), ControlError> {
        let id = self.network(reference).await?.id;
        self.state.lock().unwrap().networks.remove(&id);
        Ok(())
    }

    async fn secrets(&self, filter: &ObjectFilter) -> Result<Vec<Arc<Secret>>, ControlError> {
        let state = self.state.lock().unwrap();
        let fits = |s: &&Arc<Secret>| selected(filter, &s.id.to_string(), &s.spec.annotations);
        Ok(state.secrets.values().filter(fits).cloned().collect())
    }

    async fn secret(&self, reference: &str) -> Result<Arc<Secret>, ControlError> {
        let state = self.state.lock().unwrap();
        let named = state.secrets.values().map(|s| (s.id.to_string(), s.spec.annotations.name.clone(), s));
        find("secret", reference, named).cloned()
    }

    async fn create_secret(&self, spec: SecretSpec) -> Result<SecretId, ControlError> {
        let mut state = self.state.lock().unwrap();
        if state.secrets.values().any(|s| s.spec.annotations.name == spec.annotations.name) {
            return Err(ControlError::NameConflict(format!("secret {} already exists", spec.annotations.name)));
        }
        let (id, meta) = (SecretId(state.id()), state.meta());
        state.secrets.insert(id, Arc::new(Secret { id, meta, spec }));
        Ok(id)
    }

    async fn update_secret(&self, reference: &str, at: Version, spec: SecretSpec) -> Result<(), ControlError> {
        let mut secret = (*self.secret(reference).await?).clone();
        let mut state = self.state.lock().unwrap();
        state.touch(&mut secret.meta, at)?;
        secret.spec = spec;
        state.secrets.insert(secret.id, Arc::new(secret));
        Ok(())
    }

    async fn remove_secret(&self, reference: &str) -> Result<(), ControlError> {
        let id = self.secret(reference).await?.id;
        self.state.lock().unwrap().secrets.remove(&id);
        Ok(())
    }

    async fn configs(&self, filter: &ObjectFilter) -> Result<Vec<Arc<Config>>, ControlError> {
        let state = self.state.lock().unwrap();
        let fits = |s: &&Arc<Config>| selected(filter, &s.id.to_string(), &s.spec.annotations);
        Ok(state.configs.values().filter(fits).cloned().collect())
    }

    async fn config(&self, reference: &str) -> Result<Arc<Config>, ControlError> {
        let state = self.state.lock().unwrap();
        let named = state.configs.values().map(|s| (s.id.to_string(), s.spec.annotations.name.clone(), s));
        find("config", reference, named).cloned()
    }

    async fn create_config(&self, spec: ConfigSpec) -> Result<ConfigId, ControlError> {
        let mut state = self.state.lock().unwrap();
        if state.configs.values().any(|s| s.spec.annotations.name == spec.annotations.name) {
            return Err(ControlError::NameConflict(format!("config {} already exists", spec.annotations.name)));
        }
        let (id, meta) = (ConfigId(state.id()), state.meta());
        state.configs.insert(id, Arc::new(Config { id, meta, spec }));
        Ok(id)
    }

    async fn update_config(&self, reference: &str, at: Version, spec: ConfigSpec) -> Result<(), ControlError> {
        let mut config = (*self.config(reference).await?).clone();
        let mut state = self.state.lock().unwrap();
        state.touch(&mut config.meta, at)?;
        config.spec = spec;
        state.configs.insert(config.id, Arc::new(config));
        Ok(())
    }

    async fn remove_config(&self, reference: &str) -> Result<(), ControlError> {
        let id = self.config(reference).await?.id;
        self.state.lock().unwrap().configs.remove(&id);
        Ok(())
    }

    async fn locate_container(&self, reference: &str) -> Result<Option<ContainerLocation>, ControlError> {
        let state = self.state.lock().unwrap();
        let found = state.tasks.values().find(|t| {
            container_name(t) == reference || ContainerId::of_task(t.id, 0).to_string().starts_with(reference)
        });
        Ok(found.and_then(|t| Some(ContainerLocation { container: ContainerId::of_task(t.id, 0), node: t.node? })))
    }

    async fn open_engine(&self, node: NodeId) -> Result<BoxDuplex, ControlError> {
        let router = docker::local_router(self.engines[&node].clone(), "0.1.0", Arc::new(now));
        let (ours, theirs) = tokio::io::duplex(1 << 14);
        tokio::spawn(docker::serve_connection(theirs, router));
        Ok(Box::new(ours))
    }
}

/// Every node trusts the cluster's root and has a certificate of it.
fn root_of(cluster: &Cluster) -> NodeTls {
    let root = &cluster.root_ca.certificates;
    NodeTls { trust_root: root.clone(), issuer: root.clone() }
}
