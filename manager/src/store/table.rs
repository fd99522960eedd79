//! Tables of whole objects (services, nodes, networks, …): at most some ten thousand each, so maps of `Arc`s.

use std::num::NonZeroU32;
use std::sync::Arc;

use bytes::Bytes;
use imbl::OrdMap;
use skep_proto::model::id::prefix_range;
use skep_proto::model::{Cluster, Config, Meta, Network, Node, Secret, Service};
use skep_proto::model::{ClusterId, ConfigId, NetworkId, NodeId, SecretId, ServiceId};

use super::codec::{CodecError, Encode};
use super::entry::Kind;
use super::refs::{ClusterRef, ConfigRef, NetworkRef, NodeRef, Reference, SecretRef, ServiceRef};

/// A kind of whole object.
pub trait Object: Encode + Sized {
    /// Names one.
    type Id: Copy + Into<RawId>;
    /// Names its row.
    type Ref: Reference;
    /// The kind's tag in entries.
    const KIND: Kind;
    /// Its id.
    fn id(&self) -> Self::Id;
    /// The name that no other visible object of the kind may have; `None` where names are free (nodes), and once
    /// removal was asked for: the name can then be given again at once.
    fn unique_name(&self) -> Option<&str>;
    /// Version and times, set by `apply`.
    fn meta(&self) -> &Meta;
    /// Version and times, set by `apply`.
    fn meta_mut(&mut self) -> &mut Meta;
}

/// The 128 bits of any id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RawId(pub u128);

impl std::fmt::Display for RawId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Every kind of id has one text form.
        ClusterId(self.0).fmt(f)
    }
}

macro_rules! objects {
    ($($kind:ident, $id:ident, $reference:ident, |$o:ident| $name:expr;)+) => {$(
        impl From<$id> for RawId {
            fn from(id: $id) -> Self {
                Self(id.0)
            }
        }

        impl Object for $kind {
            type Id = $id;
            type Ref = $reference;
            const KIND: Kind = Kind::$kind;
            fn id(&self) -> $id {
                self.id
            }
            fn unique_name(&self) -> Option<&str> {
                let $o = self;
                $name
            }
            fn meta(&self) -> &Meta {
                &self.meta
            }
            fn meta_mut(&mut self) -> &mut Meta {
                &mut self.meta
            }
        }
    )+};
}

objects! {
    Service, ServiceId, ServiceRef, |o| (!o.pending_delete).then_some(o.spec.annotations.name.as_str());
    Network, NetworkId, NetworkRef, |o| (!o.pending_delete).then_some(o.spec.annotations.name.as_str());
    Secret, SecretId, SecretRef, |o| Some(o.spec.annotations.name.as_str());
    Config, ConfigId, ConfigRef, |o| Some(o.spec.annotations.name.as_str());
    Node, NodeId, NodeRef, |_o| None;
    Cluster, ClusterId, ClusterRef, |o| Some(o.spec.annotations.name.as_str());
}

#[derive(Debug)]
pub(super) struct Slot<T> {
    generation: NonZeroU32,
    hash: u64,
    value: Arc<T>,
}

impl<T> Clone for Slot<T> {
    fn clone(&self) -> Self {
        Self { generation: self.generation, hash: self.hash, value: self.value.clone() }
    }
}

/// All objects of a kind, by handle, id and name. Cloning is cheap; a clone never changes.
#[derive(Debug)]
pub struct Table<T> {
    slots: OrdMap<u32, Slot<T>>,
    /// Freed positions with the generation that comes next there.
    free: OrdMap<u32, NonZeroU32>,
    next: u32,
    ids: OrdMap<u128, u32>,
    names: OrdMap<Arc<str>, u32>,
}

impl<T> Clone for Table<T> {
    fn clone(&self) -> Self {
        Self {
            slots: self.slots.clone(),
            free: self.free.clone(),
            next: self.next,
            ids: self.ids.clone(),
            names: self.names.clone(),
        }
    }
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { slots: OrdMap::new(), free: OrdMap::new(), next: 0, ids: OrdMap::new(), names: OrdMap::new() }
    }
}

