//! A version of the state as a stream of records, and back.
//!
//! Indexes and sums are not written: they are made again from the rows, and the digest, which is written, tells whether
//! what was read is what was held. Sealing and cutting into chunks is Raft's.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use skep_proto::model::{Cluster, Config, Network, Node, Secret, Service, Timestamp};

use super::codec::Encode;
use super::derived::Parts;
use super::digest::{self, Domain};
use super::entry::Kind;
use super::put::{mesh_ports, object_hash};
use super::refs::Reference;
use super::row::{Attached, TaskExtra, TaskRow};
use super::spec::SharedSpec;
use super::state::{AnsweredRequest, State};
use super::table::{Object, Table};

const MAGIC: &[u8; 8] = b"skepsnap";
const FORMAT: u8 = 1;
const COMPRESSION: i32 = 1;
/// A record holds one object at most, and those are bounded when they are made.
const MOST_RECORD: usize = 8 << 20;

/// Append only, like changes.
#[derive(Serialize, Deserialize)]
enum Record {
    Head {
        index: u64,
        now_ms: u64,
        node_index: u16,
        digest: u64,
    },
    Object {
        kind: Kind,
        handle: u32,
        generation: NonZeroU32,
        bytes: Vec<u8>,
    },
    Allocation {
        kind: Kind,
        next: u32,
        free: Vec<(u32, NonZeroU32)>,
    },
    /// A spec that tasks were made from, as the service it belonged to then.
    Spec {
        service: u32,
        version: u64,
        bytes: Vec<u8>,
    },
    Row {
        row: TaskRow,
        used: bool,
    },
    Extra {
        task: u32,
        extra: TaskExtra,
    },
    Blocked {
        service: u32,
        version: u64,
        text: String,
    },
    Cursor {
        network: u32,
        address: u32,
    },
    Request {
        id: u128,
        request: AnsweredRequest,
    },
    End,
    /// A node that was removed, and until when it is refused.
    Removed {
        node: u128,
        until_ms: u64,
    },
    /// When the last certificate ends that was made before their life was set anew.
    CertificatesUntil {
        ms: u64,
    },
    Attached {
        task: u32,
        attached: Attached,
    },
    /// The IPv6 address of a network that was given last.
    Cursor6 {
        network: u32,
        address: Ipv6Addr,
    },
    /// The IPv6 address that an attached container asks for.
    Asked6 {
        task: u32,
        address: Ipv6Addr,
    },
    /// A task's IPv6 address on its first network.
    Address6 {
        task: u32,
        address: Ipv6Addr,
    },
}

/// Writes a version.
pub(super) fn write(state: &State, out: &mut dyn Write) -> io::Result<()> {
    out.write_all(MAGIC)?;
    out.write_all(&[FORMAT])?;
    let mut out = zstd::stream::Encoder::new(out, COMPRESSION)?;
    let mut buffer = Vec::new();
    let mut put = |record: Record| -> io::Result<()> {
        buffer.clear();
        buffer = postcard::to_extend(&record, std::mem::take(&mut buffer)).map_err(io::Error::other)?;
        out.write_all(&u32::try_from(buffer.len()).map_err(io::Error::other)?.to_le_bytes())?;
        out.write_all(&buffer)
    };
    let State { index, now, node_index, digest, .. } = *state;
    put(Record::Head { index, now_ms: now.0, node_index, digest })?;
    write_table(&state.clusters, &mut put)?;
    write_table(&state.nodes, &mut put)?;
    write_table(&state.networks, &mut put)?;
    write_table(&state.services, &mut put)?;
    write_table(&state.secrets, &mut put)?;
    write_table(&state.configs, &mut put)?;
    for ((service, version), spec) in &state.specs {
        put(Record::Spec { service: *service, version: *version, bytes: spec.service.encode().into() })?;
    }
    let has_free = state.rows.in_use() < state.rows.capacity();
    for (handle, row) in state.rows.iter_all() {
        put(Record::Row { row: *row, used: !has_free || state.rows.is_used(handle) })?;
    }
    for (task, extra) in &state.extras {
        put(Record::Extra { task: *task, extra: (**extra).clone() })?;
    }
    for (task, attached) in &state.attached {
        put(Record::Attached { task: *task, attached: (**attached).clone() })?;
    }
    for ((service, version), text) in &state.blocked {
        put(Record::Blocked { service: *service, version: *version, text: text.to_string() })?;
    }
    for (task, address) in &state.addresses6 {
        put(Record::Address6 { task: *task, address: *address })?;
    }
    for (task, address) in &state.asked6 {
        put(Record::Asked6 { task: *task, address: *address })?;
    }
    for (network, address) in &state.cursors.v4 {
        put(Record::Cursor { network: *network, address: *address })?;
    }
    for (network, address) in &state.cursors.v6 {
        put(Record::Cursor6 { network: *network, address: *address })?;
    }
    for (id, request) in &state.requests {
        put(Record::Request { id: *id, request: (**request).clone() })?;
    }
    for (node, until_ms) in &state.removed {
        put(Record::Removed { node: *node, until_ms: *until_ms })?;
    }
    put(Record::CertificatesUntil { ms: state.certificates_until.0 })?;
    put(Record::End)?;
    out.finish()?.flush()
}

