//! Records on disk: a format number, then the value in postcard. Written beside and renamed, so that a reader sees
//! the old one or the new one.

use std::fs;
use std::io;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::NetworkError;

/// Format of all records here. A change that old code cannot read takes the next number.
const FORMAT: u16 = 1;

/// Writes a record.
///
/// # Errors
/// [`NetworkError::Record`].
pub fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), NetworkError> {
    write_with(path, value, &[]).map(drop)
}

/// Writes a record with something behind the value; gives its size in bytes.
///
/// # Errors
/// [`NetworkError::Record`].
pub fn write_with<T: Serialize>(path: &Path, value: &T, behind: &[u8]) -> Result<usize, NetworkError> {
    let failed = |source| NetworkError::Record { step: "write", path: path.display().to_string(), source };
    let bytes = FORMAT.to_le_bytes().to_vec();
    let mut bytes = postcard::to_extend(value, bytes).map_err(|error| failed(io::Error::other(error)))?;
    bytes.extend(behind);
    let temporary = path.with_extension("new");
    // Not synced: after a power loss the kernel's half of the state is gone as well, and both are rebuilt.
    fs::write(&temporary, &bytes).and_then(|()| fs::rename(&temporary, path)).map_err(failed)?;
    Ok(bytes.len())
}

/// Reads a record; `None` when there is none.
///
/// # Errors
/// [`NetworkError::Record`], with `InvalidData` when the file is of another format or damaged.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, NetworkError> {
    Ok(read_with::<T, ()>(path)?.map(|(value, ())| value))
}

/// Reads a record that was written as a pair. One of the first value alone, as older daemons wrote it, has the second one's
/// default; older daemons in turn read the first value and leave the rest.
///
/// # Errors
/// As [`read`].
pub fn read_with<T: DeserializeOwned, U: DeserializeOwned + Default>(
    path: &Path,
) -> Result<Option<(T, U)>, NetworkError> {
    Ok(read_parts::<T, U, ()>(path)?.map(|(value, more, ())| (value, more)))
}

/// Reads a record that was written in three parts, of which older daemons wrote the first ones.
///
/// # Errors
/// As [`read`].
pub fn read_parts<T, U, V>(path: &Path) -> Result<Option<(T, U, V)>, NetworkError>
where
    T: DeserializeOwned,
    U: DeserializeOwned + Default,
    V: DeserializeOwned + Default,
{
    read_as(path, parts)
}

/// Reads a record by a function of its own.
///
/// # Errors
/// As [`read`].
pub fn read_as<T>(path: &Path, parse: impl FnOnce(&[u8]) -> postcard::Result<T>) -> Result<Option<T>, NetworkError> {
    let failed = |source| NetworkError::Record { step: "read", path: path.display().to_string(), source };
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let damaged = |text: String| failed(io::Error::new(io::ErrorKind::InvalidData, text));
    match bytes.split_at_checked(2) {
        Some((format, rest)) if format == FORMAT.to_le_bytes() => {
            parse(rest).map(Some).map_err(|error| damaged(error.to_string()))
        }
        Some((format, _)) => Err(damaged(format!("format {}", u16::from_le_bytes([format[0], format[1]])))),
        None => Err(damaged("too short".into())),
    }
}

fn parts<T, U, V>(bytes: &[u8]) -> postcard::Result<(T, U, V)>
where
    T: DeserializeOwned,
    U: DeserializeOwned + Default,
    V: DeserializeOwned + Default,
{
    let (first, rest) = postcard::take_from_bytes(bytes)?;
    let (second, rest) = if rest.is_empty() { Default::default() } else { postcard::take_from_bytes(rest)? };
    let third = if rest.is_empty() { V::default() } else { postcard::from_bytes(rest)? };
    Ok((first, second, third))
}

/// Deletes a record, if it is there.
///
/// # Errors
/// [`NetworkError::Record`].
pub fn delete(path: &Path) -> Result<(), NetworkError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(NetworkError::Record { step: "delete", path: path.display().to_string(), source })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_back_and_damage_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        assert_eq!(read::<Vec<u32>>(&path).unwrap(), None);
        write(&path, &vec![1u32, 2]).unwrap();
        assert_eq!(read::<Vec<u32>>(&path).unwrap(), Some(vec![1, 2]));
        assert_eq!(read_with::<Vec<u32>, u8>(&path).unwrap(), Some((vec![1, 2], 0)));
        write(&path, &(vec![1u32, 2], 7u8)).unwrap();
        assert_eq!(read_with::<Vec<u32>, u8>(&path).unwrap(), Some((vec![1, 2], 7)));
        assert_eq!(read::<Vec<u32>>(&path).unwrap(), Some(vec![1, 2]));
        fs::write(&path, [1, 0, 9]).unwrap();
        assert!(read::<Vec<u32>>(&path).is_err());
        fs::write(&path, [7, 0, 0]).unwrap();
        assert!(read::<Vec<u32>>(&path).is_err());
    }
}
