use std::sync::Arc;

use skep_proto::model::Timestamp;
use skep_proto::model::container::{BindOptions, VolumeOptions};

use super::*;

const ID: ContainerId = ContainerId([1; 32]);

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

fn spec(mounts: &[Mount]) -> ContainerSpec {
    ContainerSpec { mounts: mounts.to_vec(), ..ContainerSpec::default() }
}

fn image(volumes: &[&str]) -> ImageConfig {
    ImageConfig { volumes: volumes.iter().map(|v| (*v).to_owned()).collect(), ..ImageConfig::default() }
}

struct Node {
    dir: tempfile::TempDir,
    volumes: Volumes,
}

impl Node {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let volumes = Volumes::open(dir.path().join("volumes"), Arc::new(|| Timestamp(1))).await.unwrap();
        Self { dir, volumes }
    }

    async fn resolve(&self, mounts_: &[Mount], volumes: &[&str]) -> Result<Vec<ResolvedMount>, String> {
        mounts(&self.volumes, ID, &spec(mounts_), &image(volumes)).await.map_err(|e| e.to_string())
    }
}

#[tokio::test]
async fn images_volumes_are_anonymous_unless_something_is_mounted_there() {
    let node = Node::new().await;
    let got = node.resolve(&[mount(MountKind::Tmpfs, "", "/cache/")], &["/data", "/cache"]).await.unwrap();
    let shown: Vec<_> = got.iter().map(|m| (m.kind, m.target.as_str())).collect();
    assert_eq!(shown, [("tmpfs", "/cache/"), ("volume", "/data")]);
    assert_eq!(anonymous(ID, &got), [anonymous_name(ID, "/data")]);
    let volume = node.volumes.get(&got[1].name).unwrap();
    assert!(volume.labels.contains_key(ANONYMOUS));
    assert_eq!(got[1].source, volume.mountpoint);
}

#[tokio::test]
async fn a_named_volume_is_made_on_use_with_its_labels() {
    let node = Node::new().await;
    let options = VolumeOptions { labels: [("k".into(), "v".into())].into(), ..VolumeOptions::default() };
    let wish = Mount { volume: Some(options), read_only: true, ..mount(MountKind::Volume, "data", "/data") };
    let got = node.resolve(&[wish], &[]).await.unwrap();
    assert_eq!((got[0].name.as_str(), got[0].writable), ("data", false));
    assert_eq!(node.volumes.get("data").unwrap().labels, [("k".to_owned(), "v".to_owned())].into());
    assert!(anonymous(ID, &got).is_empty());
}

#[tokio::test]
async fn a_missing_bind_source_is_made_only_for_who_asked_so() {
    let node = Node::new().await;
    let source = node.dir.path().join("a/b").display().to_string();
    let wish = mount(MountKind::Bind, &source, "/b");
    let error = node.resolve(std::slice::from_ref(&wish), &[]).await.unwrap_err();
    assert_eq!(error, format!("invalid mount config for type \"bind\": bind source path does not exist: {source}"));
    let options = BindOptions { create_mountpoint: true, ..BindOptions::default() };
    let got = node.resolve(&[Mount { bind: Some(options), ..wish }], &[]).await.unwrap();
    assert!(got[0].source.is_dir());
    assert_eq!(got[0].propagation, "rprivate");
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_and_leaves_no_volume() {
    let node = Node::new().await;
    let anonymous = mount(MountKind::Volume, "", "/data");
    for (wishes, text) in [
        (vec![anonymous.clone(), mount(MountKind::Tmpfs, "", "/data/.")], "Duplicate mount point: /data/."),
        (
            vec![anonymous.clone(), mount(MountKind::Bind, "a", "/b")],
            "invalid mount config for type \"bind\": invalid mount path: 'a' mount path must be absolute",
        ),
        (
            vec![anonymous.clone(), mount(MountKind::Tmpfs, "", "b")],
            "invalid mount config for type \"tmpfs\": invalid mount path: 'b' mount path must be absolute",
        ),
        (
            vec![anonymous.clone(), mount(MountKind::Tmpfs, "", "/a/..")],
            "invalid mount config for type \"tmpfs\": invalid specification: destination can't be '/'",
        ),
    ] {
        assert_eq!(node.resolve(&wishes, &[]).await.unwrap_err(), text);
        assert_eq!(node.volumes.list(), []);
    }
}

#[tokio::test]
async fn a_subpath_cannot_leave_its_volume() {
    let node = Node::new().await;
    let wish = |subpath: &str| Mount {
        volume: Some(VolumeOptions { subpath: subpath.to_owned(), ..VolumeOptions::default() }),
        ..mount(MountKind::Volume, "data", "/data")
    };
    node.resolve(&[mount(MountKind::Volume, "data", "/data")], &[]).await.unwrap();
    let root = node.volumes.get("data").unwrap().mountpoint;
    std::fs::create_dir(root.join("in")).unwrap();
    std::os::unix::fs::symlink("/etc", root.join("out")).unwrap();
    assert!(node.resolve(&[wish("in")], &[]).await.unwrap()[0].source.ends_with("_data/in"));
    for bad in ["../x", "/etc", "out", "missing"] {
        assert!(node.resolve(&[wish(bad)], &[]).await.is_err(), "{bad}");
    }
}

#[test]
fn an_anonymous_volume_has_a_name_of_its_container_and_target() {
    assert_eq!(anonymous_name(ID, "/data"), anonymous_name(ID, "/data"));
    assert_ne!(anonymous_name(ID, "/data"), anonymous_name(ID, "/logs"));
    assert_ne!(anonymous_name(ID, "/data"), anonymous_name(ContainerId([2; 32]), "/data"));
    assert_eq!(anonymous_name(ID, "/data").len(), 64);
}
