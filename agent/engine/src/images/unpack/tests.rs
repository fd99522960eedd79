use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use proptest::prelude::*;
use tar::{Builder, EntryType, Header};

use super::*;

/// An archive in the making, owned by whoever runs the test, so that the tests need no root.
struct Layer(Builder<Vec<u8>>);

impl Layer {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    fn header(kind: EntryType, size: u64, mode: u32) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(mode);
        header.set_uid(rustix::process::getuid().as_raw().into());
        header.set_gid(rustix::process::getgid().as_raw().into());
        header.set_mtime(1_000_000);
        header
    }

    /// Sets a path without the checks that `tar` makes when it writes.
    fn raw(mut self, mut header: Header, path: &str, link: &str, content: &[u8]) -> Self {
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    fn file(self, path: &str, content: &[u8]) -> Self {
        self.raw(Self::header(EntryType::Regular, content.len() as u64, 0o644), path, "", content)
    }

    fn directory(self, path: &str, mode: u32) -> Self {
        self.raw(Self::header(EntryType::Directory, 0, mode), path, "", b"")
    }

    fn symlink(self, path: &str, target: &str) -> Self {
        self.raw(Self::header(EntryType::Symlink, 0, 0o777), path, target, b"")
    }

    fn hard_link(self, path: &str, target: &str) -> Self {
        self.raw(Self::header(EntryType::Link, 0, 0o644), path, target, b"")
    }

    fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

fn unpack(bytes: &[u8]) -> (tempfile::TempDir, Result<Unpacked, ArchiveError>) {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("root")).unwrap();
    let result = unpack_layer(bytes, &folder.path().join("root"), &Limits { bytes: 64 << 20, entries: 10_000 });
    (folder, result)
}

fn root(folder: &tempfile::TempDir) -> std::path::PathBuf {
    folder.path().join("root")
}

/// Whatever an archive does, the folder above the root holds the root and nothing else.
fn assert_contained(folder: &tempfile::TempDir) {
    let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["root"]);
}

#[test]
fn files_directories_and_links_are_made_with_mode_and_time() {
    let layer = Layer::new()
        .directory("bin/", 0o755)
        .raw(Layer::header(EntryType::Regular, 2, 0o4755), "bin/su", "", b"su")
        .hard_link("bin/su2", "/bin/su")
        .symlink("bin/sh", "/bin/su")
        .file("etc/deep/er/file", b"made without its parents")
        .bytes();
    let (folder, unpacked) = unpack(&layer);
    let unpacked = unpacked.unwrap();
    assert_eq!(unpacked, Unpacked { diff_id: Digest::of(&layer), size: 26 });
    let stat = |path: &str| fs::symlink_metadata(root(&folder).join(path)).unwrap();
    assert_eq!(stat("bin/su").permissions().mode() & 0o7777, 0o4755);
    assert_eq!(stat("bin/su").ino(), stat("bin/su2").ino());
    assert_eq!(
        (stat("bin").mtime(), stat("bin/su").mtime(), stat("bin/sh").mtime()),
        (1_000_000, 1_000_000, 1_000_000)
    );
    assert_eq!(fs::read_link(root(&folder).join("bin/sh")).unwrap(), Path::new("/bin/su"));
    assert_eq!(stat("etc/deep").permissions().mode() & 0o7777, 0o755);
    assert_eq!(fs::read(root(&folder).join("etc/deep/er/file")).unwrap(), b"made without its parents");
}

#[test]
fn the_diff_id_covers_what_follows_the_end_of_the_archive() {
    let mut layer = Layer::new().file("a", b"a").bytes();
    layer.extend([0; 20 * 512]);
    assert_eq!(unpack(&layer).1.unwrap().diff_id, Digest::of(&layer));
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&layer).unwrap();
    assert_eq!(unpack(&encoder.finish().unwrap()).1.unwrap().diff_id, Digest::of(&layer));
    assert_eq!(unpack(&zstd::encode_all(&layer[..], 1).unwrap()).1.unwrap().diff_id, Digest::of(&layer));
}

#[test]
fn a_whiteout_becomes_a_device_of_number_zero() {
    let (folder, unpacked) = unpack(&Layer::new().file("etc/.wh.gone", b"").file("etc/.wh..wh.plnk", b"").bytes());
    unpacked.unwrap();
    let stat = fs::symlink_metadata(root(&folder).join("etc/gone")).unwrap();
    assert!(stat.file_type().is_char_device());
    assert_eq!(stat.rdev(), 0);
    assert_eq!(fs::read_dir(root(&folder).join("etc")).unwrap().count(), 1);
}

#[test]
fn whiteouts_with_names_that_are_no_names_are_refused() {
    for name in [".wh.", ".wh..", "a/.wh..."] {
        let (folder, unpacked) = unpack(&Layer::new().file(name, b"").bytes());
        assert!(matches!(unpacked, Err(ArchiveError::Escape { .. })), "{name}");
        assert_contained(&folder);
    }
}

