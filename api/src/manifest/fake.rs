//! A disk in memory, and readers over it, for tests.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::problem::Problems;
use super::reader::{self, Disk, Input, Options};
use super::stack::Stack;

/// Files by their absolute path.
#[derive(Debug, Default, Clone)]
pub struct FakeDisk(pub BTreeMap<PathBuf, Vec<u8>>);

impl FakeDisk {
    /// With those files below `/project`.
    pub fn with(files: &[(&str, &str)]) -> Self {
        let file = |(name, text): &(&str, &str)| (Path::new("/project").join(name), text.as_bytes().to_vec());
        Self(files.iter().map(file).collect())
    }
}

impl Disk for FakeDisk {
    fn read(&self, path: &Path, most: usize) -> io::Result<Vec<u8>> {
        let content = self.0.get(path).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        if content.len() > most { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(content.clone()) }
    }
}

/// Options for the stack `demo` in `/project`.
pub fn options() -> Options {
    Options { stack: Some("demo".to_owned()), directory: PathBuf::from("/project"), ..Options::default() }
}

/// Reads files, the first names and texts, as a user in `/project` does; they are on the disk, too.
pub fn read(inputs: &[(&str, &str)], options: &Options, disk: &FakeDisk) -> Result<Stack, Problems> {
    let input = |(name, text): &(&str, &str)| Input {
        name: (*name).to_owned(),
        text: (*text).to_owned(),
        directory: Path::new("/project").join(name).parent().map(Path::to_owned).unwrap_or_default(),
    };
    let inputs: Vec<Input> = inputs.iter().map(input).collect();
    reader::read(&inputs, options, disk)
}
