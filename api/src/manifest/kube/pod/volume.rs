//! Volumes of a pod, and where its containers mount them.

use std::collections::BTreeMap;

use skep_proto::model::ContainerSpec;
use skep_proto::model::container::{BindOptions, Driver, FileTarget, Mount, MountKind, TmpfsOptions, VolumeOptions};

use crate::manifest::decode::{boolean, entries, items, text, unknown_key};
use crate::manifest::kube::build::Uses;
use crate::manifest::kube::rest::Rest;
use crate::manifest::problem::{Place, Problems};
use crate::manifest::stack::{DeclaredVolume, FileKind};
use crate::manifest::yaml::Node;

use super::files::{File, downward, of_data, projected, relative};
use super::{Context, quantity};

/// What the volumes of a pod are, by name.
#[derive(Debug, Default)]
pub struct Volumes {
    volumes: BTreeMap<String, Volume>,
    /// Those that live longer than a task.
    pub declared: Vec<DeclaredVolume>,
}

#[derive(Debug, Clone)]
enum Volume {
    /// A mount, whose target is not known yet.
    Mount(Box<Mount>),
    /// Files in a folder.
    Files(Vec<File>),
    /// Not read: a problem was reported, or nothing is there and may be.
    Nothing,
}

const REST: Rest<'_> = Rest {
    what: "a volume",
    known: &[
        "name",
        "emptyDir",
        "hostPath",
        "configMap",
        "secret",
        "projected",
        "persistentVolumeClaim",
        "downwardAPI",
        "nfs",
        "ephemeral",
    ],
    refused: &[
        ("csi", "use a claim, hostPath or nfs"),
        ("awsElasticBlockStore", "use a claim, hostPath or nfs"),
        ("azureDisk", "use a claim, hostPath or nfs"),
        ("azureFile", "use a claim, hostPath or nfs"),
        ("cephfs", "use a claim, hostPath or nfs"),
        ("gcePersistentDisk", "use a claim, hostPath or nfs"),
        ("gitRepo", "fetch it in an init container"),
        ("glusterfs", "use a claim, hostPath or nfs"),
        ("image", "copy from the image in an init container"),
        ("iscsi", "use a claim, hostPath or nfs"),
        ("local", "use a claim, hostPath or nfs"),
        ("rbd", "use a claim, hostPath or nfs"),
    ],
    left_out: &[],
};

/// Reads `volumes`.
pub fn read(node: &Node, context: &Context<'_>, problems: &mut Problems) -> Volumes {
    let mut volumes = Volumes::default();
    for item in items(node, "volumes", problems) {
        let (mut name, mut found) = (String::new(), None);
        for field in entries(item, "a volume", problems) {
            let value = &field.value;
            let read = match field.key.as_str() {
                "name" => {
                    name = text(value, "name", problems);
                    continue;
                }
                "emptyDir" => empty_dir(value, context, problems),
                "hostPath" => host_path(value, problems),
                "configMap" => Volume::Files(of_data(FileKind::Config, value, context, problems)),
                "secret" => Volume::Files(of_data(FileKind::Secret, value, context, problems)),
                "downwardAPI" => Volume::Files(downward(value, context, problems)),
                "projected" => Volume::Files(projected(value, context, problems)),
                "persistentVolumeClaim" => claim(value, context, &mut volumes.declared, problems),
                "nfs" => nfs(value, context, &mut volumes.declared, problems),
                "ephemeral" => scratch(None),
                _ => {
                    REST.take(field, problems);
                    Volume::Nothing
                }
            };
            if found.replace(read).is_some() {
                problems.add(field.place, "a volume is of one kind");
            }
        }
        if found.is_none() {
            problems.add(
                item.place,
                format!("the volume {name:?} says nothing of its kind: emptyDir: {{}} is the simplest"),
            );
        }
        volumes.volumes.insert(name, found.unwrap_or(Volume::Nothing));
    }
    volumes
}

fn mount(kind: MountKind, source: String) -> Mount {
    Mount {
        kind,
        source,
        target: String::new(),
        read_only: false,
        consistency: String::new(),
        bind: None,
        volume: None,
        tmpfs: None,
    }
}

