//! Names and options of volumes, by the rules of Docker's `local` driver. Pure.

use std::collections::BTreeMap;

use rustix::mount::MountFlags;

use super::VolumeError;

/// Longest name: it is a folder's.
const MAX_NAME: usize = 255;

/// What is mounted at a volume's folder while it is in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountSpec {
    /// File system type; `none` for bind mounts.
    pub kind: String,
    /// Device, path or address.
    pub device: String,
    /// Flags of mount(2).
    pub flags: MountFlags,
    /// Options that the file system reads itself.
    pub data: String,
    /// Name in `addr=` that is to be resolved, for network file systems.
    pub address: Option<String>,
}

impl MountSpec {
    /// A bind mount takes its flags in a second step (mount(2), "Remounting an existing mount").
    pub fn is_bind(&self) -> bool {
        self.flags.contains(MountFlags::BIND)
    }
}

/// Checks a volume's name.
///
/// # Errors
/// [`VolumeError::InvalidName`], in Docker's words.
pub fn check_name(name: &str) -> Result<(), VolumeError> {
    let invalid = |reason: String| Err(VolumeError::InvalidName(reason));
    if name.len() == 1 {
        return invalid("volume name is too short, names should be at least two alphanumeric characters".into());
    }
    if name.len() > MAX_NAME {
        return invalid(format!("create {name}: the volume name is longer than {MAX_NAME} characters"));
    }
    let first_is_word = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if !first_is_word || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b)) {
        return invalid(format!(
            "create {name}: \"{name}\" includes invalid characters for a local volume name, only \
             \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path"
        ));
    }
    Ok(())
}

/// What the options ask to be mounted; `None` when there are none.
///
/// # Errors
/// [`VolumeError::InvalidOption`], in Docker's words.
pub fn parse(name: &str, options: &BTreeMap<String, String>) -> Result<Option<MountSpec>, VolumeError> {
    if options.is_empty() {
        return Ok(None);
    }
    let invalid = |reason: String| VolumeError::InvalidOption(format!("create {name}: {reason}"));
    if let Some(unknown) = options.keys().find(|key| !matches!(key.as_str(), "type" | "device" | "o")) {
        return Err(invalid(format!("invalid option: {unknown:?}")));
    }
    let required = |key: &str| {
        options.get(key).filter(|v| !v.is_empty()).ok_or_else(|| invalid(format!("missing required option: {key:?}")))
    };
    let (device, kind) = (required("device")?.clone(), required("type")?.clone());
    let (mut flags, mut data, mut address) = (MountFlags::empty(), Vec::new(), None);
    for option in options.get("o").map_or("", String::as_str).split(',').filter(|option| !option.is_empty()) {
        match flag(option) {
            Some((set, true)) => flags |= set,
            Some((unset, false)) => flags -= unset,
            None => {
                if let Some(host) = option.strip_prefix("addr=") {
                    address = Some(host.to_owned());
                } else {
                    data.push(option);
                }
            }
        }
    }
    if flags.contains(MountFlags::BIND) && !device.starts_with('/') {
        return Err(invalid(format!("the device of a bind mount must be an absolute path, not {device:?}")));
    }
    Ok(Some(MountSpec { kind, device, flags, data: data.join(","), address }))
}

/// The flag that an option of mount(8) sets or clears.
fn flag(option: &str) -> Option<(MountFlags, bool)> {
    Some(match option {
        "defaults" => (MountFlags::empty(), true),
        "ro" => (MountFlags::RDONLY, true),
        "rw" => (MountFlags::RDONLY, false),
        "bind" => (MountFlags::BIND, true),
        "rbind" => (MountFlags::BIND | MountFlags::REC, true),
        "nosuid" => (MountFlags::NOSUID, true),
        "suid" => (MountFlags::NOSUID, false),
        "nodev" => (MountFlags::NODEV, true),
        "dev" => (MountFlags::NODEV, false),
        "noexec" => (MountFlags::NOEXEC, true),
        "exec" => (MountFlags::NOEXEC, false),
        "noatime" => (MountFlags::NOATIME, true),
        "atime" => (MountFlags::NOATIME, false),
        "nodiratime" => (MountFlags::NODIRATIME, true),
        "diratime" => (MountFlags::NODIRATIME, false),
        "relatime" => (MountFlags::RELATIME, true),
        "norelatime" => (MountFlags::RELATIME, false),
        "strictatime" => (MountFlags::STRICTATIME, true),
        "sync" => (MountFlags::SYNCHRONOUS, true),
        "async" => (MountFlags::SYNCHRONOUS, false),
        "dirsync" => (MountFlags::DIRSYNC, true),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn names_follow_dockers_rule() {
        for name in ["ab", "a_b.c-d", "0x", &"a".repeat(255)] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["a", "", ".a", "-a", "a b", "a/b", "..", "é1", &"a".repeat(256)] {
            assert!(check_name(name).is_err(), "{name}");
        }
        assert_eq!(
            check_name("a/b").unwrap_err().to_string(),
            "create a/b: \"a/b\" includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" \
             are allowed. If you intended to pass a host directory, use absolute path"
        );
    }

    #[test]
    fn options_become_flags_and_data() {
        let bind = parse("v", &options(&[("type", "none"), ("o", "bind,ro"), ("device", "/srv")])).unwrap().unwrap();
        assert!(bind.is_bind());
        assert_eq!((bind.flags, bind.data.as_str()), (MountFlags::BIND | MountFlags::RDONLY, ""));
        let tmpfs = [("type", "tmpfs"), ("o", "size=1m,nosuid,mode=0700"), ("device", "tmpfs")];
        let tmpfs = parse("v", &options(&tmpfs)).unwrap().unwrap();
        assert_eq!((tmpfs.flags, tmpfs.data.as_str()), (MountFlags::NOSUID, "size=1m,mode=0700"));
        let nfs = [("type", "nfs"), ("o", "addr=filer,rw,nfsvers=4"), ("device", ":/export")];
        let nfs = parse("v", &options(&nfs)).unwrap().unwrap();
        assert_eq!((nfs.address.as_deref(), nfs.data.as_str()), (Some("filer"), "nfsvers=4"));
        assert_eq!(parse("v", &options(&[])).unwrap(), None);
    }

    #[test]
    fn options_that_make_no_mount_are_refused_in_dockers_words() {
        let refused = |pairs: &[(&str, &str)]| parse("v", &options(pairs)).unwrap_err().to_string();
        assert_eq!(refused(&[("colour", "red")]), "create v: invalid option: \"colour\"");
        assert_eq!(refused(&[("type", "tmpfs")]), "create v: missing required option: \"device\"");
        assert_eq!(refused(&[("device", "/x")]), "create v: missing required option: \"type\"");
        assert!(refused(&[("type", "none"), ("o", "bind"), ("device", "x")]).contains("absolute path"));
    }
}
