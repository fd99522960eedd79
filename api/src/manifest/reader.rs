//! Files to a stack: each document goes to the reader of its format, and what they read is one stack.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::problem::{Place, Problems};
use super::stack::{Parts, Stack};
use super::yaml::{self, Node};
use super::{compose, kube};

/// The disk, as far as readers need it: files that files name. Paths are absolute.
pub trait Disk {
    /// The content of a file.
    ///
    /// # Errors
    /// Those of the file system, and [`io::ErrorKind::FileTooLarge`] for more than `most` bytes.
    fn read(&self, path: &Path, most: usize) -> io::Result<Vec<u8>>;
}

/// A file that the user named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// Its name, as the user knows it.
    pub name: String,
    /// What it holds.
    pub text: String,
    /// The directory that it is in, absolute.
    pub directory: PathBuf,
}

/// What the user says beside the files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Name of the stack; wins over the files'.
    pub stack: Option<String>,
    /// The directory that paths are relative to and whose name the stack has when nothing else names it; absolute.
    pub directory: PathBuf,
    /// Files of variables instead of `.env`; absolute.
    pub env_files: Option<Vec<PathBuf>>,
    /// Variables of the caller; they win over those of files.
    pub environment: BTreeMap<String, String>,
    /// Profiles in force.
    pub profiles: Vec<String>,
}

/// What a reader of documents may look at.
pub struct Scope<'a> {
    /// Name of the stack.
    pub stack: &'a str,
    /// What the user said.
    pub options: &'a Options,
    /// The disk.
    pub disk: &'a dyn Disk,
}

/// A document and the directory that its paths are relative to.
pub struct Document {
    /// Its tree.
    pub node: Rc<Node>,
    /// The directory, absolute.
    pub directory: PathBuf,
}

/// Files read together at most.
pub const MOST_FILES: usize = 1000;
/// Values of all files together, those behind an alias counted each time.
pub const MOST_VALUES: usize = 1_000_000;

/// Reads files as one stack.
///
/// # Errors
/// Every problem of every file.
pub fn read(inputs: &[Input], options: &Options, disk: &dyn Disk) -> Result<Stack, Problems> {
    let mut problems = Problems::new();
    let (mut composes, mut kubes, mut weight) = (Vec::new(), Vec::new(), 0_usize);
    for input in inputs.iter().take(MOST_FILES) {
        let file = problems.file(&input.name, &input.text);
        let nodes = yaml::parse(file, &input.text, &mut problems);
        weight = nodes.iter().fold(weight, |sum, node| sum.saturating_add(node.weight()));
        if weight > MOST_VALUES {
            let message =
                format!("up to here, the files have more than {MOST_VALUES} values together: apply them in parts");
            problems.add(Place { file, line: 1, column: 1 }, message);
            break;
        }
        for node in nodes {
            if kube::is_kube(&node) {
                kubes.push(node);
            } else if !node.is_null() {
                composes.push(Document { node, directory: input.directory.clone() });
            }
        }
    }
    let whole = Place::default();
    if inputs.len() > MOST_FILES {
        problems.add(whole, format!("{} files are given; at most {MOST_FILES} are read together", inputs.len()));
    }
    if composes.is_empty() && kubes.is_empty() && problems.count() == 0 {
        problems
            .add(Place { line: 1, column: 1, ..whole }, "there is nothing in the file: a Compose file has services");
    }
    let project = compose::load(composes, options, disk, &mut problems);
    let name = options.stack.clone().or_else(|| project.name.clone()).unwrap_or_else(|| fallback(options));
    if !is_stack_name(&name) {
        let place = if options.stack.is_some() { whole } else { project.name_place.unwrap_or(whole) };
        let rule = "lower-case letters, digits, - and _, beginning with a letter or digit";
        problems.add(place, format!("{name:?} is no name of a stack: {rule}; --stack gives another"));
    }
    let scope = Scope { stack: &name, options, disk };
    let mut parts = compose::read(&project, &scope, &mut problems);
    let of_kube: Parts = kube::read(&kubes, &scope, &mut problems);
    parts.absorb(of_kube, &mut problems);
    let warnings = problems.warnings();
    problems.finish(Stack { name, parts, warnings })
}

/// The name that a stack has when nothing names it: the directory's, in the letters that are allowed (Compose
/// Specification, "Version and name": Compose makes a project's name likewise).
fn fallback(options: &Options) -> String {
    if let Some(name) = options.environment.get("COMPOSE_PROJECT_NAME").filter(|n| !n.is_empty()) {
        return name.clone();
    }
    let name = options.directory.file_name().map(|n| n.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    let allowed = name.chars().filter(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(*c));
    allowed.skip_while(|c| "-_".contains(*c)).take(63).collect()
}

fn is_stack_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && name.len() <= 63
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c))
}
