//! File systems of a service: `volumes` and `tmpfs`.

use skep_proto::model::container::{BindOptions, Mount, MountKind, TmpfsOptions};

use crate::manifest::Problems;
use crate::manifest::compose::Names;
use crate::manifest::decode::{boolean, bytes, bytes_of, entries, parsed, text, unknown_key};
use crate::manifest::yaml::{Node, Value};

const KEYS: [&str; 8] = ["type", "source", "target", "read_only", "bind", "volume", "tmpfs", "consistency"];
const PROPAGATIONS: [&str; 6] = ["private", "rprivate", "shared", "rshared", "slave", "rslave"];
const CONSISTENCIES: [&str; 4] = ["default", "consistent", "cached", "delegated"];

/// A `tmpfs`: a path, perhaps with options: `/run:size=64m,mode=1777`.
pub fn tmpfs(node: &Node, problems: &mut Problems) -> Mount {
    let line = text(node, "tmpfs", problems);
    let (target, options) = line.split_once(':').unwrap_or((&line, ""));
    let mut mount = mount(MountKind::Tmpfs, "", target);
    if !target.starts_with('/') {
        problems.add(node.place, format!("a tmpfs is an absolute path, not {target:?}"));
    }
    for option in options.split(',').filter(|o| !o.is_empty()) {
        let wanted = mount.tmpfs.get_or_insert_default();
        let understood = match option.split_once('=') {
            Some(("size", size)) => bytes_of(size).and_then(|b| u64::try_from(b).ok()).map(|b| wanted.size = b),
            Some(("mode", mode)) => u32::from_str_radix(mode, 8).ok().map(|m| wanted.mode = m),
            _ if option == "ro" => {
                mount.read_only = true;
                Some(())
            }
            _ => matches!(option, "rw" | "noexec" | "nosuid" | "nodev").then_some(()),
        };
        if understood.is_none() {
            problems.add(node.place, format!("{option:?} is no option of a tmpfs: size=BYTES and mode=OCTAL are"));
        }
    }
    mount
}

/// A tmpfs at `/dev/shm` of a size: what `shm_size` is for a service.
pub fn shared_memory(node: &Node, problems: &mut Problems) -> Mount {
    let size = u64::try_from(bytes(node, "shm_size", problems)).unwrap_or(0);
    Mount { tmpfs: Some(TmpfsOptions { size, mode: 0 }), ..mount(MountKind::Tmpfs, "", "/dev/shm") }
}

fn mount(kind: MountKind, source: &str, target: &str) -> Mount {
    Mount {
        kind,
        source: source.to_owned(),
        target: target.to_owned(),
        read_only: false,
        consistency: String::new(),
        bind: None,
        volume: None,
        tmpfs: None,
    }
}

/// One mount, in the short form `[SOURCE:]TARGET[:MODE]` or the long one.
pub fn volume(node: &Node, names: &Names<'_>, problems: &mut Problems) -> Option<Mount> {
    if let Value::Mapping(_) = node.value {
        return long(node, names, problems);
    }
    let line = text(node, "a volume", problems);
    let parts: Vec<&str> = line.split(':').collect();
    let (source, target, mode) = match parts.as_slice() {
        [target] => ("", *target, ""),
        [source, target] => (*source, *target, ""),
        [source, target, mode] => (*source, *target, *mode),
        _ => {
            problems.add(node.place, format!("a volume is [SOURCE:]TARGET[:ro], not {line:?}"));
            return None;
        }
    };
    let kind = if source.starts_with(['/', '.', '~']) { MountKind::Bind } else { MountKind::Volume };
    let mut result = mount(kind, source, target);
    let mut no_copy = false;
    for word in mode.split(',').filter(|w| !w.is_empty()) {
        match word {
            "ro" => result.read_only = true,
            "rw" => {}
            "nocopy" => no_copy = true,
            "z" | "Z" => {
                problems.warn(node.place, format!("{word} has no effect: SELinux labels are not supported by skep"))
            }
            word if CONSISTENCIES.contains(&word) => result.consistency = word.to_owned(),
            word if PROPAGATIONS.contains(&word) && kind == MountKind::Bind => {
                result.bind.get_or_insert_default().propagation = word.to_owned();
            }
            _ => problems.add(node.place, format!("{word:?} is no mode of a volume that skep supports: ro or rw")),
        }
    }
    resolve(node, result, no_copy, names, problems)
}

