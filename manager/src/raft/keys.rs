//! The data keys of one manager: the file they rest in, and the unlock key that wraps them when the cluster is locked.
//!
//! ```text
//! skep raft keys 1
//! 1 plain 9f3c…            data key 1, as it is (file mode 0600)
//! 2 wrapped 04d2…          data key 2, sealed with the unlock key: nonce, ciphertext, tag
//! ```
//! The last key seals; earlier ones stay until nothing sealed with them is left. The keys never leave the manager.

use std::fmt;
use std::io;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use sha2::{Digest, Sha256};

use super::disk::Disk;
use super::seal::{Sealer, SecretKey};

const FILE: &str = "keys";
const PARTIAL: &str = "keys.partial";
const HEAD: &str = "skep raft keys 1";
const PREFIX: &str = "SWMKEY-1-";
const LARGEST_FILE: u64 = 64 << 10;

/// The key that an operator enters to unlock a manager after a restart. Docker's text form, `SWMKEY-1-…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnlockKey(SecretKey);

impl UnlockKey {
    /// A new key from the operating system's random source.
    pub fn random() -> Self {
        Self(SecretKey::random())
    }

    /// The text to be shown to the operator, and to no one else.
    pub fn reveal(&self) -> String {
        format!("{PREFIX}{}", STANDARD_NO_PAD.encode(self.0.0))
    }
}

/// A text is not an unlock key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an unlock key has the form SWMKEY-1-… with 43 characters after it")]
pub struct ParseUnlockKeyError;

impl FromStr for UnlockKey {
    type Err = ParseUnlockKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.trim().strip_prefix(PREFIX).ok_or(ParseUnlockKeyError)?;
        let bytes = STANDARD_NO_PAD.decode(digits).map_err(|_| ParseUnlockKeyError)?;
        Ok(Self(SecretKey(bytes.try_into().map_err(|_| ParseUnlockKeyError)?)))
    }
}

/// The data keys cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Wrapped, and no unlock key given.
    #[error("this manager is locked: unlock it with `docker swarm unlock` and the cluster's unlock key")]
    Locked,
    /// Wrapped with another key.
    #[error(
        "this is not the unlock key that this manager was locked with; if the key was rotated while it was down, use the key of that time"
    )]
    WrongKey,
    /// There is a log or snapshot, and no keys for it.
    #[error(
        "the raft folder has data and no file `{FILE}`: without its keys the data cannot be read; restore the file from a backup, or empty the folder and join again"
    )]
    Missing,
    /// The file does not parse.
    #[error(
        "the file `{FILE}` of the raft folder is damaged at line {line}; restore it from a backup, or empty the folder and join again"
    )]
    Damaged {
        /// Line, from 1.
        line: usize,
    },
    /// Too many keys for one byte of key number.
    #[error("no data key can be added, all 255 numbers are used")]
    Full,
    /// The disk refused.
    #[error("cannot use the file `{FILE}` of the raft folder: {0}")]
    Io(#[from] io::Error),
}

/// The data keys of one manager.
#[derive(Clone, PartialEq, Eq)]
pub struct DataKeys {
    keys: Vec<(u8, SecretKey)>,
}

impl fmt::Debug for DataKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DataKeys({} keys)", self.keys.len())
    }
}

impl DataKeys {
    /// Reads the keys from `disk`, or makes the first one if the folder is new: wrapped if an unlock key is given.
    pub fn open(disk: &dyn Disk, unlock: Option<&UnlockKey>) -> Result<Self, KeyError> {
        let names = disk.list()?;
        if names.iter().any(|name| name == FILE) {
            return Self::parse(&read(disk)?, unlock);
        }
        if names.iter().any(|name| name.ends_with(".log") || name.ends_with(".snapshot")) {
            return Err(KeyError::Missing);
        }
        let keys = Self { keys: vec![(1, SecretKey::random())] };
        keys.save(disk, unlock)?;
        Ok(keys)
    }

