//! Specs in the form that the API takes, and back: for clients of it.

use serde_json::{Value, json};
use skep_proto::model::{ConfigId, NetworkSpec, SecretId, ServiceSpec};

use super::spec;
use crate::manifest::plan::each_reference;
use crate::manifest::stack::FileKind;

/// A service's spec (Engine API, `ServiceSpec`).
pub fn service_spec(spec: &ServiceSpec) -> Value {
    serde_json::to_value(spec::service::show(spec)).expect("a spec has no key that is not text")
}

/// Reads a service's spec. References to secrets and configs need no ids.
///
/// # Errors
/// What of it makes no sense, for people.
pub fn read_service_spec(mut shown: Value) -> Result<ServiceSpec, String> {
    each_reference(&mut shown, |kind, reference, _, id| {
        if reference.get(id).is_none_or(Value::is_null) {
            let none = if kind == FileKind::Secret { SecretId(0).to_string() } else { ConfigId(0).to_string() };
            reference[id] = Value::from(none);
        }
    });
    let shape = serde_json::from_value(shown).map_err(|error| error.to_string())?;
    spec::service::read(shape).map_err(|error| error.message().to_owned())
}

/// Reads the body of `POST /networks/create` as a network of the cluster.
///
/// # Errors
/// What of it makes no sense, for people.
pub fn read_network(name: &str, mut body: Value) -> Result<NetworkSpec, String> {
    if let Some(map) = body.as_object_mut() {
        map.insert("Name".to_owned(), Value::from(name));
        map.entry("Driver").or_insert_with(|| Value::from("overlay"));
    }
    let shape = serde_json::from_value(body).map_err(|error| error.to_string())?;
    match spec::network::read(shape).map_err(|error| error.message().to_owned())? {
        spec::network::NewNetwork::Cluster(spec) => Ok(spec),
        spec::network::NewNetwork::Local(_) => Err("a network of a stack is an overlay".to_owned()),
    }
}

/// The body of `POST /networks/create`.
pub fn network_create(spec: &NetworkSpec) -> Value {
    let subnet = |config: &skep_proto::model::network::IpamConfig| {
        let mut entry = serde_json::Map::new();
        let mut put = |key: &str, value: Option<String>| {
            if let Some(value) = value {
                entry.insert(key.to_owned(), Value::String(value));
            }
        };
        put("Subnet", config.subnet.map(|s| s.to_string()));
        put("IPRange", config.range.map(|r| r.to_string()));
        put("Gateway", config.gateway.map(|g| g.to_string()));
        if !config.reserved.is_empty() {
            entry.insert("AuxiliaryAddresses".to_owned(), json!(config.reserved));
        }
        Value::Object(entry)
    };
    json!({
        "Name": spec.annotations.name,
        "Labels": spec.annotations.labels,
        "Driver": if spec.driver.name.is_empty() { "overlay" } else { &spec.driver.name },
        "Options": spec.driver.options,
        "Attachable": spec.attachable,
        "Internal": spec.internal,
        "EnableIPv6": spec.ipv6,
        "IPAM": {"Driver": "default", "Config": spec.ipam.iter().map(subnet).collect::<Vec<_>>()},
    })
}