fn long(node: &Node, names: &Names<'_>, problems: &mut Problems) -> Option<Mount> {
    let mut result = mount(MountKind::Volume, "", "");
    let (mut no_copy, mut subpath) = (false, String::new());
    for field in entries(node, "a volume", problems) {
        let value = &field.value;
        match field.key.as_str() {
            "type" => match text(value, "type", problems).as_str() {
                "bind" => result.kind = MountKind::Bind,
                "volume" => result.kind = MountKind::Volume,
                "tmpfs" => result.kind = MountKind::Tmpfs,
                other => {
                    problems.add(value.place, format!("the type of a volume is bind, volume or tmpfs, not {other:?}"))
                }
            },
            "source" => result.source = text(value, "source", problems),
            "target" => result.target = text(value, "target", problems),
            "read_only" => result.read_only = boolean(value, "read_only", problems),
            "consistency" => result.consistency = text(value, "consistency", problems),
            "bind" => result.bind = Some(bind(value, problems)),
            "volume" => {
                for part in entries(value, "volume", problems) {
                    match part.key.as_str() {
                        "nocopy" => no_copy = boolean(&part.value, "nocopy", problems),
                        "subpath" => subpath = text(&part.value, "subpath", problems),
                        _ => unknown_key(part, "volume", &["nocopy", "subpath"], problems),
                    }
                }
            }
            "tmpfs" => {
                let mut options = TmpfsOptions::default();
                for part in entries(value, "tmpfs", problems) {
                    match part.key.as_str() {
                        "size" => options.size = u64::try_from(bytes(&part.value, "size", problems)).unwrap_or(0),
                        "mode" => options.mode = parsed(&part.value, "mode", "a number", problems).unwrap_or(0),
                        _ => unknown_key(part, "tmpfs", &["size", "mode"], problems),
                    }
                }
                result.tmpfs = Some(options);
            }
            key if key.starts_with("x-") => {}
            _ => unknown_key(field, "a volume", &KEYS, problems),
        }
    }
    let mut mount = resolve(node, result, no_copy, names, problems)?;
    if !subpath.is_empty() {
        mount.volume.get_or_insert_default().subpath = subpath;
    }
    Some(mount)
}

fn bind(node: &Node, problems: &mut Problems) -> BindOptions {
    let mut options = BindOptions::default();
    for part in entries(node, "bind", problems) {
        let value = &part.value;
        match part.key.as_str() {
            "propagation" => {
                options.propagation = text(value, "propagation", problems);
                if !PROPAGATIONS.contains(&options.propagation.as_str()) {
                    problems.add(value.place, format!("a propagation is one of {}", PROPAGATIONS.join(", ")));
                }
            }
            "create_host_path" => options.create_mountpoint = boolean(value, "create_host_path", problems),
            "selinux" => problems.warn(part.place, "it has no effect: SELinux labels are not supported by skep"),
            _ => unknown_key(part, "bind", &["propagation", "create_host_path", "selinux"], problems),
        }
    }
    options
}

/// Replaces the file's name of a volume by its name on the nodes.
fn resolve(node: &Node, mut mount: Mount, no_copy: bool, names: &Names<'_>, problems: &mut Problems) -> Option<Mount> {
    if !mount.target.starts_with('/') {
        problems.add(node.place, format!("the target of a volume is an absolute path, not {:?}", mount.target));
    }
    match mount.kind {
        MountKind::Bind if !mount.source.starts_with('/') => {
            problems.add(
                node.place,
                format!("the source {:?} is a path of the nodes, so it must be absolute", mount.source),
            );
            return None;
        }
        MountKind::Volume if !mount.source.is_empty() => match names.volumes.get(&mount.source) {
            Some(volume) => {
                mount.source.clone_from(&volume.name);
                mount.volume.clone_from(&volume.options);
            }
            None => {
                problems.add(node.place, format!("the volume {} is not declared: add it under volumes", mount.source));
                return None;
            }
        },
        MountKind::Bind | MountKind::Volume | MountKind::Tmpfs => {}
    }
    if no_copy {
        mount.volume.get_or_insert_default().no_copy = true;
    }
    Some(mount)
}
