//! Reading typed values out of a tree, collecting problems instead of stopping at the first.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::str::FromStr;
use std::time::Duration;

use crate::manifest::problem::Problems;
use crate::manifest::yaml::{Entry, Node, Value};

/// Entries of a mapping; none for an absent one. Anything else is a problem.
pub fn entries<'a>(node: &'a Node, what: &str, problems: &mut Problems) -> &'a [Entry] {
    match &node.value {
        Value::Mapping(entries) => entries,
        _ if node.is_null() => &[],
        _ => {
            problems.add(node.place, format!("{what} is a mapping, not {}", node.kind()));
            &[]
        }
    }
}

/// Items of a list; none for an absent one.
pub fn items<'a>(node: &'a Node, what: &str, problems: &mut Problems) -> &'a [Rc<Node>] {
    match &node.value {
        Value::Sequence(items) => items,
        _ if node.is_null() => &[],
        _ => {
            problems.add(node.place, format!("{what} is a list, not {}", node.kind()));
            &[]
        }
    }
}

/// A single value as text; an absent one is empty.
pub fn text(node: &Node, what: &str, problems: &mut Problems) -> String {
    match &node.value {
        _ if node.is_null() => String::new(),
        Value::Scalar { text, .. } => text.clone(),
        _ => {
            problems.add(node.place, format!("{what} is a single value, not {}", node.kind()));
            String::new()
        }
    }
}

/// A value of any type that is read from text.
pub fn parsed<T: FromStr>(node: &Node, what: &str, expected: &str, problems: &mut Problems) -> Option<T> {
    let text = text(node, what, problems);
    let value = text.parse().ok();
    if value.is_none() {
        problems.add(node.place, format!("{what} is {expected}, not {text:?}"));
    }
    value
}

/// `true` or `false`.
pub fn boolean(node: &Node, what: &str, problems: &mut Problems) -> bool {
    match text(node, what, problems).to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" => true,
        "false" | "no" | "off" => false,
        other => {
            problems.add(node.place, format!("{what} is true or false, not {other:?}"));
            false
        }
    }
}

/// A list of texts, or a single text.
pub fn texts(node: &Node, what: &str, problems: &mut Problems) -> Vec<String> {
    match &node.value {
        Value::Scalar { .. } if !node.is_null() => vec![text(node, what, problems)],
        _ => items(node, what, problems).iter().map(|item| text(item, what, problems)).collect(),
    }
}

/// A command: a list of words, or one line that is split as a shell splits words.
pub fn command(node: &Node, what: &str, problems: &mut Problems) -> Vec<String> {
    match &node.value {
        Value::Scalar { .. } if !node.is_null() => {
            let line = text(node, what, problems);
            split_words(&line).unwrap_or_else(|| {
                problems.add(node.place, format!("a quotation mark of {what} is not closed"));
                Vec::new()
            })
        }
        _ => items(node, what, problems).iter().map(|item| text(item, what, problems)).collect(),
    }
}

/// Splits a line at blanks, honouring quotes and backslashes as POSIX shells do. `None` for an open quote.
fn split_words(line: &str) -> Option<Vec<String>> {
    let (mut words, mut word, mut started) = (Vec::new(), String::new(), false);
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\n' => {
                if std::mem::take(&mut started) {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            '\'' => loop {
                match chars.next()? {
                    '\'' => break,
                    c => word.push(c),
                }
            },
            '"' => loop {
                match chars.next()? {
                    '"' => break,
                    '\\' => match chars.next()? {
                        c @ ('"' | '\\' | '$' | '`') => word.push(c),
                        c => word.extend(['\\', c]),
                    },
                    c => word.push(c),
                }
            },
            '\\' => word.push(chars.next()?),
            c => word.push(c),
        }
        started = true;
    }
    if started {
        words.push(word);
    }
    Some(words)
}

