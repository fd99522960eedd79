//! Label selectors: which pods an object means.

use std::collections::BTreeMap;

use crate::manifest::decode::{entries, items, pairs, text, texts, unknown_key};
use crate::manifest::problem::Problems;
use crate::manifest::yaml::Node;

/// A condition on labels; all of a selector's must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Term {
    /// The label has one of the values.
    In(String, Vec<String>),
    /// The label has none of the values, or is not there.
    NotIn(String, Vec<String>),
    /// The label is there.
    Exists(String),
    /// It is not.
    Absent(String),
}

/// What a selector says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector(pub Vec<Term>);

impl Selector {
    /// Equal to these labels.
    pub fn of_labels(labels: BTreeMap<String, String>) -> Self {
        Self(labels.into_iter().map(|(key, value)| Term::In(key, vec![value])).collect())
    }

    /// Whether it means an object with these labels.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|term| match term {
            Term::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Term::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            Term::Exists(key) => labels.contains_key(key),
            Term::Absent(key) => !labels.contains_key(key),
        })
    }
}

/// Reads `matchLabels` and `matchExpressions`.
pub fn read(node: &Node, problems: &mut Problems) -> Selector {
    let mut terms = Vec::new();
    for field in entries(node, "a selector", problems) {
        match field.key.as_str() {
            "matchLabels" => terms.extend(Selector::of_labels(pairs(&field.value, "matchLabels", problems)).0),
            "matchExpressions" => {
                let list = items(&field.value, "matchExpressions", problems);
                terms.extend(list.iter().filter_map(|item| expression(item, problems)));
            }
            _ => unknown_key(field, "a selector", &["matchLabels", "matchExpressions"], problems),
        }
    }
    Selector(terms)
}

/// Reads `key`, `operator` and `values`.
pub fn expression(node: &Node, problems: &mut Problems) -> Option<Term> {
    let (mut key, mut operator, mut values) = (String::new(), String::new(), Vec::new());
    for field in entries(node, "an expression", problems) {
        match field.key.as_str() {
            "key" => key = text(&field.value, "key", problems),
            "operator" => operator = text(&field.value, "operator", problems),
            "values" => values = texts(&field.value, "values", problems),
            _ => unknown_key(field, "an expression", &["key", "operator", "values"], problems),
        }
    }
    match operator.as_str() {
        "In" if !values.is_empty() => Some(Term::In(key, values)),
        "NotIn" if !values.is_empty() => Some(Term::NotIn(key, values)),
        "Exists" => Some(Term::Exists(key)),
        "DoesNotExist" => Some(Term::Absent(key)),
        other => {
            let text = format!("an operator is In or NotIn with values, Exists or DoesNotExist, not {other:?}");
            problems.add(node.place, text);
            None
        }
    }
}
