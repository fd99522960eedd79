//! The files that the user names: files, directories, patterns, standard input.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::Args;
use skep_api::manifest::reader::MOST_FILES;
use skep_api::manifest::{Disk, Input, Options, Stack, yaml};

/// Flags that say what is wanted
#[derive(Debug, Clone, Args)]
pub struct InputFlags {
    /// A file, a directory, a pattern like 'dir/*.yml', or - for standard input; may be repeated, later files win
    #[arg(short, long, required = true)]
    file: Vec<PathBuf>,
    /// Name of the stack [default: the file's name:, else its directory's]
    #[arg(long)]
    stack: Option<String>,
    /// A file of variables in place of .env beside the first file; may be repeated
    #[arg(long)]
    env_file: Vec<PathBuf>,
    /// Take services of this profile too; may be repeated, '*' for all
    #[arg(long)]
    profile: Vec<String>,
}

/// Bytes of all files together.
const MOST_BYTES: usize = 8 * yaml::MOST_BYTES;

/// The disk itself.
struct RealDisk;

impl Disk for RealDisk {
    fn read(&self, path: &Path, most: usize) -> std::io::Result<Vec<u8>> {
        if is_named_pipe(path) {
            return Err(std::io::Error::other("it is a pipe, which nobody may ever write to"));
        }
        let limit = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1);
        let mut content = Vec::new();
        std::fs::File::open(path)?.take(limit).read_to_end(&mut content)?;
        if content.len() > most { Err(std::io::ErrorKind::FileTooLarge.into()) } else { Ok(content) }
    }
}

impl InputFlags {
    /// The stack that the files want. Warnings go to standard error.
    ///
    /// # Errors
    /// Every problem of every file.
    pub fn read(&self) -> anyhow::Result<Stack> {
        let here = std::env::current_dir().context("finding the current directory")?;
        let (mut inputs, mut bytes) = (Vec::new(), 0);
        for file in &self.file {
            for path in expand(file)? {
                let input = read(&path, &here)?;
                bytes += input.text.len();
                inputs.push(input);
                ensure!(
                    bytes <= MOST_BYTES,
                    "the files have more than {MOST_BYTES} bytes together: apply them in parts"
                );
                ensure!(inputs.len() <= MOST_FILES, "more than {MOST_FILES} files are given: apply them in parts");
            }
        }
        let first = inputs.first().context("there is no file to apply")?;
        let options = Options {
            stack: self.stack.clone(),
            directory: first.directory.clone(),
            env_files: (!self.env_file.is_empty()).then(|| self.env_file.iter().map(|f| here.join(f)).collect()),
            environment: environment(),
            profiles: self.profile.clone(),
        };
        let stack = skep_api::manifest::read(&inputs, &options, &RealDisk).map_err(|problems| {
            let count = problems.count();
            anyhow::anyhow!("{count} problem{}; nothing was changed\n{problems}", if count == 1 { "" } else { "s" })
        })?;
        stack.warnings.iter().for_each(|line| eprintln!("warning: {line}"));
        Ok(stack)
    }

    /// The files, for a history.
    pub fn names(&self) -> Vec<String> {
        self.file.iter().map(|f| f.display().to_string()).collect()
    }
}

/// Variables of the caller, those that are text.
fn environment() -> BTreeMap<String, String> {
    std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect()
}

fn read(path: &Path, here: &Path) -> anyhow::Result<Input> {
    let (name, directory, bytes) = if path == Path::new("-") {
        ("standard input".to_owned(), here.to_owned(), most(std::io::stdin().lock()).context("reading standard input")?)
    } else {
        let name = path.display().to_string();
        ensure!(!is_named_pipe(path), "{name} is a pipe, which nobody may ever write to: skep apply -f - < {name}");
        let file = std::fs::File::open(path).with_context(|| format!("reading {name}"))?;
        let bytes = most(file).with_context(|| format!("reading {name}"))?;
        // What a shell puts in the place of `<(command)` lies in no directory.
        let whole = path.canonicalize().ok().filter(|whole| whole.is_file());
        (name, whole.and_then(|w| w.parent().map(Path::to_owned)).unwrap_or_else(|| here.to_owned()), bytes)
    };
    let text = text(bytes).map_err(|problem| anyhow::anyhow!("{name}: {problem}"))?;
    Ok(Input { name, text, directory })
}

/// One that lies in a file system: to open it waits until somebody writes. What `<(command)` makes has its writer.
fn is_named_pipe(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    path.canonicalize().and_then(|whole| whole.metadata()).is_ok_and(|found| found.file_type().is_fifo())
}

/// All that there is, or one byte more than a manifest may have.
fn most(source: impl Read) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(u64::try_from(yaml::MOST_BYTES + 1)?).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn text(bytes: Vec<u8>) -> Result<String, String> {
    if bytes.len() > yaml::MOST_BYTES {
        return Err(format!("the file has more than {} bytes: split it", yaml::MOST_BYTES));
    }
    let is_wide = [&[0xff, 0xfe][..], &[0xfe, 0xff]].iter().any(|mark| bytes.starts_with(mark));
    String::from_utf8(bytes).map_err(|error| match is_wide {
        true => "the file is UTF-16: save it as UTF-8".to_owned(),
        false => {
            let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = good.iter().filter(|byte| **byte == b'\n').count() + 1;
            format!("line {line} is not text in UTF-8: save the file as UTF-8")
        }
    })
}

/// A directory is its files, a pattern those that match. Compose's own names come first, what overrides them after them.
fn expand(given: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if given == Path::new("-") || given.is_file() {
        return Ok(vec![given.to_owned()]);
    }
    let name = given.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let is_pattern = name.contains(['*', '?']);
    let directory = match (given.is_dir(), is_pattern) {
        (true, _) => given,
        (false, true) => given.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")),
        // The usual error of a file that is not there.
        (false, false) => return Ok(vec![given.to_owned()]),
    };
    let is_wanted = |file: &str| {
        let is_manifest = [".yml", ".yaml", ".json"].iter().any(|end| file.ends_with(end)) && !file.starts_with('.');
        if is_pattern && !given.is_dir() { matches(name.as_bytes(), file.as_bytes()) } else { is_manifest }
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))? {
        let entry = entry.with_context(|| format!("reading {}", directory.display()))?;
        if entry.path().is_file() && is_wanted(&entry.file_name().to_string_lossy()) {
            found.push(entry.path());
        }
        if found.len() > MOST_FILES {
            bail!("{} has more than {} manifests", directory.display(), MOST_FILES);
        }
    }
    ensure!(!found.is_empty(), "{} has no manifest: files end in .yml, .yaml or .json", given.display());
    found.sort_by_key(|path| (rank(path), path.clone()));
    Ok(found)
}

fn rank(path: &Path) -> u8 {
    match path.file_stem().and_then(|s| s.to_str()).unwrap_or_default() {
        "compose" | "docker-compose" => 0,
        "compose.override" | "docker-compose.override" => 1,
        _ => 2,
    }
}

/// Whether a name matches a pattern of `*` and `?`. Takes at most the product of their lengths.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => {
                let Some((at, from)) = star else { return false };
                star = Some((at, from + 1));
                p = at + 1;
                n = from + 1;
            }
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests;
