//! What is wrong in a file, and where.

use std::fmt;

/// A place in a file: line and column, both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Place {
    /// Line.
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

/// Everything that is wrong in one file, in the order of its places.
///
/// `Display` prints each as `FILE:LINE:COLUMN: MESSAGE`, the line itself, and a caret below the place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Problems {
    file: String,
    text: String,
    problems: Vec<Problem>,
}

/// A line of the file is shown up to this many characters.
const EXCERPT: usize = 160;

impl Problems {
    /// No problem yet in that file.
    pub fn of(file: &str, text: &str) -> Self {
        Self { file: file.to_owned(), text: text.to_owned(), problems: Vec::new() }
    }

    /// Adds one.
    pub fn add(&mut self, place: Place, message: impl Into<String>) {
        self.problems.push(Problem { place, message: message.into() });
    }

    /// What was collected.
    pub fn all(&self) -> &[Problem] {
        &self.problems
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
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, Problem { place, message }) in self.problems.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{}:{}:{}: {message}", self.file, place.line, place.column)?;
            if let Some(line) = self.text.lines().nth(place.line.saturating_sub(1)) {
                let shown: String = line.chars().take(EXCERPT).map(|c| if c == '\t' { ' ' } else { c }).collect();
                let number = place.line.to_string();
                write!(f, "\n  {number} | {shown}")?;
                if place.column <= EXCERPT {
                    write!(f, "\n  {:width$} | {:>column$}", "", "^", width = number.len(), column = place.column)?;
                }
            }
        }
        Ok(())
    }
}