#[test]
fn paths_that_lead_out_of_the_layer_are_refused() {
    for path in ["../evil", "a/../../evil", "..", "./../evil"] {
        let (folder, unpacked) = unpack(&Layer::new().file(path, b"x").bytes());
        assert!(matches!(unpacked, Err(ArchiveError::Escape { .. })), "{path}");
        assert_contained(&folder);
    }
    let (folder, unpacked) = unpack(&Layer::new().file("a", b"x").hard_link("b", "../../etc/passwd").bytes());
    assert!(matches!(unpacked, Err(ArchiveError::Escape { .. })));
    assert_contained(&folder);
}

#[test]
fn absolute_paths_count_from_the_layers_root() {
    let (folder, unpacked) = unpack(&Layer::new().file("/abs/../file", b"x").bytes());
    unpacked.unwrap();
    assert!(root(&folder).join("file").is_file());
}

#[test]
fn symbolic_links_never_lead_out() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().to_str().unwrap();
    let attacks = [
        Layer::new().symlink("d", target).file("d/evil", b"x"),
        Layer::new().symlink("d", "../../../../../../../../tmp").file("d/evil", b"x"),
        Layer::new().symlink("d", "/").file("d/root/evil", b"x"),
        Layer::new().symlink("a", "..").symlink("a/b", "..").file("a/b/evil", b"x"),
        Layer::new().symlink("p", "/proc/self/root").file("p/evil", b"x"),
        Layer::new().symlink("p", "/proc/self/cwd/..").hard_link("h", "p/evil"),
        Layer::new().symlink("d", target).hard_link("h", "d/secret"),
    ];
    fs::write(outside.path().join("secret"), b"s").unwrap();
    for (i, attack) in attacks.into_iter().enumerate() {
        let (folder, _) = unpack(&attack.bytes());
        assert_contained(&folder);
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1, "attack {i}");
        assert_eq!(fs::metadata(outside.path().join("secret")).unwrap().nlink(), 1, "attack {i}");
        assert!(!Path::new("/tmp/evil").exists() && !Path::new("/evil").exists(), "attack {i}");
    }
}

#[test]
fn a_link_that_is_replaced_after_use_does_not_redirect_what_follows() {
    // The parent was opened while `d` was a directory; then it becomes a link out, then a directory again.
    let layer = Layer::new()
        .directory("d/", 0o755)
        .file("d/one", b"1")
        .symlink("d", "/tmp")
        .directory("d/", 0o755)
        .file("d/two", b"2");
    let (folder, unpacked) = unpack(&layer.bytes());
    unpacked.unwrap();
    let names: Vec<_> = fs::read_dir(root(&folder).join("d")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["two"], "the directory was replaced with all in it");
}

#[test]
fn a_write_to_a_linked_name_replaces_the_link() {
    let (folder, unpacked) = unpack(&Layer::new().file("a", b"a").symlink("l", "a").file("l", b"b").bytes());
    unpacked.unwrap();
    assert_eq!(fs::read(root(&folder).join("a")).unwrap(), b"a");
    assert!(fs::symlink_metadata(root(&folder).join("l")).unwrap().is_file());
}

#[test]
fn a_file_that_a_hard_link_shares_is_not_changed_through_it() {
    let (folder, unpacked) = unpack(&Layer::new().file("a", b"a").hard_link("b", "a").file("b", b"new").bytes());
    unpacked.unwrap();
    assert_eq!(fs::read(root(&folder).join("a")).unwrap(), b"a");
}

#[test]
fn a_hard_link_to_nothing_names_both_ends() {
    let (_folder, unpacked) = unpack(&Layer::new().hard_link("b", "lower/a").bytes());
    assert_eq!(
        unpacked.unwrap_err().to_string(),
        "cannot make \"b\": the layer has no \"lower/a\" for it to be a hard link to"
    );
}

#[test]
fn long_names_of_both_kinds_and_extended_attributes_are_read() {
    let long = format!("{}/{}", "d".repeat(150), "f".repeat(200));
    let mut gnu = Layer::new();
    let mut header = Layer::header(EntryType::Regular, 1, 0o644);
    gnu.0.append_data(&mut header, &long, &b"x"[..]).unwrap();
    let pax = Layer::new()
        .pax(&[("path", long.as_bytes()), ("mtime", b"5.25"), ("SCHILY.xattr.user.note", b"v\0\n")])
        .file("short", b"x");
    for layer in [gnu.bytes(), pax.bytes()] {
        let (folder, unpacked) = unpack(&layer);
        unpacked.unwrap();
        assert!(root(&folder).join(&long).is_file());
    }
}

#[test]
fn attributes_that_steer_overlayfs_are_not_taken_from_an_archive() {
    let layer = Layer::new()
        .pax(&[("SCHILY.xattr.user.overlay.redirect", b"/x"), ("SCHILY.xattr.trusted.overlay.redirect", b"/x")])
        .file("f", b"x");
    let (folder, unpacked) = unpack(&layer.bytes());
    unpacked.unwrap();
    let mut buffer = [0u8; 1024];
    let n = rustix::fs::listxattr(root(&folder).join("f"), &mut buffer[..]).unwrap();
    let names = String::from_utf8_lossy(&buffer[..n]).into_owned();
    assert!(!names.contains("overlay"), "{names}");
}