    /// Writes the keys, wrapped if an unlock key is given: turns locking on and off, and rotates the unlock key. Either
    /// the old file or the new is found after a crash.
    pub fn save(&self, disk: &dyn Disk, unlock: Option<&UnlockKey>) -> Result<(), KeyError> {
        let mut text = format!("{HEAD}\n");
        for (number, key) in &self.keys {
            let (form, bytes) = match unlock {
                None => ("plain", key.0.to_vec()),
                Some(unlock) => ("wrapped", wrap(unlock, *number, key)),
            };
            text += &format!("{number} {form} {}\n", hex::encode(bytes));
        }
        let mut file = disk.create(PARTIAL)?;
        file.write_all_at(text.as_bytes(), 0)?;
        file.sync()?;
        disk.rename(PARTIAL, FILE)?;
        Ok(disk.sync()?)
    }

    /// Whether `disk` has keys, and whether they are wrapped.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn is_locked(disk: &dyn Disk) -> Result<bool, KeyError> {
        let has_keys = disk.list()?.iter().any(|name| name == FILE);
        Ok(has_keys && matches!(Self::parse(&read(disk)?, None), Err(KeyError::Locked)))
    }

    /// The key that seals this node's TLS key while managers are locked. It follows from the first data key, so one file
    /// decides what is locked with which unlock key.
    pub fn node_seal(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(b"skep node key 1");
        hash.update(self.keys.first().expect("there is a key always").1.0);
        hash.finalize().into()
    }

    /// Adds a data key, which seals from the next start on. To be saved.
    pub fn rotate(&mut self) -> Result<(), KeyError> {
        let next = self.keys.last().map_or(Some(1), |(number, _)| number.checked_add(1)).ok_or(KeyError::Full)?;
        self.keys.push((next, SecretKey::random()));
        Ok(())
    }

    /// Seals and opens with these keys. To be called once in a process: each sealer has nonces of its own.
    pub fn sealer(&self) -> Sealer {
        Sealer::new(&self.keys, rand::random())
    }

    fn parse(text: &str, unlock: Option<&UnlockKey>) -> Result<Self, KeyError> {
        let mut lines = text.lines().enumerate().map(|(i, line)| (i + 1, line));
        if lines.next().map(|(_, line)| line) != Some(HEAD) {
            return Err(KeyError::Damaged { line: 1 });
        }
        let keys = lines.map(|(line, text)| parse_key(line, text, unlock)).collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() {
            return Err(KeyError::Damaged { line: 2 });
        }
        Ok(Self { keys })
    }
}

fn read(disk: &dyn Disk) -> Result<String, KeyError> {
    let file = disk.open(FILE)?;
    let length = file.len()?;
    if length > LARGEST_FILE {
        return Err(KeyError::Damaged { line: 1 });
    }
    let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, 0)?;
    String::from_utf8(bytes).map_err(|_| KeyError::Damaged { line: 1 })
}

fn parse_key(line: usize, text: &str, unlock: Option<&UnlockKey>) -> Result<(u8, SecretKey), KeyError> {
    let damaged = || KeyError::Damaged { line };
    let mut words = text.split(' ');
    let number: u8 = words.next().and_then(|word| word.parse().ok()).ok_or_else(damaged)?;
    let form = words.next().ok_or_else(damaged)?;
    let bytes = words.next().and_then(|word| hex::decode(word).ok()).ok_or_else(damaged)?;
    let bytes = match form {
        "plain" => bytes,
        "wrapped" => unwrap_key(unlock.ok_or(KeyError::Locked)?, number, &bytes)?,
        _ => return Err(damaged()),
    };
    Ok((number, SecretKey(bytes.try_into().map_err(|_| damaged())?)))
}

