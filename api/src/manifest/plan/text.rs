//! A plan for people and as JSON.

use std::fmt;

use serde_json::{Value, json};

use super::diff::{shown, value_shown};
use super::{Field, Plan, Step};

impl fmt::Display for Plan {
    /// One line for each thing to do, one below it for each member that changes; then what was changed by hand, and notes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            let (action, kind, name, fields) = parts(step);
            let sign = match action {
                "create" => '+',
                "change" => '~',
                _ => '-',
            };
            writeln!(f, "{sign} {action} {kind} {name}")?;
            write_fields(f, fields)?;
        }
        for drift in &self.drift {
            writeln!(f, "! service {} was changed by hand; it stays so, --force takes it back:", drift.service)?;
            for field in &drift.fields {
                let (is, should) = (value_shown(field.old.as_ref()), value_shown(field.new.as_ref()));
                writeln!(f, "    {}: {is}, the files say {should}", shown(&field.path))?;
            }
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        if self.steps.is_empty() {
            return writeln!(f, "stack {}: no changes", self.stack);
        }
        let count = |wanted: &str| self.steps.iter().filter(|s| parts(s).0 == wanted).count();
        let counts = [("create", count("create")), ("change", count("change")), ("remove", count("remove"))];
        let words: Vec<String> =
            counts.iter().filter(|(_, n)| *n > 0).map(|(word, n)| format!("{n} to {word}")).collect();
        writeln!(f, "stack {}: {}", self.stack, words.join(", "))
    }
}

fn write_fields(f: &mut fmt::Formatter<'_>, fields: &[Field]) -> fmt::Result {
    for field in fields {
        let (old, new) = (value_shown(field.old.as_ref()), value_shown(field.new.as_ref()));
        writeln!(f, "    {}: {old} -> {new}", shown(&field.path))?;
    }
    Ok(())
}

/// Action, kind, name, and what changes.
fn parts(step: &Step) -> (&'static str, &'static str, &str, &[Field]) {
    match step {
        Step::MakeNetwork { name, .. } => ("create", "network", name, &[]),
        Step::MakeFile { kind, name, .. } => ("create", kind.word(), name, &[]),
        Step::MakeService { name, .. } => ("create", "service", name, &[]),
        Step::ChangeService { name, fields, .. } => ("change", "service", name, fields),
        Step::RemoveService { name, .. } => ("remove", "service", name, &[]),
        Step::RemoveNetwork { name, .. } => ("remove", "network", name, &[]),
        Step::RemoveFile { kind, name, .. } => ("remove", kind.word(), name, &[]),
    }
}

impl Plan {
    /// The plan as JSON: `{"stack", "changes": [{"action", "kind", "name", "fields"}], "drift", "notes"}`.
    pub fn json(&self) -> Value {
        let change = |step: &Step| {
            let (action, kind, name, fields) = parts(step);
            json!({"action": action, "kind": kind, "name": name, "fields": fields})
        };
        json!({
            "stack": self.stack,
            "changes": self.steps.iter().map(change).collect::<Vec<_>>(),
            "drift": self.drift,
            "notes": self.notes,
        })
    }

    /// How many things are created, changed and removed, for a history.
    pub fn summary(&self) -> String {
        let last = self.to_string();
        last.lines().last().and_then(|line| line.split_once(": ")).map(|(_, rest)| rest.to_owned()).unwrap_or_default()
    }
}