#[test]
fn sparse_files_keep_their_holes() {
    let mut header = Layer::header(EntryType::GNUSparse, 1000, 0o644);
    {
        let gnu = header.as_gnu_mut().unwrap();
        gnu.set_real_size(1 << 20);
        gnu.sparse[0].set_offset(4096);
        gnu.sparse[0].set_length(600);
        gnu.sparse[1].set_offset(500_000);
        gnu.sparse[1].set_length(400);
    }
    let (folder, unpacked) = unpack(&Layer::new().raw(header, "sparse", "", &[7; 1000]).bytes());
    assert_eq!(unpacked.unwrap().size, 1 << 20);
    let content = fs::read(root(&folder).join("sparse")).unwrap();
    assert_eq!(content.len(), 1 << 20);
    assert_eq!(content.iter().filter(|b| **b == 7).count(), 1000);
    assert_eq!((content[4095], content[4096], content[500_399], content[500_400]), (0, 7, 7, 0));
}

#[test]
fn more_bytes_than_the_limit_are_refused_whether_real_or_stated() {
    let bomb = zstd::encode_all(std::io::repeat(0).take(200 << 20), 1).unwrap();
    let mut header = Layer::header(EntryType::Regular, 8 << 30, 0o644);
    header.as_old_mut().name[0] = b'f';
    header.set_cksum();
    let endless = [header.as_bytes().to_vec(), vec![1; 100 << 20]].concat();
    let compressed = [zstd::encode_all(&header.as_bytes()[..], 1).unwrap(), bomb.clone()].concat();
    for (name, archive) in [("zeros", &bomb), ("stated", &endless), ("compressed", &compressed)] {
        let (_folder, unpacked) = unpack(archive);
        assert!(matches!(unpacked, Err(ArchiveError::TooLarge { .. })), "{name}: {unpacked:?}");
    }
}

#[test]
fn more_entries_than_the_limit_are_refused() {
    let mut layer = Layer::new();
    for i in 0..10_001 {
        layer = layer.symlink(&format!("l{i}"), "x");
    }
    assert!(matches!(unpack(&layer.bytes()).1, Err(ArchiveError::TooManyEntries { limit: 10_000 })));
}

#[test]
fn truncated_and_foreign_streams_are_told_apart() {
    let whole = Layer::new().file("a", &[1; 5000]).bytes();
    assert!(matches!(unpack(&whole[..3000]).1, Err(ArchiveError::Truncated)));
    assert!(matches!(unpack(&whole[..300]).1, Err(ArchiveError::Truncated)));
    assert!(matches!(unpack(&[b'x'; 4096]).1, Err(ArchiveError::Broken { .. })));
    assert!(matches!(
        unpack(b"\x1f\x8b garbage that is not gzip").1,
        Err(ArchiveError::Truncated | ArchiveError::Io(_))
    ));
    assert_eq!(unpack(b"").1.unwrap().size, 0, "an empty stream is an empty layer");
}

#[test]
fn an_entry_of_an_unknown_kind_is_named() {
    let layer = Layer::new().raw(Layer::header(EntryType::new(b'V'), 0, 0o644), "label", "", b"").bytes();
    assert_eq!(unpack(&layer).1.unwrap_err().to_string(), "entry \"label\" has type 'V', which is not supported");
}

/// A layer with something of everything, to be damaged.
fn sample() -> Vec<u8> {
    Layer::new()
        .directory("d/", 0o755)
        .pax(&[("path", b"d/long-name"), ("size", b"3"), ("SCHILY.xattr.user.a", b"b")])
        .file("x", b"abc")
        .symlink("d/l", "../x")
        .hard_link("d/h", "d/long-name")
        .file("d/.wh.w", b"")
        .file("big", &[9; 3000])
        .bytes()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn a_damaged_archive_never_panics_nor_leaves_its_root(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in any::<prop::sample::Index>(),
        fix_sums in any::<bool>(),
    ) {
        let mut bytes = sample();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if fix_sums {
            // Else most damage ends at the checksum and nothing behind it is tried.
            for block in bytes.chunks_exact_mut(512) {
                let sum: u32 = block[..148].iter().chain(&block[156..]).map(|b| u32::from(*b)).sum::<u32>() + 8 * 32;
                if block[257..262] == *b"ustar" {
                    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                }
            }
        }
        bytes.truncate(bytes.len() - cut.index(bytes.len()) / 4);
        let (folder, _) = unpack(&bytes);
        assert_contained(&folder);
    }

    #[test]
    fn cleaned_paths_hold_names_only(path in "[a./]{0,40}") {
        if let Ok(components) = clean(path.as_bytes()) {
            prop_assert!(components.iter().all(|c| !c.is_empty() && *c != b"." && *c != b".." && !c.contains(&b'/')));
        }
    }
}
