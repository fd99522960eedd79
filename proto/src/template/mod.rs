//! Templates in services, secrets and configs: the part of Go's `text/template` that Docker's users write.
//!
//! ```text
//! {{.Service.Name}}   {{index .Service.Labels "tier"}}   {{env "PORT" | printf "port=%s"}}
//! {{- if eq .Node.Hostname "n1"}} first {{- else}} other {{- end}}
//! ```
//!
//! A template is parsed before it is expanded; what is not known here (variables, `range`, `with`, `define`, …) is an
//! error that names it and its place. Expanding ends: there are no loops, nesting is bounded, and so is the output.

mod eval;
mod lex;
mod parse;
pub mod task;
mod value;

#[cfg(test)]
mod tests;

pub use eval::{Functions, NoFunctions};
pub use value::Value;

use parse::Node;

/// A template that was parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    nodes: Vec<Node>,
}

/// Why a template cannot be parsed or expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} at offset {at} of the template")]
pub struct TemplateError {
    /// Offset in bytes.
    pub at: usize,
    /// What is wrong, for people.
    pub what: String,
}

impl TemplateError {
    fn new(at: usize, what: impl Into<String>) -> Self {
        Self { at, what: what.into() }
    }
}

/// Parses a template.
///
/// # Errors
/// What is not known, or malformed.
pub fn parse(text: &str) -> Result<Template, TemplateError> {
    parse::template(text).map(|nodes| Template { nodes })
}

impl Template {
    /// Expands it with `root` as its dot, to `most` bytes at most.
    ///
    /// # Errors
    /// Fields that are not there, wrong arguments, what a function says, and too much output.
    pub fn expand(&self, root: &Value, functions: &dyn Functions, most: usize) -> Result<String, TemplateError> {
        eval::expand(&self.nodes, root, functions, most)
    }
}
