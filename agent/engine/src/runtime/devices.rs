//! Devices of the node as containers get them: found here, made by libcontainer, allowed by the rules of the cgroup.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use serde_json::{Value, json};
use skep_proto::model::isolation::DeviceMapping;

/// Directories of `/dev` that are other file systems, or the container's own (moby `oci/devices_linux.go`).
const NOT_OF_THE_NODE: [&str; 6] = ["pts", "shm", "fd", "mqueue", ".lxc", ".udev"];
/// Devices that every container has already.
const USUAL: [&str; 8] = ["null", "zero", "full", "random", "urandom", "tty", "console", "ptmx"];

/// A device node of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Path in the container.
    pub path: String,
    /// `c` or `b`.
    pub kind: char,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Letters of `rwm`.
    pub access: String,
}

impl Device {
    /// As an entry of `linux.devices` (runtime-spec, "Devices").
    pub fn node(&self) -> Value {
        json!({"path": self.path, "type": self.kind.to_string(), "major": self.major, "minor": self.minor,
            "fileMode": self.mode, "uid": self.uid, "gid": self.gid})
    }

    /// As a rule that allows it.
    pub fn rule(&self) -> Value {
        json!({"allow": true, "type": self.kind.to_string(), "major": self.major, "minor": self.minor, "access": self.access})
    }
}

/// Finds the devices that were asked for; those of a directory, all below it. Blocking.
///
/// # Errors
/// A path that is not there, or is no device, in Docker's words.
pub fn find(wanted: &[DeviceMapping]) -> Result<Vec<Device>, String> {
    let mut found = Vec::new();
    for mapping in wanted {
        let DeviceMapping { host, container, access } = mapping;
        let before = found.len();
        collect(Path::new(host), container, access, &[], &mut found).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => {
                format!("error gathering device information while adding custom device \"{host}\": no such file or directory")
            }
            _ => format!("error gathering device information while adding custom device \"{host}\": {e}"),
        })?;
        if found.len() == before {
            return Err(format!(
                "error gathering device information while adding custom device \"{host}\": not a device node"
            ));
        }
    }
    Ok(found)
}

/// Every device of the node, for privileged containers. What cannot be looked at is left out. Blocking.
pub fn all() -> Vec<Device> {
    let mut found = Vec::new();
    if let Err(error) = collect(Path::new("/dev"), "/dev", "rwm", &NOT_OF_THE_NODE, &mut found) {
        tracing::warn!(%error, "cannot list the node's devices");
    }
    found.retain(|device| !USUAL.iter().any(|usual| device.path == format!("/dev/{usual}")));
    found
}

fn collect(host: &Path, container: &str, access: &str, skip: &[&str], found: &mut Vec<Device>) -> io::Result<()> {
    let meta = fs::metadata(host)?;
    let kind = meta.file_type();
    if kind.is_dir() {
        for entry in fs::read_dir(host)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // Links would show a device twice, or lead out of the directory.
            if entry.file_type()?.is_symlink() || skip.contains(&name.as_str()) {
                continue;
            }
            match collect(&entry.path(), &format!("{container}/{name}"), access, &[], found) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        return Ok(());
    }
    let letter = match (kind.is_char_device(), kind.is_block_device()) {
        (true, _) => 'c',
        (_, true) => 'b',
        _ => return Ok(()),
    };
    found.push(Device {
        path: container.to_owned(),
        kind: letter,
        major: rustix::fs::major(meta.rdev()),
        minor: rustix::fs::minor(meta.rdev()),
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        access: access.to_owned(),
    });
    Ok(())
}

/// `c 1:3 rwm`, with `*` for any number and `a` for any type (Engine API, `DeviceCgroupRules`); `None` for anything else.
pub fn parse_rule(text: &str) -> Option<Value> {
    let parts: Vec<&str> = text.split(' ').collect();
    let [kind, numbers, access] = parts.as_slice() else { return None };
    let (major, minor) = numbers.split_once(':')?;
    let number = |text: &str| if text == "*" { Some(None) } else { text.parse::<u32>().ok().map(Some) };
    let valid = ["a", "b", "c"].contains(kind) && is_access(access);
    let mut rule = json!({"allow": true, "access": access});
    if *kind != "a" {
        rule["type"] = json!(kind);
    }
    if let Some(major) = number(major)? {
        rule["major"] = json!(major);
    }
    if let Some(minor) = number(minor)? {
        rule["minor"] = json!(minor);
    }
    valid.then_some(rule)
}

fn is_access(access: &str) -> bool {
    !access.is_empty() && access.len() <= 3 && access.chars().all(|c| "rwm".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_type_numbers_and_access() {
        assert_eq!(
            parse_rule("c 1:3 rw"),
            Some(json!({"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw"}))
        );
        assert_eq!(parse_rule("b 8:* r"), Some(json!({"allow": true, "type": "b", "major": 8, "access": "r"})));
        assert_eq!(parse_rule("a *:* rwm"), Some(json!({"allow": true, "access": "rwm"})));
        for wrong in ["", "c 1 r", "x 1:1 r", "c 1:1 q", "c a:1 r", "c 1:1", "c 1:1 rwmr"] {
            assert_eq!(parse_rule(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_device_is_found_with_its_numbers_and_what_is_none_is_refused() {
        let mapping = |host: &str| DeviceMapping { host: host.into(), container: "/dev/x".into(), access: "r".into() };
        let found = find(&[mapping("/dev/null")]).unwrap();
        assert_eq!((found[0].path.as_str(), found[0].kind, found[0].major, found[0].minor), ("/dev/x", 'c', 1, 3));
        assert!(find(&[mapping("/dev/none")]).unwrap_err().ends_with("no such file or directory"));
        assert!(find(&[mapping("/etc/passwd")]).unwrap_err().ends_with("not a device node"));
    }
}
