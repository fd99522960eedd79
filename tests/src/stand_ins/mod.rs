//! Images that stand in for those of the internet, under the very names that manifests use: Debian's builds of the same
//! programs, with start scripts that do what the images' own do. What is real and what only answers says `images`.
//!
//! `$SKEP_STAND_INS` is a file tree of unpacked packages, as `find_stand_ins` of `deploy/lib.sh` makes it: a merged `/usr`, and
//! nothing configured.

mod images;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::Lab;
pub use images::{IMAGES, Image};

/// An archive as `docker save` writes it, with all images that were asked for. It is gone when this is dropped.
pub struct Archive {
    dir: TempDir,
}

impl Archive {
    /// Makes an archive of the images with those names.
    ///
    /// # Errors
    /// When there is no tree, a program is missing in it, or a name is not known.
    pub fn of(names: &[&str]) -> anyhow::Result<Self> {
        let tree = std::env::var_os("SKEP_STAND_INS")
            .context("SKEP_STAND_INS names the tree of stand-in programs; find_stand_ins of deploy/lib.sh makes it")?;
        let mut workshop = Workshop::new(PathBuf::from(tree))?;
        let mut wanted: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
        for name in names {
            let found = IMAGES.iter().position(|image| image.names.contains(name));
            wanted.entry(found.with_context(|| format!("{name} has no stand-in"))?).or_default().push(name);
        }
        let mut listed = Vec::new();
        for (index, names) in wanted {
            listed.push(workshop.image(&IMAGES[index], &names).with_context(|| format!("making {}", names[0]))?);
        }
        std::fs::write(workshop.out.path().join("manifest.json"), json!(listed).to_string())?;
        Ok(Self { dir: workshop.out })
    }

    /// Gives every node the images, and shuts it off from registries: where the internet is, they would give others.
    ///
    /// # Panics
    /// When a node refuses them.
    pub fn load(&self, lab: &Lab) {
        for node in lab.nodes() {
            for rule in [
                "add table inet offline",
                "add chain inet offline out { type filter hook output priority 0; }",
                "add rule inet offline out tcp dport 443 reject with tcp reset",
            ] {
                lab.lab(&["exec", &node, "--", "nft", rule]).expect("a node takes rules");
            }
        }
        let path = self.dir.path().join("images.tar");
        tar(self.dir.path(), &path, "images.tar").expect("tar makes the archive");
        std::thread::scope(|scope| {
            for node in lab.nodes() {
                let path = path.to_str().expect("a path of text");
                scope.spawn(move || {
                    let loaded = lab.docker(&node, &["load", "-q", "-i", path]);
                    loaded.unwrap_or_else(|e| panic!("{node} does not take the images: {e:#}"));
                });
            }
        });
        std::fs::remove_file(path).expect("the archive is ours");
    }
}

/// Where layers and configurations are made. Each layer is made once, whoever has it.
struct Workshop {
    tree: PathBuf,
    out: TempDir,
    /// Digests of layers by what they are made of.
    layers: BTreeMap<String, String>,
}

impl Workshop {
    fn new(tree: PathBuf) -> anyhow::Result<Self> {
        Ok(Self { tree, out: tempfile::tempdir()?, layers: BTreeMap::new() })
    }

