//! Images made from the machine's own programs: no registry on the internet is needed.

use std::path::Path;
use std::process::Command;

use crate::Lab;

/// Gives every node `busybox:test`, made from Debian's busybox-static.
///
/// # Panics
/// When the package is missing or a node refuses the image.
pub fn load_busybox(lab: &Lab) {
    let program = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|p| Path::new(p).exists());
    let program = program.expect("the package busybox-static is installed");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let bin = dir.path().join("root/bin");
    std::fs::create_dir_all(&bin).expect("a directory");
    for made in ["tmp", "etc"] {
        std::fs::create_dir_all(dir.path().join("root").join(made)).expect("a directory");
    }
    std::fs::copy(program, bin.join("busybox")).expect("a copy of busybox");
    for name in ["sh", "sleep", "wget", "nslookup", "cat", "echo", "ls", "ip", "nc", "true", "hostname"] {
        std::os::unix::fs::symlink("busybox", bin.join(name)).expect("a link");
    }
    let archive = dir.path().join("root.tar");
    let made = Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(dir.path().join("root")).arg(".").status();
    assert!(made.expect("tar can be started").success(), "tar fails");
    let path = archive.to_str().expect("a path of text");
    for node in lab.nodes() {
        lab.docker(&node, &["import", path, "busybox:test"])
            .unwrap_or_else(|e| panic!("{node} does not take the image: {e:#}"));
    }
}
