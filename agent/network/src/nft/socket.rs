//! The tables of one network namespace: what the kernel was told last, and whether that still holds.

use std::collections::BTreeMap;
use std::io;

use super::check;
use super::diff::{self, Batch};
use super::part::Part;
use super::table::{Family, Table};
use crate::nlattr;
use crate::sys::netlink::{Answer, NetlinkSocket, Protocol};
use crate::sys::netns::Netns;

const GET_GENERATION: u16 = (10 << 8) | 16;

/// Our tables in one namespace.
#[derive(Debug, Default)]
pub struct Tables {
    loaded: BTreeMap<(Family, String), Table>,
    /// The rule set's generation after our last change. Another one means that somebody changed something.
    generation: Option<u32>,
    /// Kept open: closing one waits until the kernel has freed what former transactions replaced, some 10 ms.
    socket: Option<NetlinkSocket>,
}

impl Tables {
    /// Those of an earlier process: where they are not wanted, the first change deletes them.
    pub fn taking_over(family: Family, name: &str) -> Self {
        let table = Table::new(family, name);
        Self { loaded: [((family, name.to_owned()), table)].into(), ..Self::default() }
    }

    /// Brings our tables to `wanted`, in one transaction; tables of ours that it lacks are deleted.
    ///
    /// # Errors
    /// The kernel's refusal; then nothing changed, and the next call sends everything.
    pub fn set(&mut self, netns: &Netns, wanted: Vec<Table>) -> io::Result<()> {
        // Put back only when all went well: after an error, answers may be left in it.
        let mut socket = match self.socket.take() {
            Some(socket) => socket,
            None => NetlinkSocket::open(netns, Protocol::Netfilter)?,
        };
        let unchanged = self.generation.is_some() && self.generation == Some(generation(&mut socket)?);
        let mut batch = Batch::new();
        for table in &wanted {
            match self.loaded.get(&(table.family, table.name.clone())) {
                Some(old) if unchanged && old == table => (),
                Some(old) if unchanged => diff::update(&mut batch, old, table),
                _ => diff::replace(&mut batch, table),
            }
        }
        for (family, name) in self.loaded.keys() {
            if !wanted.iter().any(|t| t.family == *family && t.name == *name) {
                diff::delete(&mut batch, *family, name);
            }
        }
        if !batch.is_empty() {
            self.generation = None;
            socket.batch(&batch.finish())?;
        }
        self.generation = Some(generation(&mut socket)?);
        self.socket = Some(socket);
        self.loaded = wanted.into_iter().map(|t| ((t.family, t.name.clone()), t)).collect();
        Ok(())
    }

    /// Brings parts of our tables to what they should be, in one transaction, and deletes the chains that nothing leads to then. False when that needs more: a table is not there,
    /// or somebody changed the rules since; then nothing was done. Where nothing is to be done, nothing is asked either.
    ///
    /// # Errors
    /// The kernel's refusal; then nothing changed, and the next [`Self::set`] sends everything.
    pub fn patch(&mut self, netns: &Netns, parts: &[Part]) -> io::Result<bool> {
        let mut batch = Batch::new();
        let mut whole = Vec::new();
        for part in parts {
            let Some(table) = self.loaded.get(&part.key()) else { return Ok(false) };
            let part = part.clone().with_left_chains(table);
            let from = part.of(table);
            let mut to = from.clone();
            if !part.put_into(&mut to) {
                return Ok(false);
            }
            diff::update(&mut batch, &from, &to);
            whole.push(part);
        }
        if batch.is_empty() {
            return Ok(true);
        }
        let mut socket = match self.socket.take() {
            Some(socket) => socket,
            None => NetlinkSocket::open(netns, Protocol::Netfilter)?,
        };
        let unchanged = self.generation.is_some() && self.generation == Some(generation(&mut socket)?);
        if unchanged {
            self.generation = None;
            socket.batch(&batch.finish())?;
            self.generation = Some(generation(&mut socket)?);
            for part in whole {
                if let Some(table) = self.loaded.get_mut(&part.key()) {
                    part.put_into(table);
                }
            }
        }
        self.socket = Some(socket);
        Ok(unchanged)
    }

    /// Whether there is a table of ours of that name.
    pub fn has(&self, family: Family, name: &str) -> bool {
        self.loaded.contains_key(&(family, name.to_owned()))
    }

    /// Whether nobody changed the rules of the namespace after us.
    pub fn is_last_change_ours(&mut self, netns: &Netns) -> bool {
        let socket = self.socket.take().map_or_else(|| NetlinkSocket::open(netns, Protocol::Netfilter), Ok);
        let Ok(mut socket) = socket else { return false };
        let is_ours = self.generation.is_some() && generation(&mut socket).ok() == self.generation;
        self.socket = Some(socket);
        is_ours
    }

    /// Whether it is what was told last.
    pub fn is_loaded(&self, wanted: &[Table]) -> bool {
        self.loaded.len() == wanted.len()
            && wanted.iter().all(|table| self.loaded.get(&(table.family, table.name.clone())) == Some(table))
    }

    /// What of our tables the kernel does not hold as it was told. Changes nothing.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn differences(&self, netns: &Netns) -> io::Result<Vec<String>> {
        let mut found = Vec::new();
        for table in self.loaded.values() {
            let mut socket = NetlinkSocket::open(netns, Protocol::Netfilter)?;
            // Rules are what they were where nobody changed anything since.
            let is_changed = self.generation != Some(generation(&mut socket)?);
            found.extend(check::differences(&mut socket, table, is_changed)?);
        }
        Ok(found)
    }
}

/// Asks the kernel whether it has nf_tables at all.
///
/// # Errors
/// Why it cannot be spoken to.
pub fn probe(netns: &Netns) -> io::Result<()> {
    generation(&mut NetlinkSocket::open(netns, Protocol::Netfilter)?).map(drop)
}

/// Number of the rule set's last change.
fn generation(socket: &mut NetlinkSocket) -> io::Result<u32> {
    let mut request = Vec::new();
    diff::header(&mut request, GET_GENERATION, 1, 1, 0, 0, &[]);
    let Answer { messages, .. } = socket.request(&request)?;
    messages
        .iter()
        .find_map(|message| nlattr::find(message.get(4..)?, 1)?.try_into().ok().map(u32::from_be_bytes))
        .ok_or_else(|| io::Error::other("the kernel did not tell the generation of its rule set"))
}
