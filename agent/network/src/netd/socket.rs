//! The control socket: where it lies, and how a path longer than a Unix address (107 bytes, unix(7)) is reached.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use tokio::net::{UnixListener, UnixStream};

/// Its name in the folder.
const NAME: &str = "netd.sock";
/// Name while it is not ready.
const NEW: &str = "netd.sock.new";

/// Path of the control socket, for messages.
pub fn path(dir: &Path) -> PathBuf {
    dir.join(NAME)
}

/// The folder by a short path, valid while the descriptor is held.
fn short(dir: &Path) -> io::Result<(OwnedFd, PathBuf)> {
    let fd = openat(CWD, dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    Ok((fd, path))
}

/// Connects to the process of that folder.
///
/// # Errors
/// `NotFound` or `ConnectionRefused` when there is none.
pub async fn connect(dir: &Path) -> io::Result<UnixStream> {
    let (_held, short) = short(dir)?;
    UnixStream::connect(short.join(NAME)).await
}

/// Listens in that folder in place of whoever did before. Only the owner may connect.
///
/// # Errors
/// Those of bind(2) and rename(2).
pub fn listen(dir: &Path) -> io::Result<UnixListener> {
    let (_held, short) = short(dir)?;
    match fs::remove_file(dir.join(NEW)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => (),
    }
    let listener = UnixListener::bind(short.join(NEW))?;
    fs::set_permissions(dir.join(NEW), fs::Permissions::from_mode(0o600))?;
    fs::rename(dir.join(NEW), dir.join(NAME))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_folder_with_a_long_path_has_a_socket_too_and_a_new_one_takes_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("x".repeat(120));
        fs::create_dir(&dir).unwrap();
        assert_eq!(connect(&dir).await.unwrap_err().kind(), io::ErrorKind::NotFound);
        let first = listen(&dir).unwrap();
        let second = listen(&dir).unwrap();
        let (client, accepted) = tokio::join!(connect(&dir), second.accept());
        assert!(client.is_ok() && accepted.is_ok());
        drop((first, second));
        assert_eq!(connect(&dir).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
