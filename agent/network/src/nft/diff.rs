//! From the table that is to the table that should be, as one transaction.

use std::collections::BTreeSet;

use super::table::{Chain, Family, Field, Hook, Kind, MapTo, Set, Table, Value};
use crate::nlattr::Attrs;

/// Netfilter's subsystem number of nf_tables.
const SUBSYSTEM: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
/// Elements in one message: the list must stay below the 64 KiB of an attribute.
const ELEMENTS_PER_MESSAGE: usize = 500;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;

/// Message types (`enum nf_tables_msg_types`).
#[derive(Clone, Copy)]
enum Message {
    NewTable = 0,
    DelTable = 2,
    NewChain = 3,
    DelChain = 5,
    NewRule = 6,
    DelRule = 8,
    NewSet = 9,
    DelSet = 11,
    NewElement = 12,
    DelElement = 14,
}

/// Messages of one transaction: the kernel takes all or none.
#[derive(Debug, Default)]
pub struct Batch {
    messages: Vec<u8>,
    /// Where the last message begins.
    last: Option<usize>,
    count: u32,
    maps: u32,
}

impl Batch {
    /// A transaction without messages.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn message(&mut self, kind: Message, family: Family, create: bool, attrs: &Attrs) {
        let create = match (create, kind) {
            (true, Message::NewRule) => NLM_F_CREATE | NLM_F_APPEND,
            (true, _) => NLM_F_CREATE,
            (false, _) => 0,
        };
        self.count += 1;
        self.last = Some(self.messages.len());
        header(
            &mut self.messages,
            SUBSYSTEM | kind as u16,
            NLM_F_REQUEST | create,
            self.count,
            family as u8,
            0,
            attrs.as_slice(),
        );
    }

    /// Deletes the table with all it holds; it must be there.
    pub fn delete_table(&mut self, family: Family, name: &str) {
        let mut attrs = Attrs::new();
        attrs.text(1, name);
        self.message(Message::DelTable, family, false, &attrs);
    }

    /// Makes the table if it is not there.
    fn new_table(&mut self, family: Family, name: &str) {
        let mut attrs = Attrs::new();
        attrs.text(1, name);
        self.message(Message::NewTable, family, true, &attrs);
    }

    /// The bytes to send: begin, messages, end. Only the last message asks to be acknowledged, errors come anyway.
    pub fn finish(mut self) -> Vec<u8> {
        if let Some(last) = self.last {
            let flags = u16::from_ne_bytes([self.messages[last + 6], self.messages[last + 7]]) | NLM_F_ACK;
            self.messages[last + 6..last + 8].copy_from_slice(&flags.to_ne_bytes());
        }
        let mut out = Vec::with_capacity(self.messages.len() + 40);
        header(&mut out, BATCH_BEGIN, NLM_F_REQUEST, 0, 0, SUBSYSTEM >> 8, &[]);
        out.append(&mut self.messages);
        header(&mut out, BATCH_END, NLM_F_REQUEST, self.count + 1, 0, SUBSYSTEM >> 8, &[]);
        out
    }
}

/// Appends a netlink header, a netfilter header and attributes.
pub fn header(out: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, family: u8, resource: u16, attrs: &[u8]) {
    let len = u32::try_from(20 + attrs.len()).expect("a message is below 4 GiB");
    out.extend_from_slice(&len.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&sequence.to_ne_bytes());
    out.extend_from_slice(&0u32.to_ne_bytes());
    out.push(family);
    out.push(0);
    out.extend_from_slice(&resource.to_be_bytes());
    out.extend_from_slice(attrs);
}

/// Replaces whatever the kernel holds under the table's name.
pub fn replace(batch: &mut Batch, to: &Table) {
    delete(batch, to.family, &to.name);
    update(batch, &Table::new(to.family, to.name.clone()), to);
}

/// Deletes a table, whether or not it is there.
pub fn delete(batch: &mut Batch, family: Family, name: &str) {
    // Making it first lets the deletion succeed when there was none.
    batch.new_table(family, name);
    batch.delete_table(family, name);
}

/// Turns `from`, which the kernel holds, into `to`. Both have the same family and name.
pub fn update(batch: &mut Batch, from: &Table, to: &Table) {
    if from == to {
        return;
    }
    let redeclared = |name: &String, set: &Set| from.sets.get(name).is_none_or(|old| !old.is_declared_as(set));
    let rebased = |name: &String, chain: &Chain| from.chains.get(name).is_none_or(|old| old.base != chain.base);
    if from.sets.iter().any(|(n, _)| to.sets.get(n).is_some_and(|s| redeclared(n, s)))
        || from.chains.iter().any(|(n, _)| to.chains.get(n).is_some_and(|c| rebased(n, c)))
    {
        // What a name stands for changed: nothing of that kind happens in one release, so simplicity wins.
        return replace(batch, to);
    }
    batch.new_table(to.family, &to.name);
    for (name, set) in to.sets.iter().filter(|(n, _)| !from.sets.contains_key(*n)) {
        new_set(batch, to, name, set);
    }
    for (name, chain) in to.chains.iter().filter(|(n, _)| !from.chains.contains_key(*n)) {
        new_chain(batch, to, name, chain);
    }
    for (name, old) in &from.sets {
        let kept = to.sets.get(name);
        let gone = old.elements.iter().filter(|(k, v)| kept.is_some_and(|s| s.elements.get(*k) != Some(*v)));
        elements(batch, to, name, Message::DelElement, gone.map(|(k, _)| (k.as_slice(), &Value::None)));
    }
    let changed: BTreeSet<&String> = from
        .chains
        .iter()
        .filter(|(name, old)| to.chains.get(*name).is_none_or(|new| new.rules != old.rules))
        .map(|(name, _)| name)
        .collect();
    for name in &changed {
        if !from.chains[*name].rules.is_empty() {
            chain_message(batch, to, name, Message::DelRule);
        }
    }
    for name in from.sets.keys().filter(|n| !to.sets.contains_key(*n)) {
        let mut attrs = Attrs::new();
        attrs.text(1, &to.name).text(2, name);
        batch.message(Message::DelSet, to.family, false, &attrs);
    }
    for name in from.chains.keys().filter(|n| !to.chains.contains_key(*n)) {
        chain_message(batch, to, name, Message::DelChain);
    }
    for (name, set) in &to.sets {
        let old = from.sets.get(name);
        let new = set.elements.iter().filter(|(k, v)| old.is_none_or(|s| s.elements.get(*k) != Some(*v)));
        elements(batch, to, name, Message::NewElement, new.map(|(k, v)| (k.as_slice(), v)));
    }
    for (name, chain) in to.chains.iter().filter(|(n, _)| changed.contains(n) || !from.chains.contains_key(*n)) {
        for rule in &chain.rules {
            new_rule(batch, to, name, rule);
        }
    }
}

