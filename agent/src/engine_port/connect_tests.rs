use std::path::PathBuf;

use skep_proto::model::engine::{ContainerRestart, ContainerState, EtcFiles, PortBinding, ResolvedProcess, TaskOwner};
use skep_proto::model::service::Protocol;
use skep_proto::model::task::Resources;
use skep_proto::model::{ContainerSpec, NetworkId, NodeId, ServiceId, TaskId, Timestamp};

use super::*;
use crate::engine_port::sandboxes::Link;

fn config(network: NetworkMode) -> ContainerConfig {
    ContainerConfig {
        id: ContainerId([0xab; 32]),
        name: "web".into(),
        spec: ContainerSpec::default(),
        resources: Resources::default(),
        network,
        ports: Vec::new(),
        auto_remove: false,
        restart: ContainerRestart::No,
        privileged: false,
        isolation: Default::default(),
        stdin_once: false,
        attach: (false, false, false),
        log: None,
        task: None,
    }
}

fn networks() -> Vec<LocalNetwork> {
    [("bridge", "1"), ("host", "2"), ("none", "3"), ("back", "45"), ("front", "46")]
        .map(|(name, id)| LocalNetwork { id: format!("{id:0<64}"), name: name.into(), ..LocalNetwork::default() })
        .into()
}

fn on(names: &[&str]) -> NetworkMode {
    let endpoint = |name: &&str| NetworkEndpoint { network: (*name).to_owned(), ..NetworkEndpoint::default() };
    NetworkMode::Networks(names.iter().map(endpoint).collect())
}

fn planned(network: NetworkMode) -> Result<Plan, String> {
    plan(&config(network), "box", &networks(), &[]).map_err(|e| e.to_string())
}

fn port(host_port: Option<u16>) -> PortBinding {
    PortBinding { protocol: Protocol::Tcp, container_port: 80, host_ip: None, host_port, host_port_last: None }
}

fn container(config: ContainerConfig, status: ContainerStatus) -> Container {
    Container {
        config,
        created_at: Timestamp(1),
        image_id: String::new(),
        process: ResolvedProcess::default(),
        state: ContainerState {
            status,
            pid: 9,
            exit_code: 0,
            error: String::new(),
            oom_killed: false,
            started_at: None,
            finished_at: None,
        },
        health: None,
        restart_count: 0,
        mounts: Vec::new(),
        networks: Vec::new(),
        ports: Vec::new(),
        exposed: vec![(Protocol::Udp, 53)],
        log_path: PathBuf::new(),
        etc: EtcFiles::default(),
    }
}

#[test]
fn on_the_default_bridge_a_container_has_no_names() {
    let join = BridgeJoin { bridge: "bridge".into(), ..BridgeJoin::default() };
    let request = SandboxRequest { id: "ab".repeat(32), bridges: vec![join], ..SandboxRequest::default() };
    assert_eq!(planned(NetworkMode::Bridge), Ok(Plan::Sandbox(request.clone())));
    assert_eq!(planned(on(&["bridge"])), Ok(Plan::Sandbox(request)));
}

#[test]
fn on_a_named_bridge_it_has_its_own_names_and_its_aliases_once() {
    let endpoint = NetworkEndpoint {
        network: "45".into(),
        aliases: vec!["db".into(), "web".into()],
        addresses: vec!["172.18.0.9".parse().unwrap()],
    };
    let Ok(Plan::Sandbox(request)) = planned(NetworkMode::Networks(vec![endpoint])) else { panic!("no sandbox") };
    let want = BridgeJoin {
        bridge: "back".into(),
        addresses: vec!["172.18.0.9".parse().unwrap()],
        names: ["web", "abababababab", "box", "db"].map(str::to_owned).into(),
    };
    assert_eq!(request.bridges, [want]);
}

#[test]
fn on_a_network_of_the_cluster_it_has_the_managers_address() {
    assert_eq!(planned(on(&["app"])), Err("network app not found".into()));
    let addresses = vec!["10.0.1.9/24".parse().unwrap()];
    let place = Place { reference: "app".into(), network: NetworkId(7), addresses: addresses.clone() };
    let planned = plan(&config(on(&["app", "back"])), "box", &networks(), &[place]);
    let Ok(Plan::Sandbox(request)) = planned else { panic!("no sandbox") };
    let names: Vec<String> = ["web", "abababababab", "box"].map(str::to_owned).into();
    assert_eq!(request.overlays, [OverlayJoin { network: NetworkId(7), addresses, names: names.clone() }]);
    assert_eq!(request.bridges, [BridgeJoin { bridge: "back".into(), names, ..BridgeJoin::default() }]);
}

#[test]
fn networks_that_do_not_exist_or_do_not_combine_are_refused() {
    assert_eq!(planned(on(&["nosuch"])), Err("network nosuch not found".into()));
    // A prefix of several.
    assert_eq!(planned(on(&["4"])), Err("network 4 not found".into()));
    assert!(planned(on(&["back", "host"])).unwrap_err().contains("cannot be combined"));
    assert_eq!(planned(on(&["host"])), Ok(Plan::Host));
    assert_eq!(planned(on(&["none"])), Ok(Plan::Nothing));
    let other = ContainerId([1; 32]);
    let shared = config(NetworkMode::Container(other));
    assert_eq!(plan(&shared, "box", &networks(), &[]).unwrap(), Plan::Shared(other));
    let publishing = ContainerConfig { ports: vec![port(None)], ..shared };
    assert!(plan(&publishing, "box", &networks(), &[]).unwrap_err().to_string().contains("conflicting options"));
}

