//! Finding objects as people name them: by id, by name, by a unique prefix of an id.

use std::collections::BTreeSet;
use std::sync::Arc;

use skep_api::ports::control::{ControlError, ObjectFilter};
use skep_proto::model::{Annotations, Labels};

use crate::store::{Object, Table};

/// Finds one object. A whole id wins, then a name, then a prefix that fits one object only.
pub fn find<T: Object + 'static>(
    table: &Table<T>,
    kind: &'static str,
    reference: &str,
    is_visible: impl Fn(&T) -> bool,
) -> Result<Arc<T>, ControlError> {
    let mut matches = table.by_prefix(reference).filter(|o| is_visible(o));
    let whole = reference.len() == skep_proto::model::id::ID_LEN;
    if whole && let Some(found) = matches.next() {
        return Ok(found.clone());
    }
    if let Some(named) = table.named(reference).filter(|o| is_visible(o)) {
        return Ok(named.clone());
    }
    let not_found = || ControlError::NotFound { kind, reference: reference.to_owned() };
    if reference.is_empty() {
        return Err(not_found());
    }
    let first = matches.next().ok_or_else(not_found)?.clone();
    match matches.count() {
        0 => Ok(first),
        others => Err(ControlError::Ambiguous { kind, reference: reference.to_owned(), matches: others + 1 }),
    }
}

/// Whether an object passes a filter. Kinds of service are the caller's to look at.
pub fn passes(filter: &ObjectFilter, id: &impl ToString, annotations: &Annotations) -> bool {
    starts_with_any(&filter.ids, || id.to_string())
        && starts_with_any(&filter.names, || annotations.name.clone())
        && has_labels(&filter.labels, &annotations.labels)
}

/// No prefix asked for, or one of them fits.
pub fn starts_with_any(prefixes: &BTreeSet<String>, text: impl Fn() -> String) -> bool {
    prefixes.is_empty() || prefixes.iter().any(|prefix| text().starts_with(prefix.as_str()))
}

/// Every label asked for is there: `key`, or `key=value`.
pub fn has_labels(wanted: &BTreeSet<String>, labels: &Labels) -> bool {
    wanted.iter().all(|want| match want.split_once('=') {
        Some((key, value)) => labels.get(key).is_some_and(|v| v == value),
        None => labels.contains_key(want),
    })
}