    /// Makes an image; its entry in `manifest.json`.
    fn image(&mut self, image: &Image, names: &[&str]) -> anyhow::Result<Value> {
        let mut layers = vec![self.base()?];
        for programs in image.programs {
            layers.push(self.programs(programs.0, programs.1)?);
        }
        if !image.scripts.is_empty() {
            layers.push(self.scripts(image.scripts)?);
        }
        let volumes: BTreeMap<&str, Value> = image.volumes.iter().map(|path| (*path, json!({}))).collect();
        let mut config = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": {
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"],
                "Entrypoint": image.entrypoint, "Cmd": image.command, "WorkingDir": image.directory, "Volumes": volumes,
            },
            "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|l| format!("sha256:{l}")).collect::<Vec<_>>()},
        });
        if !image.stop.is_empty() {
            config["config"]["StopSignal"] = image.stop.into();
        }
        let config = config.to_string();
        let file = format!("{:x}.json", Sha256::digest(&config));
        std::fs::write(self.out.path().join(&file), config)?;
        let paths: Vec<String> = layers.iter().map(|layer| format!("{layer}.tar")).collect();
        Ok(json!({"Config": file, "RepoTags": names, "Layers": paths}))
    }

    /// What every image has: directories, names of users, and busybox.
    fn base(&mut self) -> anyhow::Result<String> {
        if let Some(layer) = self.layers.get("base") {
            return Ok(layer.clone());
        }
        let dir = tempfile::tempdir()?;
        let root = dir.path();
        std::fs::set_permissions(root, std::fs::Permissions::from_mode(0o755))?;
        for made in [
            "usr/bin",
            "usr/sbin",
            "usr/lib",
            "usr/lib64",
            "etc",
            "run",
            "tmp",
            "var/tmp",
            "var/log",
            "root",
            "data",
            "prometheus",
        ] {
            std::fs::create_dir_all(root.join(made))?;
        }
        for open in ["tmp", "var/tmp", "run", "data", "prometheus"] {
            std::fs::set_permissions(root.join(open), std::fs::Permissions::from_mode(0o1777))?;
        }
        for link in ["bin", "sbin", "lib", "lib64"] {
            symlink(format!("usr/{link}"), root.join(link))?;
        }
        symlink("/run", root.join("var/run"))?;
        let busybox = self.tree.join("usr/bin/busybox");
        let applets = Command::new(&busybox).arg("--list").output().context("running the tree's busybox")?;
        std::fs::copy(&busybox, root.join("usr/bin/busybox"))?;
        for applet in String::from_utf8_lossy(&applets.stdout).lines().filter(|name| *name != "busybox") {
            symlink("busybox", root.join("usr/bin").join(applet))?;
        }
        std::fs::write(
            root.join("etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n\
            postgres:x:999:999::/var/lib/postgresql:/bin/sh\n",
        )?;
        std::fs::write(root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\npostgres:x:999:\n")?;
        std::fs::write(root.join("etc/nsswitch.conf"), "hosts: files dns\n")?;
        self.keep("base", root)
    }

    /// Programs of the tree with their libraries, and whole directories.
    fn programs(&mut self, paths: &[&str], without: &[&str]) -> anyhow::Result<String> {
        let key = paths.join(" ");
        if let Some(layer) = self.layers.get(&key) {
            return Ok(layer.clone());
        }
        let mut wanted = BTreeSet::new();
        for path in paths {
            let found = self.find(path)?;
            let inside = self.tree.join(&found);
            let parts = if inside.is_dir() { files_below(&inside)? } else { vec![inside] };
            for part in
                parts.iter().filter(|p| p.to_string_lossy().contains(".so") || !p.to_string_lossy().contains("/share/"))
            {
                wanted.extend(self.libraries(part)?);
            }
            wanted.insert(found);
        }
        let layer = self.out.path().join("layer");
        // In the tree, so that links lead where they lead in a system; what they lead to is taken in their place.
        let mut command = Command::new("chroot");
        command.arg(&self.tree).args(["/usr/bin/tar", "-chf", "-"]);
        command.args(without.iter().map(|path| format!("--exclude={path}")));
        let made = command.args(&wanted).stdout(std::fs::File::create(&layer)?).stderr(Stdio::piped()).output()?;
        // A link of a package that leads to what is only made at its installation is left out.
        let complaints = String::from_utf8_lossy(&made.stderr).into_owned();
        let is_dangling = |line: &str| {
            line.contains("No such file") || line.contains("File removed") || line.contains("previous errors")
        };
        ensure!(complaints.lines().all(is_dangling), "{complaints}");
        self.name(&key, &layer)
    }

    /// A path of the tree; a `*` stands for the version that the distribution has.
    fn find(&self, path: &str) -> anyhow::Result<String> {
        let mut found = PathBuf::new();
        for part in path.split('/') {
            let Some((before, after)) = part.split_once('*') else {
                found.push(part);
                continue;
            };
            let mut names = Vec::new();
            for entry in std::fs::read_dir(self.tree.join(&found)).with_context(|| format!("looking for {path}"))? {
                names.push(entry?.file_name().to_string_lossy().into_owned());
            }
            names.retain(|name| name.starts_with(before) && name.ends_with(after));
            found.push(names.iter().max().with_context(|| format!("the tree has no {path}"))?);
        }
        ensure!(self.tree.join(&found).symlink_metadata().is_ok(), "the tree has no {path}");
        Ok(found.to_string_lossy().into_owned())
    }

    /// The libraries of a program, as the tree's own dynamic linker finds them, and the linker.
    fn libraries(&self, program: &Path) -> anyhow::Result<BTreeSet<String>> {
        let linker = ["usr/lib64/ld-linux-x86-64.so.2", "usr/lib/ld-linux-aarch64.so.1"];
        let linker = linker.into_iter().find(|p| self.tree.join(p).symlink_metadata().is_ok());
        let linker = linker.context("the tree has no dynamic linker")?;
        let inside = Path::new("/").join(program.strip_prefix(&self.tree)?);
        let output =
            Command::new("chroot").arg(&self.tree).arg(format!("/{linker}")).arg("--list").arg(inside).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        // What is no program, or a static one, has none.
        let mut found = BTreeSet::new();
        for line in text.lines().filter(|line| !line.contains("linux-vdso")) {
            ensure!(!line.contains("not found"), "{}: {line}", program.display());
            let Some(path) = line.split_whitespace().find(|word| word.starts_with('/')) else { continue };
            let path = path.strip_prefix("/usr").unwrap_or(path);
            found.insert(format!("usr{path}"));
        }
        if !found.is_empty() {
            found.insert(linker.to_owned());
        }
        Ok(found)
    }

    /// Start scripts and other files of our own; what lies in a `bin` can be run.
    fn scripts(&mut self, files: &[(&str, &str)]) -> anyhow::Result<String> {
        let key = format!("{files:?}");
        if let Some(layer) = self.layers.get(&key) {
            return Ok(layer.clone());
        }
        let dir = tempfile::tempdir()?;
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755))?;
        for (path, text) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().context("a file lies in a directory")?)?;
            std::fs::write(&path, text)?;
            let mode = if path.to_string_lossy().contains("/bin/") { 0o755 } else { 0o644 };
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
        }
        self.keep(&key, dir.path())
    }

    fn keep(&mut self, key: &str, root: &Path) -> anyhow::Result<String> {
        let layer = self.out.path().join("layer");
        tar(root, &layer, "")?;
        self.name(key, &layer)
    }

    /// Gives a layer its digest as its name.
    fn name(&mut self, key: &str, layer: &Path) -> anyhow::Result<String> {
        let digest = format!("{:x}", Sha256::digest(std::fs::read(layer)?));
        std::fs::rename(layer, self.out.path().join(format!("{digest}.tar")))?;
        self.layers.insert(key.to_owned(), digest.clone());
        Ok(digest)
    }
}

fn files_below(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(files_below(&entry.path())?);
        } else {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// An archive of a directory, whoever owns its files here; `without` is a name to leave out.
fn tar(root: &Path, archive: &Path, without: &str) -> anyhow::Result<()> {
    let mut command = Command::new("tar");
    command.arg("-cf").arg(archive).args(["--owner=0", "--group=0", "--numeric-owner"]);
    if !without.is_empty() {
        command.arg(format!("--exclude=./{without}"));
    }
    let made = command.arg("-C").arg(root).arg(".").status()?;
    ensure!(made.success(), "tar fails");
    Ok(())
}