fn wrap(unlock: &UnlockKey, number: u8, key: &SecretKey) -> Vec<u8> {
    let nonce: [u8; 24] = rand::random();
    let sealed = XChaCha20Poly1305::new(&unlock.0.0.into())
        .encrypt(&XNonce::from(nonce), Payload { msg: &key.0, aad: &[number] })
        .expect("32 bytes are far below the cipher's limit");
    [&nonce[..], &sealed].concat()
}

fn unwrap_key(unlock: &UnlockKey, number: u8, wrapped: &[u8]) -> Result<Vec<u8>, KeyError> {
    let (nonce, sealed) = wrapped.split_first_chunk::<24>().ok_or(KeyError::WrongKey)?;
    XChaCha20Poly1305::new(&unlock.0.0.into())
        .decrypt(&XNonce::from(*nonce), Payload { msg: sealed, aad: &[number] })
        .map_err(|_| KeyError::WrongKey)
}

#[cfg(test)]
mod tests {
    use super::super::disk::memory::Memory;
    use super::*;

    #[test]
    fn keys_are_made_once_and_found_again() {
        let disk = Memory::default();
        let made = DataKeys::open(&disk, None).unwrap();
        disk.crash(1);
        assert_eq!(DataKeys::open(&disk, None).unwrap(), made);
    }

    #[test]
    fn a_locked_manager_opens_with_its_unlock_key_only() {
        let (disk, key) = (Memory::default(), UnlockKey::random());
        let keys = DataKeys::open(&disk, None).unwrap();
        keys.save(&disk, Some(&key)).unwrap();
        assert!(matches!(DataKeys::open(&disk, None), Err(KeyError::Locked)));
        assert!(matches!(DataKeys::open(&disk, Some(&UnlockKey::random())), Err(KeyError::WrongKey)));
        assert_eq!(DataKeys::open(&disk, Some(&key)).unwrap(), keys);

        let text = String::from_utf8(disk.read(FILE).unwrap()).unwrap();
        assert!(!text.contains(&hex::encode(keys.keys[0].1.0)), "a wrapped key is not in the clear");
        keys.save(&disk, None).unwrap();
        assert_eq!(DataKeys::open(&disk, None).unwrap(), keys);
    }

    #[test]
    fn an_unlock_key_is_read_as_it_was_shown() {
        let key = UnlockKey::random();
        let text = key.reveal();
        assert!(text.starts_with("SWMKEY-1-") && text.len() == 9 + 43, "{text}");
        assert_eq!(text.parse(), Ok(key));
        for wrong in ["", "SWMKEY-1-", "SWMKEY-2-AAAA", &text[1..], &format!("{text}AA")] {
            assert_eq!(wrong.parse::<UnlockKey>(), Err(ParseUnlockKeyError), "{wrong}");
        }
    }

    #[test]
    fn data_without_keys_is_never_given_new_ones() {
        let disk = Memory::default();
        disk.write("00000000.log", b"");
        assert!(matches!(DataKeys::open(&disk, None), Err(KeyError::Missing)));
    }

    #[test]
    fn a_damaged_file_names_its_line() {
        let disk = Memory::default();
        for (text, line) in
            [("", 1), ("skep raft keys 2\n", 1), ("skep raft keys 1\n", 2), ("skep raft keys 1\n1 plain zz\n", 2)]
        {
            disk.write(FILE, text.as_bytes());
            match DataKeys::open(&disk, None) {
                Err(KeyError::Damaged { line: found }) => assert_eq!(found, line, "{text:?}"),
                other => panic!("{text:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_rotated_key_file_keeps_what_opens_old_data() {
        let disk = Memory::default();
        let mut keys = DataKeys::open(&disk, None).unwrap();
        let mut sealed = Vec::new();
        keys.sealer().seal(b"here", b"old", &mut sealed);
        keys.rotate().unwrap();
        keys.save(&disk, None).unwrap();
        assert_eq!(DataKeys::open(&disk, None).unwrap().sealer().open(b"here", &sealed).unwrap(), b"old");
    }
}
