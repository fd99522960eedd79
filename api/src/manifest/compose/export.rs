//! A stack of the cluster as a Compose file that applies to "no changes".
//!
//! Each member of a spec is taken out as it is written; what is left at the end has no key in Compose and is a problem, so
//! nothing is lost in silence. Contents of secrets are shown to nobody: secrets and configs are written as external.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use skep_proto::model::dependency::{self, Condition};

use crate::manifest::export::{Export, VNI_OPTION};
use crate::manifest::plan::{canonical, full_image};
use crate::manifest::stack::{IMAGE_LABEL, STACK_LABEL};
use crate::manifest::yaml_text::{self, Dollar};

/// The file.
///
/// # Errors
/// Everything that a Compose file cannot say, a line each.
pub fn export(from: &Export<'_>) -> Result<String, String> {
    let mut writer =
        Writer { from, networks: BTreeMap::new(), volumes: Map::new(), files: BTreeMap::new(), problems: Vec::new() };
    let mut services = Map::new();
    for (name, spec) in &from.services {
        match name.strip_prefix(&format!("{}_", from.stack)) {
            Some(key) if !key.is_empty() => drop(services.insert(key.to_owned(), writer.service(name, spec))),
            _ => writer.problems.push(format!("service {name}: its name does not begin with {}_", from.stack)),
        }
    }
    let mut file =
        Map::from_iter([("name".to_owned(), json!(from.stack)), ("services".to_owned(), Value::Object(services))]);
    let networks: Map<String, Value> =
        writer.networks.iter().map(|(key, name)| (key.clone(), network(from, key, name))).collect();
    let files = |list: &str| -> Map<String, Value> {
        let own = writer.files.iter().filter(|((l, _), _)| l == list);
        own.map(|((_, key), name)| (key.clone(), json!({"external": true, "name": name}))).collect()
    };
    for (key, section) in [
        ("networks", networks),
        ("volumes", writer.volumes.clone()),
        ("secrets", files("secrets")),
        ("configs", files("configs")),
    ] {
        if !section.is_empty() {
            file.insert(key.to_owned(), Value::Object(section));
        }
    }
    if !writer.problems.is_empty() {
        return Err(writer.problems.join("\n"));
    }
    Ok(yaml_text::write(&Value::Object(file), Dollar::Doubled))
}

fn network(from: &Export<'_>, key: &str, name: &str) -> Value {
    let Some(shown) = from.networks.get(name) else { return json!({"external": true, "name": name}) };
    let mut out = Map::new();
    if name != format!("{}_{key}", from.stack) {
        out.insert("name".into(), json!(name));
    }
    for (word, member) in [("attachable", "Attachable"), ("internal", "Internal"), ("enable_ipv6", "EnableIPv6")] {
        if shown[member] == true {
            out.insert(word.into(), json!(true));
        }
    }
    // The cluster adds the identifier that it gave.
    let options: Map<String, Value> = members(&shown["Options"]).filter(|(k, _)| k.as_str() != VNI_OPTION).collect();
    if !options.is_empty() {
        out.insert("driver_opts".into(), Value::Object(options));
    }
    let labels: Map<String, Value> = members(&shown["Labels"]).filter(|(k, _)| k.as_str() != STACK_LABEL).collect();
    if !labels.is_empty() {
        out.insert("labels".into(), Value::Object(labels));
    }
    Value::Object(out)
}

fn members(value: &Value) -> impl Iterator<Item = (String, Value)> + '_ {
    value.as_object().into_iter().flatten().map(|(k, v)| (k.clone(), v.clone()))
}

struct Writer<'a> {
    from: &'a Export<'a>,
    /// Key -> name in the cluster.
    networks: BTreeMap<String, String>,
    volumes: Map<String, Value>,
    /// (`secrets` or `configs`, key) -> name in the cluster.
    files: BTreeMap<(String, String), String>,
    problems: Vec<String>,
}

/// Takes a member whose name may hold dots.
fn remove(value: &mut Value, key: &str) -> Option<Value> {
    value.as_object_mut()?.remove(key)
}