fn scratch(driver: Option<Driver>) -> Volume {
    let options = VolumeOptions { no_copy: true, scratch: true, driver, ..VolumeOptions::default() };
    Volume::Mount(Box::new(Mount { volume: Some(options), ..mount(MountKind::Volume, String::new()) }))
}

fn empty_dir(node: &Node, context: &Context<'_>, problems: &mut Problems) -> Volume {
    let (mut in_memory, mut limit) = (false, None);
    for field in entries(node, "emptyDir", problems) {
        match field.key.as_str() {
            "medium" => match text(&field.value, "medium", problems).as_str() {
                "" => {}
                "Memory" => in_memory = true,
                other => problems.add(field.value.place, format!("a medium is Memory or nothing, not {other:?}")),
            },
            "sizeLimit" => limit = quantity::read(&field.value, "sizeLimit", problems).map(quantity::units),
            _ => unknown_key(field, "emptyDir", &["medium", "sizeLimit"], problems),
        }
    }
    if context.owner.is_docker() {
        let size = limit.and_then(|bytes| u64::try_from(bytes).ok());
        let kind = if in_memory { MountKind::Tmpfs } else { MountKind::Volume };
        let tmpfs = size.filter(|_| in_memory).map(|size| TmpfsOptions { size, ..TmpfsOptions::default() });
        return Volume::Mount(Box::new(Mount { tmpfs, ..mount(kind, String::new()) }));
    }
    if !in_memory {
        if limit.is_some() {
            problems.warn(node.place, "sizeLimit is not enforced on disk: medium: Memory has a limit");
        }
        return scratch(None);
    }
    let size = limit.map(|bytes| format!("size={bytes},")).unwrap_or_default();
    let options =
        [("type", "tmpfs".to_owned()), ("device", "tmpfs".to_owned()), ("o", format!("{size}mode=1777,nosuid,nodev"))];
    let options = options.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    scratch(Some(Driver { name: "local".to_owned(), options }))
}

fn host_path(node: &Node, problems: &mut Problems) -> Volume {
    let (mut path, mut kind) = (String::new(), String::new());
    for field in entries(node, "hostPath", problems) {
        match field.key.as_str() {
            "path" => path = text(&field.value, "path", problems),
            "type" => kind = field.value.as_text().unwrap_or_default().to_owned(),
            _ => unknown_key(field, "hostPath", &["path", "type"], problems),
        }
    }
    if !path.starts_with('/') {
        problems.add(node.place, format!("a path of the node is absolute, not {path:?}"));
    }
    match kind.as_str() {
        "" | "DirectoryOrCreate" | "Directory" | "File" | "Socket" | "CharDevice" | "BlockDevice" => {}
        "FileOrCreate" => {
            problems.add(node.place, "FileOrCreate is not supported by skep: make the file on the nodes, and use File")
        }
        other => problems.add(node.place, format!("{other:?} is no type of a hostPath")),
    }
    // Kubernetes makes a missing folder only then; Docker's runtime did so for no type, too.
    let create_mountpoint = matches!(kind.as_str(), "" | "DirectoryOrCreate");
    let bind = BindOptions { create_mountpoint, ..BindOptions::default() };
    Volume::Mount(Box::new(Mount { bind: Some(bind), ..mount(MountKind::Bind, path) }))
}

fn claim(node: &Node, context: &Context<'_>, declared: &mut Vec<DeclaredVolume>, problems: &mut Problems) -> Volume {
    let (mut name, mut read_only) = (String::new(), false);
    for field in entries(node, "persistentVolumeClaim", problems) {
        match field.key.as_str() {
            "claimName" => name = text(&field.value, "claimName", problems),
            "readOnly" => read_only = boolean(&field.value, "readOnly", problems),
            _ => unknown_key(field, "persistentVolumeClaim", &["claimName", "readOnly"], problems),
        }
    }
    if !context.objects.has_claim(&context.owner.namespace, &name) {
        problems.add(node.place, format!("there is no PersistentVolumeClaim {name:?}: apply it together with this"));
        return Volume::Nothing;
    }
    let (mut mount, volume) = of_claim(&name, context);
    mount.read_only = read_only;
    declared.push(volume);
    Volume::Mount(Box::new(mount))
}

