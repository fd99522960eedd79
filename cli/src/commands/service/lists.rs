//! Flags of `service create` and `service update` whose values are lists: given on create, added to and removed from on
//! update.

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Value, json};

use super::flags::{list, object};
use super::mount;
use crate::commands::pairs;

/// Lists of a new service.
#[derive(Debug, Default, Args)]
pub struct Lists {
    /// Resolver of the containers; may be repeated
    #[arg(long)]
    dns: Vec<String>,
    /// Option of the resolver; may be repeated
    #[arg(long)]
    dns_option: Vec<String>,
    /// Search domain; may be repeated
    #[arg(long)]
    dns_search: Vec<String>,
    /// File of variables, one NAME=VALUE a line; may be repeated
    #[arg(long)]
    env_file: Vec<std::path::PathBuf>,
    /// Generic resource to reserve, KIND=AMOUNT; may be repeated
    #[arg(long)]
    generic_resource: Vec<String>,
    /// Line of /etc/hosts, NAME:IP; may be repeated. (Docker's `--host` is the daemon here.)
    #[arg(long)]
    add_host: Vec<String>,
}

/// Changes of lists of a service.
#[derive(Debug, Default, Args)]
pub struct ListChanges {
    /// Add or change a label of the containers, KEY=VALUE; may be repeated
    #[arg(long)]
    container_label_add: Vec<String>,
    /// Remove a label of the containers; may be repeated
    #[arg(long)]
    container_label_rm: Vec<String>,
    /// Add a resolver; may be repeated
    #[arg(long)]
    dns_add: Vec<String>,
    /// Remove a resolver; may be repeated
    #[arg(long)]
    dns_rm: Vec<String>,
    /// Add an option of the resolver; may be repeated
    #[arg(long)]
    dns_option_add: Vec<String>,
    /// Remove an option of the resolver; may be repeated
    #[arg(long)]
    dns_option_rm: Vec<String>,
    /// Add a search domain; may be repeated
    #[arg(long)]
    dns_search_add: Vec<String>,
    /// Remove a search domain; may be repeated
    #[arg(long)]
    dns_search_rm: Vec<String>,
    /// Reserve a generic resource, KIND=AMOUNT; may be repeated
    #[arg(long)]
    generic_resource_add: Vec<String>,
    /// Reserve a generic resource no longer; may be repeated
    #[arg(long)]
    generic_resource_rm: Vec<String>,
    /// Add a line of /etc/hosts, NAME:IP; may be repeated
    #[arg(long)]
    host_add: Vec<String>,
    /// Remove lines of /etc/hosts, NAME or NAME:IP; may be repeated
    #[arg(long)]
    host_rm: Vec<String>,
    /// Add or change a mount, by its target; may be repeated
    #[arg(long)]
    mount_add: Vec<String>,
    /// Remove a mount by its target; may be repeated
    #[arg(long)]
    mount_rm: Vec<String>,
    /// Join a network; may be repeated
    #[arg(long)]
    network_add: Vec<String>,
    /// Leave a network; may be repeated
    #[arg(long)]
    network_rm: Vec<String>,
}

impl Lists {
    /// Puts them into the spec.
    ///
    /// # Errors
    /// A value or a file that cannot be read.
    pub fn apply(&self, spec: &mut Value) -> anyhow::Result<()> {
        let task = &mut spec["TaskTemplate"];
        reserve(task, &self.generic_resource, &[])?;
        let container = &mut task["ContainerSpec"];
        for path in &self.env_file {
            let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
            // Those of the command line come later and win.
            let lines: Vec<Value> = lines.map(|line| json!(line)).collect();
            list(&mut container["Env"]).splice(0..0, lines);
        }
        for (key, values) in [("Nameservers", &self.dns), ("Options", &self.dns_option), ("Search", &self.dns_search)] {
            change(&mut container["DNSConfig"], key, values, &[]);
        }
        change(container, "Hosts", &hosts(&self.add_host)?, &[]);
        Ok(())
    }
}

impl ListChanges {
    /// Makes the changes. What is removed goes before what is added comes.
    ///
    /// # Errors
    /// A value that cannot be read.
    pub fn apply(&self, spec: &mut Value) -> anyhow::Result<()> {
        let task = &mut spec["TaskTemplate"];
        reserve(task, &self.generic_resource_add, &self.generic_resource_rm)?;
        if !self.network_add.is_empty() || !self.network_rm.is_empty() {
            let networks = list(&mut task["Networks"]);
            networks.retain(|n| !self.network_rm.iter().any(|name| n["Target"] == *name));
            networks.extend(self.network_add.iter().map(|name| json!({"Target": name})));
        }
        let container = &mut task["ContainerSpec"];
        if !self.container_label_add.is_empty() || !self.container_label_rm.is_empty() {
            let labels = object(&mut container["Labels"]);
            self.container_label_rm.iter().for_each(|key| drop(labels.remove(key)));
            labels.extend(pairs(&self.container_label_add));
        }
        for (key, add, rm) in [
            ("Nameservers", &self.dns_add, &self.dns_rm),
            ("Options", &self.dns_option_add, &self.dns_option_rm),
            ("Search", &self.dns_search_add, &self.dns_search_rm),
        ] {
            change(&mut container["DNSConfig"], key, add, rm);
        }
        self.change_hosts(container)?;
        if !self.mount_add.is_empty() || !self.mount_rm.is_empty() {
            let add = self.mount_add.iter().map(|m| mount::parse(m)).collect::<anyhow::Result<Vec<_>>>()?;
            let mounts = list(&mut container["Mounts"]);
            mounts.retain(|m| {
                let is_removed = self.mount_rm.iter().any(|target| m["Target"] == *target);
                !is_removed && !add.iter().any(|new| new["Target"] == m["Target"])
            });
            mounts.extend(add);
        }
        Ok(())
    }