/// `KEY=VALUE` items, or a mapping.
pub fn pairs(node: &Node, what: &str, problems: &mut Problems) -> BTreeMap<String, String> {
    match &node.value {
        Value::Sequence(items) => items
            .iter()
            .map(|item| {
                let text = text(item, what, problems);
                let (key, value) = text.split_once('=').unwrap_or((&text, ""));
                (key.to_owned(), value.to_owned())
            })
            .collect(),
        _ => entries(node, what, problems)
            .iter()
            .map(|e| (e.key.clone(), if e.value.is_null() { String::new() } else { text(&e.value, what, problems) }))
            .collect(),
    }
}

/// A duration as Compose writes it: `1m30s`, `500ms`; a bare number is refused, as its unit is a guess.
pub fn duration(node: &Node, what: &str, problems: &mut Problems) -> Option<Duration> {
    let text = text(node, what, problems);
    let value = duration_of(&text);
    if value.is_none() {
        problems.add(node.place, format!("{what} is a duration like 10s or 1m30s, not {text:?}"));
    }
    value
}

/// A duration as Compose writes it.
pub fn duration_of(text: &str) -> Option<Duration> {
    let (mut rest, mut total) = (text, Duration::ZERO);
    if rest == "0" {
        return Some(total);
    }
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|n| *n > 0)?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let seconds = match &rest[..unit] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = &rest[unit..];
    }
    Some(total)
}

/// A size as Compose writes it: `512M`, `1.5gb`; 1024 to the unit.
pub fn bytes(node: &Node, what: &str, problems: &mut Problems) -> i64 {
    let text = text(node, what, problems);
    bytes_of(&text).unwrap_or_else(|| {
        problems.add(node.place, format!("{what} is a size like 512M or 2GB, not {text:?}"));
        0
    })
}

/// A size in bytes as Compose writes it.
pub fn bytes_of(text: &str) -> Option<i64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..end].parse().ok()?;
    let shift = match text[end..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    let value = number * f64::from(1u32 << shift.min(30)) * if shift == 40 { 1024.0 } else { 1.0 };
    // Below 2^53 every whole number is exact.
    #[expect(clippy::cast_possible_truncation, reason = "the range was checked")]
    (0.0..9e15).contains(&value).then_some(value as i64)
}

/// A key that is not one of those known: a problem that names the nearest one.
pub fn unknown_key(entry: &Entry, inside: &str, known: &[&str], problems: &mut Problems) {
    let hint = nearest(&entry.key, known).map(|key| format!("; did you mean {key}?")).unwrap_or_default();
    problems.add(entry.place, format!("{inside} has no key {:?} that skep supports{hint}", entry.key));
}

/// The word that another one was probably meant to be.
pub fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    known.iter().map(|k| (distance(k, word), *k)).min().filter(|(d, _)| *d <= 2).map(|(_, key)| key)
}

/// Levenshtein distance, for words.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut corner = i;
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let step = corner + usize::from(ca != *cb);
            corner = row[j + 1];
            row[j + 1] = step.min(row[j] + 1).min(corner + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_split_as_a_shell_does() {
        let words = split_words(r#"sh -c "echo \"a b\" $X" 'it'\''s' """#).unwrap();
        assert_eq!(words, ["sh", "-c", "echo \"a b\" $X", "it's", ""]);
        assert_eq!(split_words("echo 'open"), None);
    }

    #[test]
    fn durations_and_sizes_are_read_in_compose_units() {
        assert_eq!(duration_of("1m30s"), Some(Duration::from_secs(90)));
        assert_eq!(duration_of("1.5s500ms"), Some(Duration::from_secs(2)));
        for wrong in ["", "5", "5x", "s", "1e9h", "-1s"] {
            assert_eq!(duration_of(wrong), None, "{wrong}");
        }
        assert_eq!(bytes_of("1.5gb"), Some(3 << 29));
        assert_eq!(bytes_of("64M"), Some(64 << 20));
        assert_eq!(bytes_of("1 parsec"), None);
    }

    #[test]
    fn the_nearest_key_is_named() {
        assert_eq!(distance("replica", "replicas"), 1);
        assert_eq!(distance("image", "ports"), 5);
    }
}
