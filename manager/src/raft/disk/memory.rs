//! A disk in memory that loses what was not flushed when it crashes, and fails when it is told to.
//!
//! It keeps what a careful reading of POSIX promises and nothing more: of the writes since the last flush any set of
//! 512-byte sectors may survive a crash, and of the changes of names since the last flush of the folder any prefix.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{Disk, DiskFile};

const SECTOR: usize = 512;

/// A folder in memory. Clones are the same folder.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    name_changes: Vec<NameChange>,
    files: BTreeMap<u64, Contents>,
    next: u64,
    /// Handles opened before the last crash are dead.
    epoch: u64,
    fault: Option<Fault>,
}

#[derive(Debug, Clone)]
enum NameChange {
    Set(String, u64),
    Remove(String),
}

#[derive(Debug, Clone, Default)]
struct Contents {
    now: Vec<u8>,
    durable: Vec<u8>,
    unflushed: Vec<(usize, Vec<u8>)>,
}

/// What goes wrong, once as many calls that write or flush as `after` have gone well.
#[derive(Debug, Clone, Copy)]
struct Fault {
    after: u64,
    kind: io::ErrorKind,
}

fn put(into: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if into.len() < at + bytes.len() {
        into.resize(at + bytes.len(), 0);
    }
    into[at..at + bytes.len()].copy_from_slice(bytes);
}

impl Inner {
    fn check(&mut self) -> io::Result<()> {
        match &mut self.fault {
            Some(Fault { after: 0, kind }) => Err(io::Error::new(*kind, "the disk was told to fail")),
            Some(fault) => {
                fault.after -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn rename(&mut self, change: NameChange) {
        apply(&mut self.names, &change);
        self.name_changes.push(change);
    }

    fn id(&self, name: &str) -> io::Result<u64> {
        self.names.get(name).copied().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, name.to_owned()))
    }
}

fn apply(names: &mut BTreeMap<String, u64>, change: &NameChange) {
    match change {
        NameChange::Set(name, id) => drop(names.insert(name.clone(), *id)),
        NameChange::Remove(name) => drop(names.remove(name)),
    }
}

impl Memory {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no one panics while holding the disk")
    }

    /// A power cut. What was not flushed survives in part, chosen by `seed`; files open now can no longer be written.
    pub fn crash(&self, seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut inner = self.lock();
        let inner = &mut *inner;
        inner.epoch += 1;
        inner.fault = None;
        let survive = rng.random_range(0..=inner.name_changes.len());
        for change in inner.name_changes.drain(..).take(survive) {
            apply(&mut inner.durable_names, &change);
        }
        inner.names.clone_from(&inner.durable_names);
        for file in inner.files.values_mut() {
            for (at, bytes) in std::mem::take(&mut file.unflushed) {
                for (i, sector) in bytes.chunks(SECTOR).enumerate() {
                    if rng.random() {
                        put(&mut file.durable, at + i * SECTOR, sector);
                    }
                }
            }
            file.now.clone_from(&file.durable);
        }
        let named: Vec<u64> = inner.names.values().copied().collect();
        inner.files.retain(|id, _| named.contains(id));
    }

    /// From now on, after as many more calls as `after`, everything that writes or flushes fails.
    pub fn fail(&self, after: u64, kind: io::ErrorKind) {
        self.lock().fault = Some(Fault { after, kind });
    }

    /// The disk works again.
    pub fn repair(&self) {
        self.lock().fault = None;
    }

    /// The bytes of a file as a reader would see them now.
    pub fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let inner = self.lock();
        Ok(inner.files[&inner.id(name)?].now.clone())
    }

    /// Replaces or makes a file, durably.
    pub fn write(&self, name: &str, bytes: &[u8]) {
        let mut inner = self.lock();
        inner.next += 1;
        let id = inner.next;
        inner.files.insert(id, Contents { now: bytes.to_vec(), durable: bytes.to_vec(), unflushed: Vec::new() });
        inner.names.insert(name.to_owned(), id);
        inner.durable_names.insert(name.to_owned(), id);
    }

    /// A copy that shares nothing with this disk.
    pub fn copy(&self) -> Self {
        let copy = Self::default();
        let inner = self.lock();
        for (name, id) in &inner.names {
            copy.write(name, &inner.files[id].now);
        }
        drop(inner);
        copy
    }

    fn handle(&self, id: u64, epoch: u64) -> Box<dyn DiskFile> {
        Box::new(Handle { disk: self.clone(), id, epoch })
    }
}