/// Takes the member at a path out of a tree.
fn take(value: &mut Value, path: &str) -> Option<Value> {
    let (first, rest) = path.split_once('.').map_or((path, None), |(f, r)| (f, Some(r)));
    let map = value.as_object_mut()?;
    let Some(rest) = rest else { return map.remove(first) };
    let taken = take(map.get_mut(first)?, rest);
    if map.get(first).is_some_and(|v| v.as_object().is_some_and(Map::is_empty)) {
        map.remove(first);
    }
    taken
}

/// Nanoseconds as a duration.
fn duration(value: &Value) -> Value {
    json!(format!("{}ns", value.as_u64().unwrap_or(0)))
}

/// Nano-CPUs as a number.
fn cpus(value: &Value) -> Value {
    let nano = value.as_u64().unwrap_or(0);
    let text = format!("{}.{:09}", nano / 1_000_000_000, nano % 1_000_000_000);
    json!(text.trim_end_matches('0').trim_end_matches('.'))
}

impl Writer<'_> {
    fn service(&mut self, name: &str, spec: &Value) -> Value {
        let mut spec = canonical(spec);
        let mut out = json!({});
        drop(take(&mut spec, "Name"));
        self.labels(&mut spec, &mut out);
        self.container(&mut spec, &mut out);
        self.networks(name, &mut spec, &mut out);
        deploy(&mut spec, &mut out);
        ports(&mut spec, &mut out);
        if let Some(log) = take(&mut spec, "TaskTemplate.LogDriver") {
            out["logging"] =
                json!({"driver": log["Name"], "options": log.get("Options").cloned().unwrap_or(json!({}))});
        }
        let mut left = Vec::new();
        leaves(&spec, &mut Vec::new(), &mut left);
        let of = |path: String| format!("service {name}: {path} cannot be written in a Compose file");
        self.problems.extend(left.into_iter().map(of));
        out
    }

    fn labels(&mut self, spec: &mut Value, out: &mut Value) {
        let mut labels: Map<String, Value> = take(spec, "Labels").as_ref().map(members).into_iter().flatten().collect();
        labels.remove(STACK_LABEL);
        let written = labels.remove(IMAGE_LABEL).and_then(|v| v.as_str().map(str::to_owned));
        let image = take(spec, "TaskTemplate.ContainerSpec.Image")
            .and_then(|v| v.as_str().map(str::to_owned))
            .unwrap_or_default();
        // The image as it was written; a digest that a client found for it comes back by itself.
        let tagged = image.split('@').next().unwrap_or_default();
        out["image"] = json!(written.filter(|w| full_image(w) == image || full_image(w) == tagged).unwrap_or(image));
        let prefix = format!("{}_", self.from.stack);
        let all = labels.iter().map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned())).collect();
        let dependencies = dependency::read(&all).unwrap_or_default();
        if !dependencies.is_empty() && dependencies.iter().all(|d| self.from.services.contains_key(&d.service)) {
            labels.remove(dependency::LABEL);
            for d in &dependencies {
                let key = d.service.strip_prefix(&prefix).unwrap_or(&d.service);
                let condition: Condition = d.condition;
                out["depends_on"][key] = json!({"condition": condition.as_str()});
                if !d.is_required {
                    out["depends_on"][key]["required"] = json!(false);
                }
            }
        }
        if !labels.is_empty() {
            out["deploy"]["labels"] = Value::Object(labels);
        }
    }

    fn container(&mut self, spec: &mut Value, out: &mut Value) {
        let mut container = take(spec, "TaskTemplate.ContainerSpec").unwrap_or_else(|| json!({}));
        for (member, key) in [
            ("Command", "entrypoint"),
            ("Args", "command"),
            ("Hostname", "hostname"),
            ("Dir", "working_dir"),
            ("User", "user"),
            ("Groups", "group_add"),
            ("TTY", "tty"),
            ("OpenStdin", "stdin_open"),
            ("ReadOnly", "read_only"),
            ("StopSignal", "stop_signal"),
            ("Init", "init"),
            ("Sysctls", "sysctls"),
            ("CapabilityAdd", "cap_add"),
            ("CapabilityDrop", "cap_drop"),
            ("DNSConfig.Nameservers", "dns"),
            ("DNSConfig.Search", "dns_search"),
            ("DNSConfig.Options", "dns_opt"),
            ("Env", "environment"),
        ] {
            if let Some(value) = take(&mut container, member) {
                out[key] = value;
            }
        }
        if let Some(mut labels) = take(&mut container, "Labels") {
            drop(remove(&mut labels, STACK_LABEL));
            if labels.as_object().is_some_and(|l| !l.is_empty()) {
                out["labels"] = labels;
            }
        }
        if let Some(grace) = take(&mut container, "StopGracePeriod") {
            out["stop_grace_period"] = duration(&grace);
        }
        if take(&mut container, "Privileges.NoNewPrivileges").is_some() {
            out["security_opt"] = json!(["no-new-privileges:true"]);
        }
        if let Some(Value::Array(hosts)) = take(&mut container, "Hosts") {
            let line =
                |h: &Value| h.as_str().and_then(|h| h.split_once(' ')).map(|(ip, name)| json!(format!("{name}={ip}")));
            out["extra_hosts"] = hosts.iter().filter_map(line).collect();
        }
        for (limit, value) in take(&mut container, "Ulimits").as_ref().map(members).into_iter().flatten() {
            let number = |member: &str| value.get(member).cloned().unwrap_or(json!(0));
            out["ulimits"][limit] = json!({"soft": number("Soft"), "hard": number("Hard")});
        }
        if let Some(mut check) = take(&mut container, "Healthcheck") {
            for (member, key) in [
                ("Interval", "interval"),
                ("Timeout", "timeout"),
                ("StartPeriod", "start_period"),
                ("StartInterval", "start_interval"),
            ] {
                if let Some(value) = take(&mut check, member) {
                    out["healthcheck"][key] = duration(&value);
                }
            }
            for (member, key) in [("Test", "test"), ("Retries", "retries")] {
                if let Some(value) = take(&mut check, member) {
                    out["healthcheck"][key] = value;
                }
            }
            put_back(&mut container, "Healthcheck", check);
        }
        self.files(&mut container, out, "Secrets", "secrets", "SecretName");
        self.files(&mut container, out, "Configs", "configs", "ConfigName");
        self.mounts(&mut container, out);
        put_back(&mut spec["TaskTemplate"], "ContainerSpec", container);
    }

    fn files(&mut self, container: &mut Value, out: &mut Value, member: &str, key: &str, name: &str) {
        let mut uses = Vec::new();
        for (_, reference) in take(container, member).as_ref().map(members).into_iter().flatten() {
            let source = reference[name].as_str().unwrap_or_default().to_owned();
            self.files.insert((key.to_owned(), source.clone()), source.clone());
            let file = &reference["File"];
            let mode = file["Mode"].as_u64().unwrap_or(0);
            let owner = |word: &str| file[word].as_str().unwrap_or("0").to_owned();
            uses.push(json!({"source": source, "target": file["Name"], "uid": owner("UID"), "gid": owner("GID"), "mode": format!("0{mode:o}")}));
        }
        if !uses.is_empty() {
            out[key] = Value::Array(uses);
        }
    }

    fn mounts(&mut self, container: &mut Value, out: &mut Value) {
        let mut mounts = Vec::new();
        for (target, mut mount) in take(container, "Mounts").as_ref().map(members).into_iter().flatten() {
            drop(take(&mut mount, "Target"));
            let kind = take(&mut mount, "Type").and_then(|t| t.as_str().map(str::to_owned)).unwrap_or_default();
            let mut written = json!({"type": kind, "target": target});
            let source = take(&mut mount, "Source").and_then(|s| s.as_str().map(str::to_owned));
            if let Some(source) = source {
                let key = source.strip_prefix(&format!("{}_", self.from.stack)).unwrap_or(&source).to_owned();
                written["source"] = json!(if kind == "volume" { &key } else { &source });
                if kind == "volume" {
                    self.volume(&key, &source, &mut mount);
                }
            }
            for (member, section, word) in [
                ("ReadOnly", "", "read_only"),
                ("Consistency", "", "consistency"),
                ("BindOptions.Propagation", "bind", "propagation"),
                ("BindOptions.CreateMountpoint", "bind", "create_host_path"),
                ("VolumeOptions.NoCopy", "volume", "nocopy"),
                ("VolumeOptions.Subpath", "volume", "subpath"),
                ("TmpfsOptions.SizeBytes", "tmpfs", "size"),
                ("TmpfsOptions.Mode", "tmpfs", "mode"),
            ] {
                if let Some(value) = take(&mut mount, member) {
                    if section.is_empty() { written[word] = value } else { written[section][word] = value }
                }
            }
            let mut left = Vec::new();
            leaves(&mount, &mut Vec::new(), &mut left);
            self.problems
                .extend(left.into_iter().map(|p| format!("mount {target}: {p} cannot be written in a Compose file")));
            mounts.push(written);
        }
        if !mounts.is_empty() {
            out["volumes"] = Value::Array(mounts);
        }
    }

    fn volume(&mut self, key: &str, name: &str, mount: &mut Value) {
        let mut labels = take(mount, "VolumeOptions.Labels").unwrap_or_else(|| json!({}));
        let driver = take(mount, "VolumeOptions.DriverConfig");
        let mut volume = json!({"name": name});
        // A volume without the stack's label must exist.
        if remove(&mut labels, STACK_LABEL).is_none() {
            volume["external"] = json!(true);
        } else if let Some(driver) = driver {
            volume["driver"] = driver["Name"].clone();
            if let Some(options) = driver.get("Options") {
                volume["driver_opts"] = options.clone();
            }
        }
        if labels.as_object().is_some_and(|l| !l.is_empty()) {
            volume["labels"] = labels;
        }
        if let Some(other) = self.volumes.insert(key.to_owned(), volume.clone())
            && other != volume
        {
            self.problems.push(format!("volume {name} is mounted with different options"));
        }
    }

    fn networks(&mut self, service: &str, spec: &mut Value, out: &mut Value) {
        let own = service.strip_prefix(&format!("{}_", self.from.stack)).unwrap_or(service);
        for (name, mut attachment) in take(spec, "TaskTemplate.Networks").as_ref().map(members).into_iter().flatten() {
            drop(take(&mut attachment, "Target"));
            let key = name.strip_prefix(&format!("{}_", self.from.stack)).unwrap_or(&name).to_owned();
            self.networks.insert(key.clone(), name);
            out["networks"][&key] = json!({});
            if let Some(Value::Array(mut aliases)) = take(&mut attachment, "Aliases") {
                // The service's own name is one by itself.
                aliases.retain(|alias| alias != own);
                if !aliases.is_empty() {
                    out["networks"][&key]["aliases"] = Value::Array(aliases);
                }
            }
            if let Some(options) = take(&mut attachment, "DriverOpts") {
                out["networks"][&key]["driver_opts"] = options;
            }
        }
    }
}

