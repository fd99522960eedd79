//! Flags of services about what their processes may do.

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Value, json};

use super::flags::{list, object};
use crate::commands::pairs;

/// Flags of `service create`.
#[derive(Debug, Default, Args)]
pub struct SecurityFlags {
    /// Capability to add, or ALL; may be repeated
    #[arg(long)]
    cap_add: Vec<String>,
    /// Capability to drop, or ALL; may be repeated
    #[arg(long)]
    cap_drop: Vec<String>,
    /// Namespaced kernel parameter, NAME=VALUE; may be repeated
    #[arg(long)]
    sysctl: Vec<String>,
    /// Resource limit, NAME=SOFT[:HARD], -1 for none; may be repeated
    #[arg(long)]
    ulimit: Vec<String>,
    /// Supplementary group; may be repeated
    #[arg(long)]
    group: Vec<String>,
    /// Run a small init as pid 1 that forwards signals and reaps processes
    #[arg(long)]
    init: bool,
}

/// Flags of `service update`.
#[derive(Debug, Default, Args)]
pub struct SecurityChanges {
    /// Capability to add, or ALL; may be repeated
    #[arg(long)]
    cap_add: Vec<String>,
    /// Capability to drop, or ALL; may be repeated
    #[arg(long)]
    cap_drop: Vec<String>,
    /// Add or change a kernel parameter, NAME=VALUE; may be repeated
    #[arg(long)]
    sysctl_add: Vec<String>,
    /// Remove a kernel parameter; may be repeated
    #[arg(long)]
    sysctl_rm: Vec<String>,
    /// Add or change a resource limit, NAME=SOFT[:HARD]; may be repeated
    #[arg(long)]
    ulimit_add: Vec<String>,
    /// Remove a resource limit; may be repeated
    #[arg(long)]
    ulimit_rm: Vec<String>,
    /// Add a supplementary group; may be repeated
    #[arg(long)]
    group_add: Vec<String>,
    /// Remove a supplementary group; may be repeated
    #[arg(long)]
    group_rm: Vec<String>,
}

impl SecurityFlags {
    /// Puts them into a container's spec.
    ///
    /// # Errors
    /// A value that cannot be read.
    pub fn apply(&self, container: &mut Value) -> anyhow::Result<()> {
        let as_changes = SecurityChanges {
            cap_add: self.cap_add.clone(),
            cap_drop: self.cap_drop.clone(),
            sysctl_add: self.sysctl.clone(),
            ulimit_add: self.ulimit.clone(),
            group_add: self.group.clone(),
            ..SecurityChanges::default()
        };
        if self.init {
            container["Init"] = json!(true);
        }
        as_changes.apply(container)
    }
}

impl SecurityChanges {
    /// Changes a container's spec. Adding a capability takes back that it is dropped, and the other way round.
    ///
    /// # Errors
    /// A value that cannot be read.
    pub fn apply(&self, container: &mut Value) -> anyhow::Result<()> {
        for (part, names, other) in
            [("CapabilityAdd", &self.cap_add, "CapabilityDrop"), ("CapabilityDrop", &self.cap_drop, "CapabilityAdd")]
        {
            let names: Vec<String> = names.iter().map(|name| capability(name)).collect();
            if !names.is_empty() {
                list(&mut container[other]).retain(|known| !names.iter().any(|name| known == name));
                let list = list(&mut container[part]);
                list.retain(|known| !names.iter().any(|name| known == name));
                list.extend(names.into_iter().map(Value::from));
            }
        }
        if !self.sysctl_add.is_empty() || !self.sysctl_rm.is_empty() {
            let sysctls = object(&mut container["Sysctls"]);
            self.sysctl_rm.iter().for_each(|name| drop(sysctls.remove(name)));
            sysctls.extend(pairs(&self.sysctl_add));
        }
        if !self.ulimit_add.is_empty() || !self.ulimit_rm.is_empty() {
            let added = self.ulimit_add.iter().map(|flag| ulimit(flag)).collect::<anyhow::Result<Vec<_>>>()?;
            let limits = list(&mut container["Ulimits"]);
            limits.retain(|known| {
                let is_named = |name: &String| known["Name"] == *name;
                !self.ulimit_rm.iter().any(is_named) && !added.iter().any(|new| new["Name"] == known["Name"])
            });
            limits.extend(added);
        }
        if !self.group_add.is_empty() || !self.group_rm.is_empty() {
            let groups = list(&mut container["Groups"]);
            groups.retain(|known| !self.group_rm.iter().chain(&self.group_add).any(|name| known == name));
            groups.extend(self.group_add.iter().map(|name| json!(name)));
        }
        Ok(())
    }
}

/// As Docker's client writes them: upper case, with `CAP_`, but for `ALL`.
fn capability(name: &str) -> String {
    let upper = name.to_ascii_uppercase();
    if upper == "ALL" || upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") }
}

fn ulimit(flag: &str) -> anyhow::Result<Value> {
    let wrong = || format!("--ulimit {flag}: write NAME=SOFT[:HARD], like nofile=1024:2048");
    let (name, limits) = flag.split_once('=').with_context(wrong)?;
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    let (soft, hard): (i64, i64) = (soft.parse().with_context(wrong)?, hard.parse().with_context(wrong)?);
    if hard != -1 && (soft > hard || soft == -1) {
        bail!("--ulimit {flag}: the soft limit is above the hard one");
    }
    Ok(json!({"Name": name, "Soft": soft, "Hard": hard}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capability_that_is_dropped_is_added_no_longer() {
        let mut container = json!({});
        let add = SecurityFlags {
            cap_add: vec!["net_admin".into()],
            ulimit: vec!["nofile=1:2".into()],
            ..Default::default()
        };
        add.apply(&mut container).unwrap();
        assert_eq!(container["CapabilityAdd"], json!(["CAP_NET_ADMIN"]));
        assert_eq!(container["Ulimits"], json!([{"Name": "nofile", "Soft": 1, "Hard": 2}]));
        let drop = SecurityChanges {
            cap_drop: vec!["NET_ADMIN".into()],
            ulimit_rm: vec!["nofile".into()],
            ..Default::default()
        };
        drop.apply(&mut container).unwrap();
        assert_eq!(
            (&container["CapabilityAdd"], &container["CapabilityDrop"]),
            (&json!([]), &json!(["CAP_NET_ADMIN"]))
        );
        assert_eq!(container["Ulimits"], json!([]));
        assert!(ulimit("nofile=3:2").is_err() && ulimit("nofile").is_err());
    }
}
