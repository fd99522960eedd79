//! Mounts what a volume's options ask for at its folder, and takes it away again.

use std::io;
use std::net::ToSocketAddrs;
use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

use super::VolumeError;
use super::options::MountSpec;

/// Mounts `spec` at `target`, unless something is mounted there.
pub fn attach(name: &str, spec: &MountSpec, target: &Path) -> Result<(), VolumeError> {
    let fail = |source: io::Error| VolumeError::Mount {
        name: name.to_owned(),
        target: target.to_owned(),
        device: spec.device.clone(),
        source,
    };
    if is_mounted(target).map_err(fail)? {
        return Ok(());
    }
    let data = data_of(spec).map_err(fail)?;
    let data = (!data.is_empty()).then(|| std::ffi::CString::new(data)).transpose().map_err(|e| fail(e.into()))?;
    let (device, kind) = (spec.device.as_str(), spec.kind.as_str());
    mount(device, target, kind, spec.flags, data.as_deref()).map_err(|e| fail(e.into()))?;
    let beside_bind = spec.flags - MountFlags::BIND - MountFlags::REC;
    if spec.is_bind() && !beside_bind.is_empty() {
        // The first call ignores them.
        let remounted = mount_remount(target, MountFlags::BIND | beside_bind, c"");
        if let Err(error) = remounted {
            // A volume that should be read-only must not stay writable.
            let _ = unmount(target, UnmountFlags::DETACH);
            return Err(fail(error.into()));
        }
    }
    Ok(())
}

/// Unmounts what is mounted at `target`, if anything.
pub fn detach(target: &Path) -> io::Result<()> {
    while is_mounted(target)? {
        unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
    }
    Ok(())
}

/// The kernel knows no names: an address among the options is resolved first, as mount.nfs(8) does.
fn data_of(spec: &MountSpec) -> io::Result<String> {
    let Some(host) = &spec.address else { return Ok(spec.data.clone()) };
    let address = (host.as_str(), 0)
        .to_socket_addrs()?
        .next()
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address")))?;
    let separator = if spec.data.is_empty() { "" } else { "," };
    Ok(format!("addr={}{separator}{}", address.ip(), spec.data))
}

/// Something is mounted at `target` (proc_pid_mountinfo(5)).
fn is_mounted(target: &Path) -> io::Result<bool> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let target = target.canonicalize()?;
    Ok(table.lines().filter_map(|line| line.split(' ').nth(4)).any(|point| unescape(point) == target.as_os_str()))
}

/// Blanks and backslashes are written as three octal digits.
fn unescape(point: &str) -> std::ffi::OsString {
    let bytes = point.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        let octal = point.get(at + 1..at + 4).filter(|_| bytes[at] == b'\\');
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 4;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    std::os::unix::ffi::OsStringExt::from_vec(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_as_the_kernel_writes_them() {
        assert_eq!(unescape("/a\\040b\\134c"), "/a b\\c");
        assert_eq!(unescape("/plain\\"), "/plain\\");
    }

    #[test]
    fn what_is_no_mount_point_is_not_taken_for_one() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!is_mounted(folder.path()).unwrap());
        assert!(is_mounted(Path::new("/proc")).unwrap());
        detach(folder.path()).unwrap();
    }
}
