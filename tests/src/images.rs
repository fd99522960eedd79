//! Images made from the machine's own programs: no registry on the internet is needed.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Lab;

/// The one layer of an image of Debian's busybox-static, an archive below `dir`.
///
/// # Panics
/// When the package is missing.
pub fn busybox_layer(dir: &Path) -> PathBuf {
    let program = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|p| Path::new(p).exists());
    let program = program.expect("the package busybox-static is installed");
    let bin = dir.join("root/bin");
    std::fs::create_dir_all(&bin).expect("a directory");
    for made in ["tmp", "etc"] {
        std::fs::create_dir_all(dir.join("root").join(made)).expect("a directory");
    }
    std::fs::copy(program, bin.join("busybox")).expect("a copy of busybox");
    for name in ["sh", "sleep", "wget", "nslookup", "cat", "echo", "ls", "ip", "nc", "true", "hostname"] {
        std::os::unix::fs::symlink("busybox", bin.join(name)).expect("a link");
    }
    let archive = dir.join("root.tar");
    let made = Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(dir.join("root")).arg(".").status();
    assert!(made.expect("tar can be started").success(), "tar fails");
    archive
}

/// Gives every node `busybox:test`.
///
/// # Panics
/// When busybox is missing or a node refuses the image.
pub fn load_busybox(lab: &Lab) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let archive = busybox_layer(dir.path());
    let path = archive.to_str().expect("a path of text");
    for node in lab.nodes() {
        lab.docker(&node, &["import", path, "busybox:test"])
            .unwrap_or_else(|e| panic!("{node} does not take the image: {e:#}"));
    }
}