    fn change_hosts(&self, container: &mut Value) -> anyhow::Result<()> {
        if self.host_add.is_empty() && self.host_rm.is_empty() {
            return Ok(());
        }
        let is_removed = |line: &Value| {
            let (ip, names) = line.as_str().unwrap_or_default().split_once(' ').unwrap_or_default();
            self.host_rm.iter().any(|rm| {
                let (name, address) = rm.split_once(':').map_or((rm.as_str(), None), |(n, a)| (n, Some(a)));
                names.split_whitespace().any(|n| n == name) && address.is_none_or(|a| a == ip)
            })
        };
        list(&mut container["Hosts"]).retain(|line| !is_removed(line));
        change(container, "Hosts", &hosts(&self.host_add)?, &[]);
        Ok(())
    }
}

/// Removes texts from the list under `key`, and adds others that it does not have.
fn change(object: &mut Value, key: &str, add: &[String], rm: &[String]) {
    if add.is_empty() && rm.is_empty() {
        return;
    }
    let values = list(&mut object[key]);
    values.retain(|value| !rm.iter().any(|text| value == text));
    for text in add {
        if !values.iter().any(|value| value == text) {
            values.push(json!(text));
        }
    }
}

/// Swarm writes `IP NAME`, people `NAME:IP`.
fn hosts(given: &[String]) -> anyhow::Result<Vec<String>> {
    let read = |text: &String| {
        let (name, ip) = text.split_once(':').with_context(|| format!("bad format for add-host: {text:?}"))?;
        Ok(format!("{ip} {name}"))
    };
    given.iter().map(read).collect()
}

fn reserve(task: &mut Value, add: &[String], rm: &[String]) -> anyhow::Result<()> {
    if add.is_empty() && rm.is_empty() {
        return Ok(());
    }
    let mut wanted = Vec::new();
    for text in add {
        let (kind, amount) = text.split_once('=').with_context(|| format!("{text:?} is not KIND=AMOUNT"))?;
        let Ok(amount) = amount.parse::<i64>() else {
            bail!(
                "invalid generic-resource request `{text}`, Named Generic Resources is not supported for service create or update"
            )
        };
        wanted.push((kind, amount));
    }
    let known = list(&mut task["Resources"]["Reservations"]["GenericResources"]);
    let kind = |resource: &Value| resource["DiscreteResourceSpec"]["Kind"].as_str().unwrap_or_default().to_owned();
    known.retain(|r| !rm.contains(&kind(r)) && !wanted.iter().any(|(k, _)| *k == kind(r)));
    known.extend(wanted.iter().map(|(kind, n)| json!({"DiscreteResourceSpec": {"Kind": kind, "Value": n}})));
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Create {
        #[command(flatten)]
        lists: Lists,
    }

    #[derive(Debug, Parser)]
    struct Update {
        #[command(flatten)]
        changes: ListChanges,
    }

    fn container(spec: &Value) -> &Value {
        &spec["TaskTemplate"]["ContainerSpec"]
    }

    #[test]
    fn what_create_gives_update_takes_away() {
        let given = "x --dns 1.1.1.1 --add-host h:1.2.3.4 --add-host i:1.2.3.4 --generic-resource gpu=2";
        let mut spec = json!({});
        Create::try_parse_from(given.split(' ')).unwrap().lists.apply(&mut spec).unwrap();
        let wanted = json!({
            "DNSConfig": {"Nameservers": ["1.1.1.1"]}, "Hosts": ["1.2.3.4 h", "1.2.3.4 i"],
        });
        assert_eq!(container(&spec), &wanted);
        let generic = |spec: &Value| spec["TaskTemplate"]["Resources"]["Reservations"]["GenericResources"].clone();
        assert_eq!(generic(&spec), json!([{"DiscreteResourceSpec": {"Kind": "gpu", "Value": 2}}]));

        let change = "x --dns-rm 1.1.1.1 --dns-add 2.2.2.2 --host-rm h --generic-resource-rm gpu \
                      --container-label-add a=b --network-add n --mount-add type=tmpfs,target=/t";
        Update::try_parse_from(change.split_whitespace()).unwrap().changes.apply(&mut spec).unwrap();
        assert_eq!(container(&spec)["DNSConfig"]["Nameservers"], json!(["2.2.2.2"]));
        assert_eq!(container(&spec)["Hosts"], json!(["1.2.3.4 i"]));
        assert_eq!((generic(&spec), &container(&spec)["Labels"]), (json!([]), &json!({"a": "b"})));
        assert_eq!(spec["TaskTemplate"]["Networks"], json!([{"Target": "n"}]));
        assert_eq!(container(&spec)["Mounts"][0]["Target"], "/t");
    }

    #[test]
    fn a_reservation_is_an_amount() {
        let mut spec = json!({});
        let lists = Create::try_parse_from(["x", "--generic-resource", "gpu=UUID1"]).unwrap().lists;
        assert!(lists.apply(&mut spec).unwrap_err().to_string().contains("Named Generic Resources is not supported"));
    }
}