impl<T: Object> Table<T> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// One above the highest handle ever given: the length of a column by handle.
    pub fn handles(&self) -> usize {
        self.next as usize
    }

    /// The object of that id.
    pub fn get(&self, id: T::Id) -> Option<&Arc<T>> {
        self.by_raw_id(id.into().0)
    }

    /// The object that has this name and was not asked to go.
    pub fn named(&self, name: &str) -> Option<&Arc<T>> {
        self.at(*self.names.get(name)?)
    }

    /// Objects whose id starts with `prefix`, in the order of their ids.
    pub fn by_prefix(&self, prefix: &str) -> impl Iterator<Item = &Arc<T>> + '_ {
        let range = prefix_range(prefix);
        let found = range.into_iter().flat_map(|(low, high)| self.ids.range(low..=high));
        found.filter_map(|(_, handle)| self.at(*handle))
    }

    /// The reference of the object of that id.
    pub fn reference(&self, id: T::Id) -> Option<T::Ref> {
        let handle = *self.ids.get(&id.into().0)?;
        Some(T::Ref::new(handle, self.slots.get(&handle)?.generation))
    }

    /// The object that a reference names, unless it is gone.
    pub fn lookup(&self, reference: T::Ref) -> Option<&Arc<T>> {
        let slot = self.slots.get(&reference.handle())?;
        (slot.generation == reference.generation()).then_some(&slot.value)
    }

    /// The object at a handle.
    pub fn at(&self, handle: u32) -> Option<&Arc<T>> {
        self.slots.get(&handle).map(|slot| &slot.value)
    }

    /// All, by handle.
    pub fn iter(&self) -> impl Iterator<Item = (T::Ref, &Arc<T>)> + '_ {
        self.slots.iter().map(|(handle, slot)| (T::Ref::new(*handle, slot.generation), &slot.value))
    }

    /// All, by handle, without their references.
    pub fn values(&self) -> impl Iterator<Item = &Arc<T>> + '_ {
        self.slots.iter().map(|(_, slot)| &slot.value)
    }

    pub(crate) fn by_raw_id(&self, id: u128) -> Option<&Arc<T>> {
        self.at(*self.ids.get(&id)?)
    }

    pub(super) fn raw_reference(&self, id: u128) -> Option<T::Ref> {
        let handle = *self.ids.get(&id)?;
        Some(T::Ref::new(handle, self.slots.get(&handle)?.generation))
    }

    /// Puts an object, new or changed. Returns its reference and what to XOR into the digest.
    pub(super) fn put(&mut self, value: T, hash: impl FnOnce(u32, NonZeroU32, &Bytes) -> u64) -> (T::Ref, u64) {
        let id = value.id().into().0;
        let (handle, generation, old) = match self.ids.get(&id).copied() {
            Some(handle) => {
                let slot = self.slots.get(&handle).expect("an indexed id has a slot");
                (handle, slot.generation, Some((slot.hash, slot.value.clone())))
            }
            None => {
                let (handle, generation) = self.take_free();
                (handle, generation, None)
            }
        };
        let mut xor = 0;
        if let Some((old_hash, old)) = old {
            xor ^= old_hash;
            self.drop_name(&old, handle);
        }
        let hash = hash(handle, generation, &value.encode());
        if let Some(name) = value.unique_name() {
            self.names.insert(name.into(), handle);
        }
        self.ids.insert(id, handle);
        self.slots.insert(handle, Slot { generation, hash, value: Arc::new(value) });
        (T::Ref::new(handle, generation), xor ^ hash)
    }

    /// Removes an object. Returns it and what to XOR into the digest.
    pub(super) fn remove(&mut self, id: u128) -> Option<(T::Ref, Arc<T>, u64)> {
        let handle = self.ids.remove(&id)?;
        let slot = self.slots.remove(&handle).expect("an indexed id has a slot");
        self.drop_name(&slot.value, handle);
        self.free.insert(handle, slot.generation.saturating_add(1));
        Some((T::Ref::new(handle, slot.generation), slot.value, slot.hash))
    }

    fn drop_name(&mut self, old: &T, handle: u32) {
        if let Some(name) = old.unique_name()
            && self.names.get(name) == Some(&handle)
        {
            self.names.remove(name);
        }
    }

    fn take_free(&mut self) -> (u32, NonZeroU32) {
        if let Some((handle, generation)) = self.free.get_min().copied() {
            self.free.remove(&handle);
            (handle, generation)
        } else {
            let handle = self.next;
            self.next += 1;
            (handle, NonZeroU32::MIN)
        }
    }

    /// The part of the digest that the objects make.
    pub(super) fn hash(&self) -> u64 {
        self.slots.values().fold(0, |sum, slot| sum ^ slot.hash)
    }

    /// What a snapshot keeps besides the objects: the next handle, and the freed ones.
    pub(super) fn allocation(&self) -> (u32, Vec<(u32, NonZeroU32)>) {
        (self.next, self.free.iter().map(|(handle, generation)| (*handle, *generation)).collect())
    }

    pub(super) fn restore_allocation(&mut self, next: u32, free: Vec<(u32, NonZeroU32)>) {
        self.next = next;
        self.free = free.into_iter().collect();
    }

    pub(super) fn restore(
        &mut self,
        handle: u32,
        generation: NonZeroU32,
        bytes: &[u8],
        hash: impl FnOnce(u32, NonZeroU32, &Bytes) -> u64,
    ) -> Result<u64, CodecError> {
        let value = T::decode(bytes)?;
        let hash = hash(handle, generation, &value.encode());
        if let Some(name) = value.unique_name() {
            self.names.insert(name.into(), handle);
        }
        self.ids.insert(value.id().into().0, handle);
        self.slots.insert(handle, Slot { generation, hash, value: Arc::new(value) });
        Ok(hash)
    }
}