/// What is left of a part that was taken out goes back, to be told.
fn put_back(value: &mut Value, key: &str, part: Value) {
    if part.as_object().is_some_and(|p| !p.is_empty()) {
        value[key] = part;
    }
}

fn deploy(spec: &mut Value, out: &mut Value) {
    let mut put = |key: &str, value: Value| out["deploy"][key] = value;
    if let Some(count) = take(spec, "Mode.Replicated.Replicas") {
        put("replicas", count);
    } else if take(spec, "Mode.Global").is_some() {
        put("mode", json!("global"));
    } else if take(spec, "Mode.GlobalJob").is_some() {
        put("mode", json!("global-job"));
    } else if spec["Mode"]["ReplicatedJob"]["MaxConcurrent"] == spec["Mode"]["ReplicatedJob"]["TotalCompletions"] {
        drop(take(spec, "Mode.ReplicatedJob.MaxConcurrent"));
        if let Some(count) = take(spec, "Mode.ReplicatedJob.TotalCompletions") {
            put("mode", json!("replicated-job"));
            put("replicas", count);
        }
    }
    drop(take(spec, "Mode.ReplicatedJob"));
    if let Some(map) = spec.as_object_mut()
        && map.get("Mode").is_some_and(|m| m.is_null() || m.as_object().is_some_and(Map::is_empty))
    {
        map.remove("Mode");
    }
    if let Some(mode) = take(spec, "EndpointSpec.Mode") {
        out["deploy"]["endpoint_mode"] = mode;
    }
    for (part, key) in [("Limits", "limits"), ("Reservations", "reservations")] {
        if let Some(value) = take(spec, &format!("TaskTemplate.Resources.{part}.NanoCPUs")) {
            out["deploy"]["resources"][key]["cpus"] = cpus(&value);
        }
        if let Some(value) = take(spec, &format!("TaskTemplate.Resources.{part}.MemoryBytes")) {
            out["deploy"]["resources"][key]["memory"] = json!(value.to_string());
        }
    }
    if let Some(pids) = take(spec, "TaskTemplate.Resources.Limits.Pids") {
        out["deploy"]["resources"]["limits"]["pids"] = pids;
    }
    if let Some(Value::Array(generic)) = take(spec, "TaskTemplate.Resources.Reservations.GenericResources") {
        let one = |g: &Value| {
            let spec = &g["DiscreteResourceSpec"];
            json!({"discrete_resource_spec": {"kind": spec["Kind"], "value": spec["Value"]}})
        };
        out["deploy"]["resources"]["reservations"]["generic_resources"] = generic.iter().map(one).collect();
    }
    policies(spec, out);
}