#[test]
fn a_running_container_shows_the_numbers_of_its_ports_and_its_addresses() {
    let config = ContainerConfig { ports: vec![port(None)], ..config(on(&["back"])) };
    let link = |to, address: &str| Link {
        to,
        addresses: vec![address.parse().unwrap()],
        gateways: vec!["172.18.0.1".parse().unwrap()],
        mac: [2, 0, 0, 0, 0, 9],
    };
    let sandbox = Sandbox {
        id: "ab".repeat(32),
        links: vec![link(LinkTo::Bridge("back".into()), "172.18.0.9/16"), link(LinkTo::Node, "172.17.0.9/16")],
        ports: vec![port(Some(32768))],
        ..Sandbox::default()
    };
    let shown = show(container(config.clone(), ContainerStatus::Running), std::slice::from_ref(&sandbox), &networks());
    assert_eq!(shown.ports, [port(Some(32768))]);
    assert_eq!(shown.exposed, [(Protocol::Udp, 53), (Protocol::Tcp, 80)]);
    let endpoint = EndpointState {
        network: "back".into(),
        network_id: format!("{:0<64}", "45"),
        cluster_network: None,
        addresses: vec!["172.18.0.9/16".parse().unwrap()],
        gateways: vec!["172.18.0.1".parse().unwrap()],
        mac: [2, 0, 0, 0, 0, 9],
        aliases: Vec::new(),
    };
    assert_eq!(shown.networks, [endpoint]);
    // The sandbox of the last run may be there for a moment.
    let shown = show(container(config, ContainerStatus::Exited), &[sandbox], &networks());
    assert_eq!(shown.ports, []);
    assert_eq!(
        shown.networks.iter().map(|n| (n.network.as_str(), n.addresses.len())).collect::<Vec<_>>(),
        [("back", 0)]
    );
}

#[test]
fn a_container_of_a_task_is_shown_in_the_tasks_sandbox() {
    let owner = TaskOwner { task: TaskId(5), service: ServiceId(6), node: NodeId(7) };
    let config = ContainerConfig { task: Some(owner), ..config(NetworkMode::Sandbox("/run/x".into())) };
    let to = LinkTo::Cluster { id: NetworkId(8), name: "app".into() };
    let link =
        Link { to, addresses: vec!["10.0.1.2/24".parse().unwrap()], gateways: Vec::new(), mac: [2, 0, 0, 0, 0, 1] };
    let sandbox = Sandbox { id: TaskId(5).to_string(), links: vec![link], ..Sandbox::default() };
    let shown = show(container(config, ContainerStatus::Running), &[sandbox], &networks());
    let seen: Vec<_> = shown.networks.iter().map(|n| (n.network.as_str(), n.cluster_network)).collect();
    assert_eq!(seen, [("app", Some(NetworkId(8)))]);
}

#[test]
fn an_address_asked_for_lies_in_a_subnet_of_its_network() {
    let mut networks = networks();
    let subnet = |net: &str, gateway: &str| skep_proto::model::network::Subnet {
        subnet: net.parse().unwrap(),
        range: None,
        gateway: gateway.parse().unwrap(),
    };
    networks[3].subnets = vec![subnet("172.18.0.0/16", "172.18.0.1"), subnet("fd01::/64", "fd01::1")];
    let ask = |addresses: &[&str]| {
        let addresses: Vec<IpAddr> = addresses.iter().map(|a| a.parse().unwrap()).collect();
        let endpoint = NetworkEndpoint { network: "back".into(), addresses, ..NetworkEndpoint::default() };
        plan(&config(NetworkMode::Networks(vec![endpoint])), "box", &networks, &[]).map_err(|e| e.to_string())
    };
    let Ok(Plan::Sandbox(request)) = ask(&["172.18.0.9", "fd01::9"]) else { panic!("no sandbox") };
    assert_eq!(request.bridges[0].addresses.len(), 2);
    let error = ask(&["172.18.0.9", "fd02::9"]).unwrap_err();
    assert_eq!(error, "invalid endpoint settings:\nno configured subnet or ip-range contain the IP address fd02::9");
}

#[test]
fn a_port_on_every_address_is_shown_for_each_family_that_leads_to_the_container() {
    let shown = |addresses: &[&str], host_ip: Option<&str>| {
        let bound = PortBinding { host_ip: host_ip.map(|ip| ip.parse().unwrap()), ..port(Some(8080)) };
        let sandbox = Sandbox {
            id: "ab".repeat(32),
            links: vec![Link {
                to: LinkTo::Bridge("back".into()),
                addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
                gateways: Vec::new(),
                mac: [0; 6],
            }],
            ports: vec![bound],
            ..Sandbox::default()
        };
        let shown = show(container(config(on(&["back"])), ContainerStatus::Running), &[sandbox], &networks());
        shown.ports.iter().map(|p| p.host_ip.map(|ip| ip.to_string())).collect::<Vec<_>>()
    };
    let v6 = || Some("::".to_owned());
    assert_eq!(shown(&["172.18.0.2/16"], None), [None]);
    assert_eq!(shown(&["172.18.0.2/16", "fd01::2/64"], None), [None, v6()]);
    assert_eq!(shown(&["172.18.0.2/16", "fd01::2/64"], Some("::")), [v6()]);
    assert_eq!(shown(&["172.18.0.2/16", "fd01::2/64"], Some("0.0.0.0")), [Some("0.0.0.0".to_owned())]);
}
