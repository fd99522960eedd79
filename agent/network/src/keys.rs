//! The node's WireGuard keys: one file each, named by its public key and readable by root alone, and a file that names the
//! one in use. A private key never leaves this folder but into the memory of who encrypts with it.
//!
//! ```text
//! keys/current        the public key in use, in hex
//! keys/HEX.key        its private key, in base64 as WireGuard's tools write it
//! keys/HEX.key        the key that the node goes over to, while it does
//! ```

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use skep_wireguard::{PrivateKey, PublicKey};

use crate::tunnel::Key;

/// Name of the file that names the key in use.
const CURRENT: &str = "current";

/// The node's keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    dir: PathBuf,
    /// Public key in use.
    pub current: Key,
    /// Public key that the node goes over to.
    pub next: Option<Key>,
}

impl Keys {
    /// The keys in `dir`; the first one is made when there is none.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(dir: &Path) -> io::Result<Self> {
        match fs::DirBuilder::new().mode(0o700).create(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => (),
        }
        let present = list(dir)?;
        let named = fs::read_to_string(dir.join(CURRENT)).ok().and_then(|text| parse(text.trim()));
        let current = match named.filter(|key| present.contains(key)) {
            Some(key) => key,
            None => {
                // The first one, or one whose file was lost: peers learn of the new one as of any other.
                let key = make(dir)?;
                set_current(dir, key)?;
                key
            }
        };
        let mut others = present.into_iter().filter(|key| *key != current);
        let next = others.next().filter(|_| named == Some(current));
        for left in others {
            remove(dir, left)?;
        }
        Ok(Self { dir: dir.to_owned(), current, next })
    }

    /// Makes the next key, unless there is one already.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn begin(&mut self) -> io::Result<Key> {
        match self.next {
            Some(next) => Ok(next),
            None => Ok(*self.next.insert(make(&self.dir)?)),
        }
    }

    /// Goes over to the next key, if `key` is it; true if so. The former one is gone.
    ///
    /// # Errors
    /// Those of the file system. Once the name is written the change stands.
    pub fn switch(&mut self, key: Key) -> io::Result<bool> {
        if self.next != Some(key) {
            return Ok(false);
        }
        set_current(&self.dir, key)?;
        let former = std::mem::replace(&mut self.current, key);
        self.next = None;
        remove(&self.dir, former)?;
        Ok(true)
    }
}

/// The private key of a public one.
///
/// # Errors
/// When it is not there, or is not its.
pub fn load(dir: &Path, key: Key) -> io::Result<PrivateKey> {
    let text = zeroize::Zeroizing::new(fs::read_to_string(file(dir, key))?);
    let private: PrivateKey = text.trim().parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    match PublicKey::from(&private).to_bytes() == key {
        true => Ok(private),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, "the file holds another key than its name says")),
    }
}

/// Removes all keys: the node has left its cluster.
///
/// # Errors
/// Those of the file system.
pub fn forget(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn file(dir: &Path, key: Key) -> PathBuf {
    dir.join(format!("{}.key", hex(key)))
}

fn hex(key: Key) -> String {
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn parse(text: &str) -> Option<Key> {
    let mut key = Key::default();
    if text.len() != 2 * key.len() || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, digits) in key.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(key)
}

fn list(dir: &Path) -> io::Result<Vec<Key>> {
    let names = fs::read_dir(dir)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let keys = names.filter_map(|name| parse(name.strip_suffix(".key")?));
    // A file that a power failure cut short holds no key.
    let mut keys: Vec<Key> = keys.filter(|key| load(dir, *key).is_ok()).collect();
    keys.sort_unstable();
    Ok(keys)
}

fn make(dir: &Path) -> io::Result<Key> {
    let private = PrivateKey::generate();
    let key = PublicKey::from(&private).to_bytes();
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file(dir, key))?;
    file.write_all(private.to_base64().as_bytes())?;
    file.sync_all()?;
    Ok(key)
}

fn set_current(dir: &Path, key: Key) -> io::Result<()> {
    let new = dir.join("current.new");
    let mut file = fs::File::create(&new)?;
    file.write_all(hex(key).as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, dir.join(CURRENT))?;
    fs::File::open(dir)?.sync_all()
}

fn remove(dir: &Path, key: Key) -> io::Result<()> {
    match fs::remove_file(file(dir, key)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_kept_for_root_alone_and_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("keys");
        let keys = Keys::open(&dir).unwrap();
        assert_eq!(Keys::open(&dir).unwrap(), keys);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&dir), mode(&file(&dir, keys.current))), (0o700, 0o600));
        assert_eq!(PublicKey::from(&load(&dir, keys.current).unwrap()).to_bytes(), keys.current);
        assert!(load(&dir, [1; 32]).is_err());
    }

    #[test]
    fn a_change_of_keys_goes_on_after_a_crash_at_any_step() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        let mut keys = Keys::open(dir).unwrap();
        let first = keys.current;
        let next = keys.begin().unwrap();
        assert_eq!(keys.begin().unwrap(), next);
        assert_eq!(Keys::open(dir).unwrap(), keys, "before the switch");
        assert!(!keys.switch([9; 32]).unwrap());
        set_current(dir, next).unwrap();
        let found = Keys::open(dir).unwrap();
        assert_eq!(found.current, next, "between the name and the removal of the former key");
        set_current(dir, first).unwrap();
        assert!(keys.switch(next).unwrap());
        assert_eq!(Keys::open(dir).unwrap(), keys);
        assert_eq!((keys.current, keys.next, list(dir).unwrap()), (next, None, vec![next]));
    }

    #[test]
    fn a_damaged_file_is_no_key() {
        let folder = tempfile::tempdir().unwrap();
        let first = Keys::open(folder.path()).unwrap().current;
        fs::write(file(folder.path(), first), b"").unwrap();
        let again = Keys::open(folder.path()).unwrap();
        assert_ne!(again.current, first);
        assert_eq!(again.next, None);
    }
}
