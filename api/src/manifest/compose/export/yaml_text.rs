//! A tree as YAML in blocks. Texts that could be read as anything else are quoted; a dollar sign is written twice, as Compose
//! puts variables in.

use std::fmt::Write;

use serde_json::Value;

/// The text of a mapping.
pub fn write(value: &Value) -> String {
    let mut out = String::new();
    block(value, 0, &mut out);
    out
}

fn block(value: &Value, depth: usize, out: &mut String) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let _ = write!(out, "{indent}{}:", scalar(key, false));
                below(value, depth, out);
            }
        }
        Value::Array(list) => {
            for item in list {
                let _ = write!(out, "{indent}-");
                below(item, depth, out);
            }
        }
        _ => {}
    }
}

fn below(value: &Value, depth: usize, out: &mut String) {
    match value {
        Value::Object(map) if map.is_empty() => out.push_str(" {}\n"),
        Value::Array(list) if list.is_empty() => out.push_str(" []\n"),
        Value::Object(_) | Value::Array(_) => {
            out.push('\n');
            block(value, depth + 1, out);
        }
        Value::String(text) => {
            let _ = writeln!(out, " {}", scalar(text, true));
        }
        Value::Null => out.push('\n'),
        other => {
            let _ = writeln!(out, " {other}");
        }
    }
}

/// A text, plain where nothing in it has a meaning. Variables are put into values, not into keys.
fn scalar(text: &str, is_value: bool) -> String {
    let text = if is_value { text.replace('$', "$$") } else { text.to_owned() };
    let is_plain = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "/_-.".contains(c))
        && !["null", "true", "false", "yes", "no", "on", "off", "y", "n"].contains(&text.to_ascii_lowercase().as_str());
    // A JSON string is a double-quoted YAML one.
    if is_plain { text } else { Value::String(text).to_string() }
}
