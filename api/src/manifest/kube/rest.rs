//! Keys that a reader does not read itself.

use crate::manifest::decode::unknown_key;
use crate::manifest::problem::Problems;
use crate::manifest::yaml::Entry;

/// What is said of the keys that a reader does not read.
pub struct Rest<'a> {
    /// What has the keys: `a container`.
    pub what: &'a str,
    /// Those that it reads, for hints.
    pub known: &'a [&'a str],
    /// Keys of Kubernetes that skep refuses, and what to do instead.
    pub refused: &'a [(&'a str, &'a str)],
    /// Keys of Kubernetes that are left out, and what that means.
    pub left_out: &'a [(&'a str, &'a str)],
}

impl Rest<'_> {
    /// Takes such a key.
    pub fn take(&self, field: &Entry, problems: &mut Problems) {
        let key = field.key.as_str();
        let said =
            |list: &[(&str, &str)]| list.iter().find(|(name, _)| *name == key).map(|(_, text)| (*text).to_owned());
        // Written by the API server, or without meaning in every manifest that has it.
        if key == "status" || field.value.is_null() {
            return;
        }
        if let Some(text) = said(self.refused) {
            problems.add(field.place, format!("{key} of {} is not supported by skep: {text}", self.what));
        } else if let Some(text) = said(self.left_out) {
            problems.warn(field.place, format!("{key} of {} is left out: {text}", self.what));
        } else {
            let known: Vec<&str> = self
                .known
                .iter()
                .copied()
                .chain(self.refused.iter().chain(self.left_out).map(|(name, _)| *name))
                .collect();
            unknown_key(field, self.what, &known, problems);
        }
    }
}