/// The mount of a claim, and the volume that it means.
fn of_claim(name: &str, context: &Context<'_>) -> (Mount, DeclaredVolume) {
    let stack = context.stack;
    let volume = super::super::build::cluster_name(stack, &context.owner.namespace, name);
    let options = VolumeOptions {
        labels: [(crate::manifest::stack::STACK_LABEL.to_owned(), stack.to_owned())].into(),
        // To Docker a volume of that name is another one on each node.
        pinned: !context.owner.is_docker(),
        ..VolumeOptions::default()
    };
    let mount = Mount { volume: Some(options.clone()), ..mount(MountKind::Volume, volume.clone()) };
    (mount, DeclaredVolume { key: name.to_owned(), name: volume, options: Some(options) })
}

fn nfs(node: &Node, context: &Context<'_>, declared: &mut Vec<DeclaredVolume>, problems: &mut Problems) -> Volume {
    let (mut server, mut path, mut read_only) = (String::new(), String::new(), false);
    for field in entries(node, "nfs", problems) {
        match field.key.as_str() {
            "server" => server = text(&field.value, "server", problems),
            "path" => path = text(&field.value, "path", problems),
            "readOnly" => read_only = boolean(&field.value, "readOnly", problems),
            _ => unknown_key(field, "nfs", &["server", "path", "readOnly"], problems),
        }
    }
    let options = [("type", "nfs4".to_owned()), ("device", format!(":{path}")), ("o", format!("addr={server},rw"))];
    let driver = Driver {
        name: "local".to_owned(),
        options: options.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
    };
    let word: String =
        format!("nfs-{server}{path}").chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let options = VolumeOptions {
        no_copy: true,
        labels: [(crate::manifest::stack::STACK_LABEL.to_owned(), context.stack.to_owned())].into(),
        driver: Some(driver),
        ..VolumeOptions::default()
    };
    let name = format!("{}_{}", context.stack, word.trim_end_matches('-'));
    declared.push(DeclaredVolume { key: word, name: name.clone(), options: Some(options.clone()) });
    Volume::Mount(Box::new(Mount { read_only, volume: Some(options), ..mount(MountKind::Volume, name) }))
}

impl Volumes {
    /// Reads `volumeMounts` into a container. `gid` is the group of the pod's volumes.
    pub fn mount(
        &mut self,
        node: &Node,
        context: &Context<'_>,
        gid: Option<u32>,
        container: &mut ContainerSpec,
        uses: &mut Uses,
        problems: &mut Problems,
    ) {
        for item in items(node, "volumeMounts", problems) {
            let Some(wish) = Wish::read(item, problems) else { continue };
            let name = &wish.name;
            let volume = match self.volumes.get(name) {
                Some(volume) => volume.clone(),
                None if context.own_claims.contains(name) => {
                    let (mut mount, mut volume) = of_claim(name, context);
                    // Each member has its own, named as Kubernetes names it: CLAIM-SET-ORDINAL.
                    mount.source = format!("{}-{}-{{{{.Task.Ordinal}}}}", mount.source, context.owner.name);
                    volume.name.clone_from(&mount.source);
                    if !self.declared.iter().any(|known| known.name == volume.name) {
                        self.declared.push(volume);
                    }
                    Volume::Mount(Box::new(mount))
                }
                None => {
                    problems
                        .add(item.place, format!("the pod has no volume with the name {name:?}: add it under volumes"));
                    continue;
                }
            };
            match volume {
                Volume::Nothing => {}
                Volume::Mount(mount) => container.mounts.extend(wish.place(*mount, gid, item.place, problems)),
                Volume::Files(files) => wish.files(&files, gid, container, uses, context, problems),
            }
        }
    }
}

/// An entry of `volumeMounts`.
struct Wish {
    name: String,
    target: String,
    sub_path: String,
    read_only: bool,
    propagation: String,
}

