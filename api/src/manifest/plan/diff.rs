//! What differs between two specs, member by member.

use serde::Serialize;
use serde_json::{Map, Value};

/// A member that differs. Absent on one side is `None`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Field {
    /// The way to it, in the API's names.
    pub path: Vec<String>,
    /// What the cluster has.
    pub old: Option<Value>,
    /// What is wanted.
    pub new: Option<Value>,
}

/// The members that differ, in the order of their paths.
pub fn diff(old: &Value, new: &Value) -> Vec<Field> {
    let (mut fields, mut path) = (Vec::new(), Vec::new());
    walk(Some(old), Some(new), &mut path, &mut fields);
    fields
}

fn walk(old: Option<&Value>, new: Option<&Value>, path: &mut Vec<String>, fields: &mut Vec<Field>) {
    if old == new {
        return;
    }
    let empty = Map::new();
    let (a, b) = match (old, new) {
        (Some(Value::Object(a)), Some(Value::Object(b))) => (a, b),
        // A part that comes or goes as a whole is told member by member, too.
        (Some(Value::Object(a)), None) if !a.is_empty() => (a, &empty),
        (None, Some(Value::Object(b))) if !b.is_empty() => (&empty, b),
        _ => {
            fields.push(Field { path: path.clone(), old: old.cloned(), new: new.cloned() });
            return;
        }
    };
    let mut keys: Vec<&String> = a.keys().chain(b.keys()).collect();
    keys.sort();
    keys.dedup();
    for key in keys {
        path.push(key.clone());
        walk(a.get(key), b.get(key), path, fields);
        path.pop();
    }
}

/// The value at a path.
pub fn at<'a>(value: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, key| value.get(key))
}

/// Puts a value at a path, or takes it away; objects that are left empty go, too.
pub fn set(value: &mut Value, path: &[String], to: Option<&Value>) {
    let Some((key, rest)) = path.split_first() else { return };
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    let Some(map) = value.as_object_mut() else { return };
    if rest.is_empty() {
        match to {
            Some(to) => drop(map.insert(key.clone(), to.clone())),
            None => drop(map.remove(key)),
        }
        return;
    }
    if to.is_none() && !map.contains_key(key) {
        return;
    }
    let inner = map.entry(key.clone()).or_insert_with(|| Value::Object(Map::new()));
    set(inner, rest, to);
    if to.is_none() && inner.as_object().is_some_and(Map::is_empty) {
        map.remove(key);
    }
}

/// A path for people: the parts that every spec has are left out.
pub fn shown(path: &[String]) -> String {
    let words: Vec<&str> = path.iter().map(String::as_str).collect();
    let rest = match words.as_slice() {
        ["TaskTemplate", "ContainerSpec", "Labels", rest @ ..] => return format!("container label {}", rest.join(".")),
        ["Labels", rest @ ..] => return format!("label {}", rest.join(".")),
        ["TaskTemplate", "ContainerSpec", "Env", rest @ ..] => return format!("variable {}", rest.join(".")),
        ["TaskTemplate", "ContainerSpec", rest @ ..]
        | ["TaskTemplate" | "EndpointSpec", rest @ ..]
        | ["Mode", "Replicated", rest @ ..] => rest,
        rest => rest,
    };
    rest.join(".")
}

/// A value for people; text without quotation marks.
pub fn value_shown(value: Option<&Value>) -> String {
    match value {
        None => "(none)".to_owned(),
        Some(Value::String(text)) if text.is_empty() => "\"\"".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn members_are_told_one_by_one() {
        let old = json!({"Name": "x", "TaskTemplate": {"ContainerSpec": {"Image": "a", "Env": {"A": "1", "B": "2"}}}});
        let new = json!({"Name": "x", "TaskTemplate": {"ContainerSpec": {"Image": "b", "Env": {"A": "1", "C": "3"}}}});
        let lines: Vec<String> = diff(&old, &new)
            .iter()
            .map(|f| format!("{}: {} -> {}", shown(&f.path), value_shown(f.old.as_ref()), value_shown(f.new.as_ref())))
            .collect();
        assert_eq!(lines, ["variable B: 2 -> (none)", "variable C: (none) -> 3", "Image: a -> b"]);
    }

    fn tree() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![any::<bool>().prop_map(Value::from), (0..3u8).prop_map(Value::from)];
        leaf.prop_recursive(3, 20, 3, |inner| {
            proptest::collection::btree_map("[abc]", inner, 1..3).prop_map(|m| Value::Object(m.into_iter().collect()))
        })
    }

    proptest! {
        /// What differs, put in, makes one the other.
        #[test]
        fn fields_turn_the_old_into_the_new(old in tree(), new in tree()) {
            prop_assume!(old.is_object() && new.is_object());
            let mut turned = old.clone();
            for field in diff(&old, &new) {
                set(&mut turned, &field.path, field.new.as_ref());
            }
            prop_assert_eq!(turned, new);
        }
    }
}
