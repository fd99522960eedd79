//! A manager whose disk is full: what was acknowledged stays, tasks run on, and it takes part again once there is room.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::path::Path;
use std::process::Command;

use skep_tests::{Lab, eventually};

/// A file system of a few megabytes, unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=256m", "tmpfs"]).arg(dir.path()).status();
        assert!(mounted.unwrap().success());
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn fill(&self) {
        let mut file = std::fs::File::create(self.path().join("fill")).unwrap();
        assert!(std::io::copy(&mut std::io::repeat(1), &mut file).is_err(), "it is full now");
    }

    fn free(&self) {
        std::fs::remove_file(self.path().join("fill")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Left mounted it would be found by the next look at the machine; there is nothing else to do.
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
#[ignore = "needs root"]
fn a_manager_whose_disk_was_full_goes_on_when_there_is_room() {
    let disk = SmallDisk::new();
    let lab = Lab::up_below(disk.path(), 1, 0, &[]);
    let create = ["service", "create", "-d", "--name", "web", "--replicas", "2", "-p", "8080:80", "skep/whoami:latest"];
    lab.docker("m1", &create).unwrap();
    lab.wait_for_running("m1", "web", 2);
    eventually("the port answers", || lab.http("m1", 8080, "/health").map(drop));
    let tasks = lab.running("m1", "web");
    disk.fill();
    let content = vec![b'x'; 400_000];
    let mut acknowledged = Vec::new();
    let mut refused = 0;
    // The log has room that it reserved; then it needs more.
    for n in 0..200 {
        let name = format!("c{n}");
        match lab.create_config("m1", &name, &content).is_ok() {
            true => acknowledged.push(name),
            false => refused += 1,
        }
        if refused == 2 {
            break;
        }
    }
    assert_eq!(refused, 2, "the disk was never full");
    lab.http("m1", 8080, "/health").unwrap();
    disk.free();
    eventually("writes are accepted again", || lab.create_config("m1", "after", b"x"));
    let configs = lab.docker("m1", &["config", "ls", "--format", "{{.Name}}"]).unwrap();
    let lost: Vec<_> = acknowledged.iter().filter(|name| !configs.lines().any(|line| line == **name)).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    assert_eq!(lab.running("m1", "web"), tasks, "no task was restarted");
}