fn write_table<T: Object>(table: &Table<T>, put: &mut impl FnMut(Record) -> io::Result<()>) -> io::Result<()> {
    for (reference, object) in table.iter() {
        let (handle, generation) = (reference.handle(), reference.generation());
        put(Record::Object { kind: T::KIND, handle, generation, bytes: object.encode().into() })?;
    }
    let (next, free) = table.allocation();
    put(Record::Allocation { kind: T::KIND, next, free })
}

fn broken(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

/// Reads a version.
///
/// # Errors
/// When the bytes are no snapshot, were written by a newer release, or are not what was held.
pub(super) fn read(from: &mut dyn Read) -> io::Result<State> {
    let mut head = [0; MAGIC.len() + 1];
    from.read_exact(&mut head)?;
    if head[..MAGIC.len()] != *MAGIC {
        return Err(broken("not a snapshot of skep"));
    }
    if head[MAGIC.len()] != FORMAT {
        return Err(broken(format!(
            "the snapshot has format {}, this release reads {FORMAT}: upgrade this manager",
            head[MAGIC.len()]
        )));
    }
    let mut input = BufReader::new(zstd::stream::Decoder::new(from)?);
    let mut reader = Restore::default();
    while reader.take(next(&mut input)?)? {}
    reader.finish()
}

fn next(input: &mut impl BufRead) -> io::Result<Record> {
    let mut length = [0; 4];
    input.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MOST_RECORD {
        return Err(broken(format!("a record of the snapshot claims {length} bytes")));
    }
    let mut bytes = vec![0; length];
    input.read_exact(&mut bytes)?;
    postcard::from_bytes(&bytes).map_err(broken)
}

#[derive(Default)]
struct Restore {
    state: State,
    expected: u64,
}

impl Restore {
    /// Takes one record; false after the last.
    fn take(&mut self, record: Record) -> io::Result<bool> {
        let state = &mut self.state;
        match record {
            Record::Head { index, now_ms, node_index, digest } => {
                (state.index, state.now, state.node_index) = (index, Timestamp(now_ms), node_index);
                self.expected = digest;
            }
            Record::Object { kind, handle, generation, bytes } => {
                let xor = self.restore_object(kind, handle, generation, &bytes)?;
                self.state.digest ^= xor;
            }
            Record::Allocation { kind, next, free } => match kind {
                Kind::Cluster => state.clusters.restore_allocation(next, free),
                Kind::Node => state.nodes.restore_allocation(next, free),
                Kind::Service => state.services.restore_allocation(next, free),
                Kind::Network => state.networks.restore_allocation(next, free),
                Kind::Secret => state.secrets.restore_allocation(next, free),
                Kind::Config => state.configs.restore_allocation(next, free),
            },
            Record::Spec { service, version, bytes } => {
                let object = Arc::new(Service::decode(&bytes).map_err(broken)?);
                state.specs.insert((service, version), SharedSpec::of(&object));
            }
            Record::Row { row, used } => {
                let handle = state.rows.restore(row, used);
                if used {
                    state.digest ^= digest::of(Domain::Row, handle, row);
                }
            }
            Record::Extra { task, extra } => {
                state.digest ^= digest::of(Domain::Extra, task, &extra);
                state.extras.insert(task, Arc::new(extra));
            }
            Record::Attached { task, attached } => {
                state.digest ^= digest::of(Domain::Attached, task, &attached);
                state.attached.insert(task, Arc::new(attached));
            }
            Record::Blocked { service, version, text } => {
                state.digest ^= digest::of(Domain::Blocked, (service, version), text.as_str());
                state.blocked.insert((service, version), text.into());
            }
            Record::Cursor { network, address } => {
                state.restore_cursor(network, IpAddr::V4(address.into()));
            }
            Record::Cursor6 { network, address } => state.restore_cursor(network, IpAddr::V6(address)),
            Record::Asked6 { task, address } => state.ask_address6(task, address),
            Record::Address6 { task, address } => state.put_address6(task, address),
            Record::Request { id, request } => {
                state.digest ^= digest::of(Domain::Request, id, request.at_ms);
                state.request_times.insert((request.at_ms, id));
                state.requests.insert(id, Arc::new(request));
            }
            Record::Removed { node, until_ms } => state.restore_removed(node, until_ms),
            Record::CertificatesUntil { ms } => state.certificates_until = Timestamp(ms),
            Record::End => return Ok(false),
        }
        Ok(true)
    }

    fn restore_object(&mut self, kind: Kind, handle: u32, generation: NonZeroU32, bytes: &[u8]) -> io::Result<u64> {
        fn into<T: Object>(table: &mut Table<T>, handle: u32, generation: NonZeroU32, bytes: &[u8]) -> io::Result<u64> {
            let hash = |h: u32, g: NonZeroU32, b: &Bytes| object_hash(T::KIND)(h, g, b);
            table.restore(handle, generation, bytes, hash).map_err(broken)
        }
        let state = &mut self.state;
        match kind {
            Kind::Cluster => into::<Cluster>(&mut state.clusters, handle, generation, bytes),
            Kind::Node => into::<Node>(&mut state.nodes, handle, generation, bytes),
            Kind::Service => into::<Service>(&mut state.services, handle, generation, bytes),
            Kind::Network => into::<Network>(&mut state.networks, handle, generation, bytes),
            Kind::Secret => into::<Secret>(&mut state.secrets, handle, generation, bytes),
            Kind::Config => into::<Config>(&mut state.configs, handle, generation, bytes),
        }
    }

    fn finish(self) -> io::Result<State> {
        let mut state = self.state;
        state.derive_again();
        if state.digest != self.expected {
            return Err(broken("the snapshot's digest is not that of its contents: it is damaged"));
        }
        Ok(state)
    }
}

impl State {
    /// Writes the state in the form of a snapshot.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        write(self, out)
    }

    /// Makes every index and sum from the rows and objects.
    pub(super) fn derive_again(&mut self) {
        self.nodes_index = self.index;
        self.derived = super::derived::Derived::default();
        let mut counts = std::collections::BTreeMap::<(u32, u64), u32>::new();
        for (handle, row) in self.rows.iter() {
            let extra = self.extras.get(&handle).cloned();
            let key = row.service.map(|s| (s.handle(), row.spec_version));
            let spec = key.and_then(|key| self.specs.get(&key));
            let address6 = self.addresses6.get(&handle).copied();
            self.derived.task(handle, None, Some(Parts { row, address6, extra: extra.as_deref() }), spec);
            if let Some(key) = key {
                *counts.entry(key).or_default() += 1;
            }
        }
        let keys: Vec<_> = self.specs.keys().copied().collect();
        for key in keys {
            if let Some(spec) = self.specs.get_mut(&key) {
                spec.tasks = counts.get(&key).copied().unwrap_or_default();
            }
        }
        self.derive_from_objects();
    }

    fn derive_from_objects(&mut self) {
        for network in self.networks.values() {
            if let Some(vni) = network.vni {
                self.derived.vnis.insert(vni, network.id);
            }
        }
        for (reference, service) in self.services.iter() {
            for vip in &service.endpoint.virtual_ips {
                if let Some(network) = self.networks.reference(vip.network) {
                    self.derived.addresses.insert(network, vip.address.addr());
                }
            }
            for port in mesh_ports(service) {
                self.derived.ingress_ports.insert(port, reference.handle());
            }
        }
    }

    /// Counts everything again and compares: indexes, sums, counts of specs, the digest. For tests and the simulation.
    ///
    /// # Errors
    /// Names what differs.
    pub fn check(&self) -> Result<(), String> {
        let mut again = self.clone();
        again.derive_again();
        if again.derived != self.derived {
            return Err(format!(
                "indexes or sums differ from a recount: {:?} against {:?}",
                self.derived, again.derived
            ));
        }
        let tasks = |state: &Self| state.specs.values().map(|spec| spec.tasks).collect::<Vec<_>>();
        if tasks(&again) != tasks(self) {
            return Err("counts of tasks by spec differ from a recount".into());
        }
        let mut digest = 0;
        digest ^= self.rows.iter().fold(0, |sum, (h, row)| sum ^ digest::of(Domain::Row, h, row));
        digest ^= self.extras.iter().fold(0, |sum, (h, extra)| sum ^ digest::of(Domain::Extra, *h, &**extra));
        digest ^= self.attached.iter().fold(0, |sum, (h, one)| sum ^ digest::of(Domain::Attached, *h, &**one));
        digest ^= self.blocked.iter().fold(0, |sum, (key, text)| sum ^ digest::of(Domain::Blocked, *key, &**text));
        digest ^= self.asked6.iter().fold(0, |sum, (h, asked)| sum ^ digest::of(Domain::Asked6, *h, *asked));
        digest ^= self.addresses6.iter().fold(0, |sum, (h, own)| sum ^ digest::of(Domain::Address6, *h, *own));
        digest ^= self.cursors.digest();
        digest ^= self.requests.iter().fold(0, |sum, (id, r)| sum ^ digest::of(Domain::Request, *id, r.at_ms));
        digest ^= self.removed_digest();
        digest ^= self.clusters.hash() ^ self.nodes.hash() ^ self.services.hash();
        digest ^= self.networks.hash() ^ self.secrets.hash() ^ self.configs.hash();
        if digest == self.digest { Ok(()) } else { Err("the rolling digest differs from a recount".into()) }
    }
}