fn policies(spec: &mut Value, out: &mut Value) {
    for (part, key) in [
        ("TaskTemplate.RestartPolicy", "restart_policy"),
        ("UpdateConfig", "update_config"),
        ("RollbackConfig", "rollback_config"),
    ] {
        for (member, word, is_duration) in [
            ("Condition", "condition", false),
            ("Delay", "delay", true),
            ("MaxAttempts", "max_attempts", false),
            ("Window", "window", true),
            ("Parallelism", "parallelism", false),
            ("FailureAction", "failure_action", false),
            ("Monitor", "monitor", true),
            ("MaxFailureRatio", "max_failure_ratio", false),
            ("Order", "order", false),
        ] {
            if let Some(value) = take(spec, &format!("{part}.{member}")) {
                out["deploy"][key][word] = if is_duration { duration(&value) } else { value };
            }
        }
    }
    for (member, word) in [("Constraints", "constraints"), ("MaxReplicas", "max_replicas_per_node")] {
        if let Some(value) = take(spec, &format!("TaskTemplate.Placement.{member}")) {
            out["deploy"]["placement"][word] = value;
        }
    }
    if let Some(Value::Array(list)) = take(spec, "TaskTemplate.Placement.Preferences") {
        let one = |p: &Value| json!({"spread": p["Spread"]["SpreadDescriptor"]});
        out["deploy"]["placement"]["preferences"] = list.iter().map(one).collect();
    }
    if let Some(Value::Array(list)) = take(spec, "TaskTemplate.Placement.Platforms")
        && let [platform] = list.as_slice()
    {
        out["platform"] = json!(format!("linux/{}", platform["Architecture"].as_str().unwrap_or_default()));
    }
}

fn ports(spec: &mut Value, out: &mut Value) {
    let mut ports = Vec::new();
    for (_, port) in take(spec, "EndpointSpec.Ports").as_ref().map(members).into_iter().flatten() {
        let mut written = json!({});
        for (member, word) in [
            ("TargetPort", "target"),
            ("PublishedPort", "published"),
            ("Protocol", "protocol"),
            ("PublishMode", "mode"),
            ("Name", "name"),
        ] {
            if let Some(value) = port.get(member) {
                written[word] = value.clone();
            }
        }
        ports.push(written);
    }
    if !ports.is_empty() {
        out["ports"] = Value::Array(ports);
    }
}

/// The paths of everything that is left.
fn leaves(value: &Value, path: &mut Vec<String>, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                path.push(key.clone());
                leaves(value, path, found);
                path.pop();
            }
        }
        Value::Null => {}
        _ => found.push(path.join(".")),
    }
}
