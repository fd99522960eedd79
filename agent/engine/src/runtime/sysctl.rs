//! Kernel parameters of a container: only those that a namespace of its own has, or they would be the node's. Pure.

use std::collections::BTreeMap;

use skep_proto::model::engine::ContainerConfig;

use super::spec::SpecError;

/// Parameters of an IPC namespace (ipc_namespaces(7)).
const OF_IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// Those asked for, and low ports and ping for everyone, as Docker sets them where the network is the container's own.
///
/// # Errors
/// [`SpecError::Sysctl`] for one that is the node's; runc refuses the same.
pub fn sysctls(config: &ContainerConfig, host_network: bool) -> Result<BTreeMap<String, String>, SpecError> {
    let mut sysctls = BTreeMap::new();
    if !host_network {
        sysctls.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned());
        sysctls.insert("net.ipv4.ping_group_range".to_owned(), "0 2147483647".to_owned());
    }
    for (name, value) in &config.spec.sysctls {
        check(name, config.isolation.host_ipc, config.isolation.host_uts, host_network)?;
        sysctls.insert(name.clone(), value.clone());
    }
    Ok(sysctls)
}

fn check(name: &str, host_ipc: bool, host_uts: bool, host_network: bool) -> Result<(), SpecError> {
    let refused = |reason| Err(SpecError::Sysctl { name: name.to_owned(), reason });
    // It becomes a path below /proc/sys, where it must stay.
    let has_own_form = name.split('.').all(|part| !part.is_empty()) && !name.contains('/');
    match name {
        _ if !has_own_form => refused("write it with dots, like net.core.somaxconn"),
        _ if OF_IPC.contains(&name) || name.starts_with("fs.mqueue.") => {
            if host_ipc {
                refused("the container uses the node's IPC namespace")
            } else {
                Ok(())
            }
        }
        _ if name.starts_with("net.") => {
            if host_network {
                refused("the container uses the node's network")
            } else {
                Ok(())
            }
        }
        "kernel.domainname" => {
            if host_uts {
                refused("the container uses the node's host name")
            } else {
                Ok(())
            }
        }
        _ => refused("it is not in a separate kernel namespace, and would change the node"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_parameters_of_the_containers_own_namespaces_are_set() {
        for own in ["net.core.somaxconn", "kernel.sem", "fs.mqueue.msg_max", "kernel.domainname"] {
            assert_eq!(check(own, false, false, false), Ok(()), "{own}");
            assert!(check(own, true, true, true).is_err(), "{own}");
        }
        for the_nodes in
            ["kernel.core_pattern", "vm.swappiness", "fs.file-max", "net..x", "net.a/../../kernel.x", "", "net"]
        {
            assert!(check(the_nodes, false, false, false).is_err(), "{the_nodes}");
        }
    }
}