impl Wish {
    fn read(node: &Node, problems: &mut Problems) -> Option<Self> {
        let mut wish = Self {
            name: String::new(),
            target: String::new(),
            sub_path: String::new(),
            read_only: false,
            propagation: String::new(),
        };
        for field in entries(node, "a volume mount", problems) {
            let value = &field.value;
            match field.key.as_str() {
                "name" => wish.name = text(value, "name", problems),
                "mountPath" => wish.target = text(value, "mountPath", problems),
                "subPath" => wish.sub_path = relative(value, problems),
                "readOnly" => wish.read_only = boolean(value, "readOnly", problems),
                "mountPropagation" => match text(value, "mountPropagation", problems).as_str() {
                    "None" => {}
                    "HostToContainer" => wish.propagation = "rslave".to_owned(),
                    "Bidirectional" => wish.propagation = "rshared".to_owned(),
                    other => problems.add(value.place, format!("{other:?} is no mountPropagation")),
                },
                "subPathExpr" => problems.add(field.place, "subPathExpr is not supported by skep: use subPath"),
                "recursiveReadOnly" => problems.warn(field.place, "recursiveReadOnly is left out"),
                _ => unknown_key(
                    field,
                    "a volume mount",
                    &["name", "mountPath", "subPath", "readOnly", "mountPropagation"],
                    problems,
                ),
            }
        }
        if !wish.target.starts_with('/') {
            problems.add(node.place, format!("mountPath is an absolute path, not {:?}", wish.target));
            return None;
        }
        Some(wish)
    }

    fn place(&self, mut mount: Mount, gid: Option<u32>, place: Place, problems: &mut Problems) -> Option<Mount> {
        mount.target.clone_from(&self.target);
        mount.read_only |= self.read_only;
        match mount.kind {
            MountKind::Bind => {
                if !self.sub_path.is_empty() {
                    mount.source = format!("{}/{}", mount.source.trim_end_matches('/'), self.sub_path);
                }
                mount.bind.get_or_insert_default().propagation.clone_from(&self.propagation);
            }
            MountKind::Volume => {
                let options = mount.volume.get_or_insert_default();
                options.gid = gid;
                options.subpath.clone_from(&self.sub_path);
                if options.scratch {
                    mount.source.clone_from(&self.name);
                }
                if !self.propagation.is_empty() {
                    problems.add(place, "mountPropagation is for hostPath only");
                }
            }
            MountKind::Tmpfs => {}
        }
        Some(mount)
    }

    fn files(
        &self,
        files: &[File],
        gid: Option<u32>,
        container: &mut ContainerSpec,
        uses: &mut Uses,
        context: &Context<'_>,
        problems: &mut Problems,
    ) {
        let chosen: Vec<&File> = if self.sub_path.is_empty() {
            files.iter().collect()
        } else {
            files.iter().filter(|file| file.path == self.sub_path).collect()
        };
        if chosen.is_empty() && !self.sub_path.is_empty() {
            let below = format!("{}/", self.sub_path);
            if files.iter().any(|file| file.path.starts_with(&below)) {
                let place = files[0].place;
                problems.add(place, format!("subPath {} names a folder of data: name a file", self.sub_path));
            }
        }
        for file in chosen {
            let path = if self.sub_path.is_empty() {
                format!("{}/{}", self.target.trim_end_matches('/'), file.path)
            } else {
                self.target.clone()
            };
            // As the kubelet: the pod's group reads what its volumes hold.
            let (group, mode) = gid.map_or((0, file.mode), |gid| (gid, file.mode | 0o440));
            // Docker's own folder of secrets goes without saying.
            let in_folder = path.strip_prefix("/run/secrets/").filter(|rest| !rest.contains('/'));
            let path = match in_folder {
                Some(rest) if context.owner.is_docker() && file.kind == FileKind::Secret => rest.to_owned(),
                _ => path,
            };
            let target = FileTarget { name: path, uid: "0".to_owned(), gid: group.to_string(), mode };
            uses.file(file, target, container, context, problems);
        }
    }
}