impl Disk for Memory {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.lock().names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let inner = self.lock();
        Ok(self.handle(inner.id(name)?, inner.epoch))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut inner = self.lock();
        inner.check()?;
        inner.next += 1;
        let id = inner.next;
        inner.files.insert(id, Contents::default());
        inner.rename(NameChange::Set(name.to_owned(), id));
        Ok(self.handle(id, inner.epoch))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut inner = self.lock();
        inner.check()?;
        let id = inner.id(from)?;
        // One change in the order that cannot lose the file: the new name first.
        inner.rename(NameChange::Set(to.to_owned(), id));
        inner.rename(NameChange::Remove(from.to_owned()));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut inner = self.lock();
        inner.check()?;
        inner.id(name)?;
        inner.rename(NameChange::Remove(name.to_owned()));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.lock();
        inner.check()?;
        let inner = &mut *inner;
        inner.name_changes.clear();
        inner.durable_names.clone_from(&inner.names);
        Ok(())
    }
}

struct Handle {
    disk: Memory,
    id: u64,
    epoch: u64,
}

impl Handle {
    fn with<T>(&self, writes: bool, act: impl FnOnce(&mut Contents) -> io::Result<T>) -> io::Result<T> {
        let mut inner = self.disk.lock();
        if inner.epoch != self.epoch {
            return Err(io::Error::other("the file was opened before the crash"));
        }
        if writes {
            inner.check()?;
        }
        act(inner.files.get_mut(&self.id).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?)
    }
}

impl DiskFile for Handle {
    fn len(&self) -> io::Result<u64> {
        self.with(false, |file| Ok(file.now.len() as u64))
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        self.with(false, |file| {
            let bytes = file.now.get(at..at + buf.len());
            buf.copy_from_slice(bytes.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?);
            Ok(())
        })
    }

    fn write_all_at(&mut self, buf: &[u8], offset: u64) -> io::Result<()> {
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        self.with(true, |file| {
            put(&mut file.now, at, buf);
            file.unflushed.push((at, buf.to_vec()));
            Ok(())
        })
    }

    fn sync(&mut self) -> io::Result<()> {
        self.with(true, |file| {
            for (at, bytes) in std::mem::take(&mut file.unflushed) {
                put(&mut file.durable, at, &bytes);
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_flushed_survives_a_crash() {
        for seed in 0..50 {
            let disk = Memory::default();
            let mut file = disk.create("a").unwrap();
            file.write_all_at(&[1; 2000], 0).unwrap();
            file.sync().unwrap();
            disk.sync().unwrap();
            file.write_all_at(&[2; 2000], 2000).unwrap();
            disk.create("b").unwrap();
            disk.crash(seed);
            let bytes = disk.read("a").unwrap();
            assert_eq!(bytes[..2000], [1; 2000]);
            assert!(file.sync().is_err(), "a handle from before the crash is dead");
        }
    }

    #[test]
    fn what_was_not_flushed_may_survive_in_any_part() {
        let (mut whole, mut lost, mut torn) = (0, 0, 0);
        for seed in 0..200 {
            let disk = Memory::default();
            let mut file = disk.create("a").unwrap();
            file.sync().unwrap();
            disk.sync().unwrap();
            file.write_all_at(&[2; 1024], 0).unwrap();
            disk.crash(seed);
            match disk.read("a").unwrap() {
                bytes if bytes.is_empty() => lost += 1,
                bytes if bytes == [2; 1024] => whole += 1,
                _ => torn += 1,
            }
        }
        assert!(whole > 0 && lost > 0 && torn > 0, "{whole} {lost} {torn}");
    }
}
