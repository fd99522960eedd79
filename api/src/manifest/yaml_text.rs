//! A tree as YAML in blocks. Texts that could be read as anything else are quoted; those of several lines are blocks.

use std::fmt::Write;

use serde_json::Value;

/// What a dollar sign in a value is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dollar {
    /// Twice: Compose puts variables in.
    Doubled,
    /// As it is.
    Plain,
}

/// Members that say what the others are about come first.
const FIRST: [&str; 7] = ["apiVersion", "kind", "metadata", "name", "key", "image", "type"];

/// The text of a mapping.
pub fn write(value: &Value, dollar: Dollar) -> String {
    let mut out = String::new();
    block(value, 0, dollar, &mut out);
    out
}

fn block(value: &Value, depth: usize, dollar: Dollar, out: &mut String) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(map) => {
            let mut members: Vec<(&String, &Value)> = map.iter().collect();
            members.sort_by_key(|(key, _)| FIRST.iter().position(|first| first == key).unwrap_or(FIRST.len()));
            for (key, value) in members {
                // Variables are put into values, not into keys.
                let _ = write!(out, "{indent}{}:", scalar(key, Dollar::Plain));
                below(value, depth, dollar, out);
            }
        }
        Value::Array(list) => {
            for item in list {
                let _ = write!(out, "{indent}-");
                if item.as_object().is_some_and(|map| !map.is_empty()) || item.as_array().is_some_and(|l| !l.is_empty())
                {
                    // The first line of what is nested stands beside the dash.
                    let mut nested = String::new();
                    block(item, depth + 1, dollar, &mut nested);
                    let _ = write!(out, " {}", nested.trim_start_matches(' '));
                } else {
                    below(item, depth, dollar, out);
                }
            }
        }
        _ => {}
    }
}

fn below(value: &Value, depth: usize, dollar: Dollar, out: &mut String) {
    match value {
        Value::Object(map) if map.is_empty() => out.push_str(" {}\n"),
        Value::Array(list) if list.is_empty() => out.push_str(" []\n"),
        Value::Object(_) | Value::Array(_) => {
            out.push('\n');
            block(value, depth + 1, dollar, out);
        }
        Value::String(text) if is_literal(text) => {
            let text = if dollar == Dollar::Doubled { text.replace('$', "$$") } else { text.clone() };
            out.push_str(if text.ends_with('\n') { " |\n" } else { " |-\n" });
            for line in text.lines() {
                let indent = if line.is_empty() { String::new() } else { "  ".repeat(depth + 1) };
                let _ = writeln!(out, "{indent}{line}");
            }
        }
        Value::String(text) => {
            let _ = writeln!(out, " {}", scalar(text, dollar));
        }
        Value::Null => out.push('\n'),
        other => {
            let _ = writeln!(out, " {other}");
        }
    }
}

/// Several lines that a block gives back as they are.
fn is_literal(text: &str) -> bool {
    let body = text.strip_suffix('\n').unwrap_or(text);
    body.contains('\n')
        && !body.ends_with('\n')
        && !body.starts_with([' ', '\t', '\n'])
        && body
            .chars()
            .all(|c| c == '\n' || c == '\t' || (!c.is_control() && !"\u{85}\u{2028}\u{2029}\u{feff}".contains(c)))
}

/// A text, plain where nothing in it has a meaning.
fn scalar(text: &str, dollar: Dollar) -> String {
    let text = if dollar == Dollar::Doubled { text.replace('$', "$$") } else { text.to_owned() };
    let is_plain = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "/_-.:=@+,".contains(c))
        && !text.ends_with(':')
        && !["null", "true", "false", "yes", "no", "on", "off", "y", "n"].contains(&text.to_ascii_lowercase().as_str());
    if is_plain {
        return text;
    }
    if text.contains('"') && text.chars().all(|c| (' '..='~').contains(&c)) {
        return format!("'{}'", text.replace('\'', "''"));
    }
    // A JSON string is a double-quoted YAML one.
    Value::String(text).to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::manifest::problem::Problems;
    use crate::manifest::yaml;

    fn read_again(text: &str) -> Value {
        fn value(node: &yaml::Node) -> Value {
            match &node.value {
                _ if node.is_null() => Value::Null,
                yaml::Value::Scalar { text, .. } => json!(text),
                yaml::Value::Sequence(list) => list.iter().map(|item| value(item)).collect(),
                yaml::Value::Mapping(map) => {
                    Value::Object(map.iter().map(|e| (e.key.clone(), value(&e.value))).collect())
                }
            }
        }
        let mut problems = Problems::new();
        let file = problems.file("x", text);
        let nodes = yaml::parse(file, text, &mut problems);
        assert_eq!(problems.count(), 0, "{problems}\n{text}");
        nodes.first().map_or(Value::Null, |node| value(node))
    }

    #[test]
    fn lists_of_mappings_begin_beside_the_dash() {
        let tree = json!({"ports": [{"target": 80, "more": ["a", ["b"], {}]}, {"target": 81}], "text": "a\n\n  b\n", "json": "{\"it's\": 1}"});
        let expected = "json: '{\"it''s\": 1}'\nports:\n  - more:\n      - a\n      - - b\n      - {}\n    target: 80\n  - target: 81\ntext: |\n  a\n\n    b\n";
        assert_eq!(write(&tree, Dollar::Plain), expected);
        assert_eq!(write(&json!({"a": "$x\n$y"}), Dollar::Doubled), "a: |-\n  $$x\n  $$y\n");
        assert_eq!(write(&json!({"a": "$x"}), Dollar::Doubled), "a: \"$$x\"\n");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            texts in prop::collection::vec("[ -~\n\t'\"{}#:$é\u{85}]{0,12}", 1..5),
            keys in prop::collection::vec("[ -~]{1,6}", 2),
        ) {
            let mut inner = serde_json::Map::new();
            inner.insert(keys[0].clone(), json!(texts[0]));
            let tree = json!({"list": texts, "nested": [inner, [texts[0], {"x": texts[0]}]]});
            let text = write(&tree, Dollar::Plain);
            prop_assert_eq!(read_again(&text), tree, "{}", text);
        }
    }
}