fn new_chain(batch: &mut Batch, table: &Table, name: &str, chain: &Chain) {
    let mut attrs = Attrs::new();
    attrs.text(1, &table.name).text(3, name);
    if let Some(base) = &chain.base {
        let (number, device) = match &base.hook {
            Hook::Prerouting => (0, None),
            Hook::Forward => (2, None),
            Hook::Output => (3, None),
            Hook::Postrouting => (4, None),
            // Numbers of the netdev family: ingress 0, egress 1.
            Hook::Egress { device } => (1, Some(device)),
        };
        attrs.nest(4, |hook| {
            hook.u32(1, number).bytes(2, &base.priority.to_be_bytes());
            if let Some(device) = device {
                hook.text(3, device);
            }
        });
        // Policy accept: what no rule of ours names is not ours to judge.
        attrs.u32(5, 1).text(7, if base.kind == Kind::Nat { "nat" } else { "filter" });
    }
    batch.message(Message::NewChain, table.family, true, &attrs);
}

fn chain_message(batch: &mut Batch, table: &Table, name: &str, kind: Message) {
    let mut attrs = Attrs::new();
    // The name's attribute is 2 for rules and 3 for chains.
    let attribute = if matches!(kind, Message::DelRule) { 2 } else { 3 };
    attrs.text(1, &table.name).text(attribute, name);
    batch.message(kind, table.family, false, &attrs);
}

fn datatype(fields: &[Field]) -> u32 {
    fields.iter().fold(0, |all, field| (all << 6) | field.datatype())
}

/// Bytes of a key or value; a single field is not padded.
fn width(fields: &[Field]) -> u32 {
    let bytes: usize = match fields {
        [only] => only.len(),
        several => several.iter().map(|f| f.len().next_multiple_of(4)).sum(),
    };
    u32::try_from(bytes).expect("a handful of fields")
}

/// `NFT_SET_MAP`.
const SET_MAP: u32 = 8;
/// Type number of verdicts (`NFT_DATA_VERDICT`).
const DATA_VERDICT: u32 = 0xffff_ff00;

fn new_set(batch: &mut Batch, table: &Table, name: &str, set: &Set) {
    batch.maps += 1;
    let id = batch.maps;
    let mut attrs = Attrs::new();
    attrs.text(1, &table.name).text(2, name).u32(3, if set.to.is_some() { SET_MAP } else { 0 });
    attrs.u32(4, datatype(&set.key)).u32(5, width(&set.key));
    match &set.to {
        None => (),
        Some(MapTo::Verdict) => {
            attrs.u32(6, DATA_VERDICT).u32(7, 16);
        }
        Some(MapTo::Fields(fields)) => {
            attrs.u32(6, datatype(fields)).u32(7, width(fields));
        }
    }
    attrs.u32(10, id);
    batch.message(Message::NewSet, table.family, true, &attrs);
}

fn elements<'a>(
    batch: &mut Batch,
    table: &Table,
    set: &str,
    kind: Message,
    list: impl Iterator<Item = (&'a [u8], &'a Value)>,
) {
    let list: Vec<_> = list.collect();
    let create = matches!(kind, Message::NewElement);
    for part in list.chunks(ELEMENTS_PER_MESSAGE) {
        let mut attrs = Attrs::new();
        attrs.text(1, &table.name).text(2, set).nest(3, |all| {
            for (key, value) in part {
                element(all, key, value);
            }
        });
        batch.message(kind, table.family, create, &attrs);
    }
}

fn element(out: &mut Attrs, key: &[u8], value: &Value) {
    out.nest(1, |e| {
        e.nest(1, |k| {
            k.bytes(1, key);
        });
        match value {
            Value::None => (),
            Value::Bytes(bytes) => {
                e.nest(2, |d| {
                    d.bytes(1, bytes);
                });
            }
            Value::Verdict(verdict) => verdict.encode(e, 2),
        }
    });
}

fn new_rule(batch: &mut Batch, table: &Table, chain: &str, rule: &super::rule::Rule) {
    let mut expressions = Attrs::new();
    for expr in rule.exprs() {
        expr.encode(&mut expressions);
    }
    let mut attrs = Attrs::new();
    attrs.text(1, &table.name).text(2, chain).bytes(4 | 0x8000, expressions.as_slice());
    batch.message(Message::NewRule, table.family, true, &attrs);
}
