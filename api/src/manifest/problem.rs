//! What is wrong in files, and where.

use std::fmt;

/// A file among those that are read together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct FileId(u32);

/// A place in a file: line and column, both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Place {
    /// The file.
    pub file: FileId,
    /// Line; 0 for the file as a whole.
    pub line: usize,
    /// Column, in characters.
    pub column: usize,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub place: Place,
    /// What, and what to do.
    pub message: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct File {
    name: String,
    text: String,
}

/// Everything that is wrong in files that are read together, in the order of files and places.
///
/// `Display` prints each as `FILE:LINE:COLUMN: MESSAGE`, the line itself, and a caret below the place.
#[derive(Debug, Clone, PartialEq, Eq, Default, thiserror::Error)]
pub struct Problems {
    files: Vec<File>,
    problems: Vec<Problem>,
    /// Those beyond [`MOST`].
    more: usize,
    warnings: Vec<Problem>,
}

/// A line of the file is shown up to this many characters.
const EXCERPT: usize = 160;
/// Problems kept at most: the rest is counted.
const MOST: usize = 100;

impl Problems {
    /// No file and no problem yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a file that places may be in. Its text is kept for excerpts.
    pub fn file(&mut self, name: &str, text: &str) -> FileId {
        let id = u32::try_from(self.files.len()).unwrap_or(u32::MAX);
        self.files.push(File { name: name.to_owned(), text: text.to_owned() });
        FileId(id)
    }

    /// The name of a file.
    pub fn name(&self, file: FileId) -> &str {
        self.files.get(file.0 as usize).map_or("", |f| &f.name)
    }

    /// Adds one.
    pub fn add(&mut self, place: Place, message: impl Into<String>) {
        if self.problems.len() >= MOST {
            self.more += 1;
            return;
        }
        let problem = Problem { place, message: message.into() };
        // What is read twice (by an alias, or by `extends`) is wrong once.
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    /// Adds something that works, but perhaps not as the author thinks.
    pub fn warn(&mut self, place: Place, message: impl Into<String>) {
        let warning = Problem { place, message: message.into() };
        if self.warnings.len() < MOST && !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    /// The warnings, each as `FILE:LINE:COLUMN: MESSAGE`.
    pub fn warnings(&self) -> Vec<String> {
        let line = |w: &Problem| match w.place {
            Place { line: 0, file, .. } => format!("{}: {}", self.name(file), w.message),
            Place { line, column, file } => format!("{}:{line}:{column}: {}", self.name(file), w.message),
        };
        self.warnings.iter().map(line).collect()
    }

    /// What was collected.
    pub fn all(&self) -> &[Problem] {
        &self.problems
    }

    /// How many there are, those that are not kept included.
    pub fn count(&self) -> usize {
        self.problems.len() + self.more
    }

    /// `value`, unless there are problems.
    ///
    /// # Errors
    /// All the problems, sorted by place.
    pub fn finish<T>(self, value: T) -> Result<T, Self> {
        if self.problems.is_empty() { Ok(value) } else { Err(self.into_error()) }
    }

    /// The problems as an error, sorted by place.
    pub fn into_error(mut self) -> Self {
        self.problems.sort_by_key(|p| p.place);
        self
    }

    fn show(&self, f: &mut fmt::Formatter<'_>, problem: &Problem) -> fmt::Result {
        let Problem { place, message } = problem;
        let Some(file) = self.files.get(place.file.0 as usize) else { return f.write_str(message) };
        if place.line == 0 {
            return write!(f, "{}: {message}", file.name);
        }
        write!(f, "{}:{}:{}: {message}", file.name, place.line, place.column)?;
        if let Some(line) = file.text.lines().nth(place.line - 1) {
            // A long line is shown from a little before the place.
            let start = if place.column > EXCERPT { place.column - EXCERPT / 2 } else { 0 };
            let shown: String =
                line.chars().skip(start).take(EXCERPT).map(|c| if c.is_control() { ' ' } else { c }).collect();
            let number = place.line.to_string();
            write!(f, "\n  {number} | {shown}")?;
            let column = place.column.saturating_sub(start).max(1);
            write!(f, "\n  {:width$} | {:>column$}", "", "^", width = number.len())?;
        }
        Ok(())
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            self.show(f, problem)?;
        }
        if self.more > 0 {
            write!(f, "\nand {} more", self.more)?;
        }
        Ok(())
    }
}
