//! Published ports of the routing mesh: those asked for, and the next free ones for the others.

use std::collections::BTreeMap;

use skep_proto::model::service::{EndpointSpec, PortConfig, Protocol, PublishMode};
use skep_proto::model::{Service, ServiceId};

use crate::store::State;

/// Where ports are taken from that nobody chose (swarmkit's range).
const DYNAMIC: std::ops::RangeInclusive<u16> = 30000..=32767;

/// Why [`Ports::resolve`] found nothing.
pub(super) fn none_free() -> String {
    format!("no published port is free between {} and {}: choose one", DYNAMIC.start(), DYNAMIC.end())
}

/// Who has which port.
pub(super) struct Ports(BTreeMap<(Protocol, u16), ServiceId>);

impl Ports {
    pub(super) fn of(state: &State) -> Self {
        let services = state.services().values().filter(|s| !s.pending_delete);
        let held = services.flat_map(|s| {
            let asked = s.spec.endpoint.iter().flat_map(|e| &e.ports);
            s.endpoint.ports.iter().chain(asked).filter_map(|p| Some(((p.protocol, p.published?), s.id)))
        });
        Self(held.collect())
    }

    /// The ports of a service with their numbers; `None` when no number is free.
    pub(super) fn resolve(&mut self, service: &Service, spec: &EndpointSpec) -> Option<Vec<PortConfig>> {
        let mut resolved = Vec::with_capacity(spec.ports.len());
        for port in &spec.ports {
            let number = match (port.mode, port.published.filter(|n| *n != 0)) {
                (_, Some(number)) => Some(number),
                // The node of each task chooses.
                (PublishMode::Host, None) => None,
                (PublishMode::Ingress, None) => Some(self.keep_or_choose(service, port, &resolved)?),
            };
            resolved.push(PortConfig { published: number, ..port.clone() });
        }
        Some(resolved)
    }

    /// The number that the port had before, or a free one.
    fn keep_or_choose(&mut self, service: &Service, port: &PortConfig, resolved: &[PortConfig]) -> Option<u16> {
        let is_new =
            |number: &u16| !resolved.iter().any(|p| p.protocol == port.protocol && p.published == Some(*number));
        let before = service
            .endpoint
            .ports
            .iter()
            .filter(|p| (p.protocol, p.target, p.mode) == (port.protocol, port.target, port.mode));
        if let Some(number) = before.filter_map(|p| p.published).find(|n| DYNAMIC.contains(n) && is_new(n)) {
            return Some(number);
        }
        let number = DYNAMIC.clone().find(|number| !self.0.contains_key(&(port.protocol, *number)))?;
        self.0.insert((port.protocol, number), service.id);
        Some(number)
    }
}
