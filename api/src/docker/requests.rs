//! Specs in the form that the API takes: for clients of it.

use serde_json::{Value, json};
use skep_proto::model::{NetworkSpec, ServiceSpec};

use super::spec;

/// A service's spec (Engine API, `ServiceSpec`).
pub fn service_spec(spec: &ServiceSpec) -> Value {
    serde_json::to_value(spec::service::show(spec)).expect("a spec has no key that is not text")
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
