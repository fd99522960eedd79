//! Variables in values: `$NAME`, `${NAME}`, and what stands in when one is unset or empty (Compose Specification,
//! "Interpolation").
//!
//! | written | unset | empty | otherwise |
//! |---|---|---|---|
//! | `${A:-word}` | word | word | value |
//! | `${A-word}` | word | nothing | value |
//! | `${A:?word}` | problem | problem | value |
//! | `${A?word}` | problem | nothing | value |
//! | `${A:+word}` | nothing | nothing | word |
//! | `${A+word}` | nothing | word | word |
//!
//! A word may hold variables itself. `$$` is a dollar sign.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::manifest::problem::{Place, Problems};
use crate::manifest::yaml::{Entry, Node, Value};

/// Variables by name.
pub type Variables = BTreeMap<String, String>;

/// Bytes that the values of all files may have together once variables are put in.
const MOST_BYTES: usize = 32 << 20;
/// Levels of words inside words.
const MOST_DEPTH: usize = 20;

/// Puts variables into trees.
pub struct Interpolation<'a> {
    variables: &'a Variables,
    bytes: usize,
}

/// What is wrong with a text.
#[derive(Debug, PartialEq, Eq)]
enum Failure {
    /// It is no reference to a variable.
    Form(String),
    /// A variable that must be there is not.
    Missing(String),
    TooLong,
}

impl<'a> Interpolation<'a> {
    /// With those variables.
    pub fn new(variables: &'a Variables) -> Self {
        Self { variables, bytes: 0 }
    }

    /// The tree with the variables put in. Keys are left as they are.
    pub fn tree(&mut self, node: &Rc<Node>, problems: &mut Problems) -> Rc<Node> {
        let value = match &node.value {
            Value::Scalar { text, .. } if !text.contains('$') => return node.clone(),
            Value::Scalar { text, .. } => {
                // A value that becomes empty is an empty text, not an absent one.
                Value::Scalar { text: self.text(text, node.place, problems), quoted: true }
            }
            Value::Sequence(items) => Value::Sequence(items.iter().map(|item| self.tree(item, problems)).collect()),
            Value::Mapping(entries) => {
                let entry = |e: &Entry| Entry { value: self.tree(&e.value, problems), ..e.clone() };
                Value::Mapping(entries.iter().map(entry).collect())
            }
        };
        Rc::new(Node::new(node.place, value, node.tag))
    }

    /// One text with the variables put in; empty where that is not possible.
    pub fn text(&mut self, text: &str, place: Place, problems: &mut Problems) -> String {
        let mut unset = Vec::new();
        let lookup = |name: &str| self.variables.get(name).map(String::as_str);
        let left = MOST_BYTES - self.bytes;
        let result = substitute(text, &lookup, &mut unset, left, 0);
        for name in unset {
            let message =
                format!("the variable {name} is not set: it stands for nothing; ${{{name}:-VALUE}} gives a default");
            problems.warn(place, message);
        }
        match result {
            Ok(text) => {
                self.bytes += text.len();
                text
            }
            Err(failure) => {
                let message = match failure {
                    Failure::Form(form) => format!(
                        "{form} is no variable: write $NAME, ${{NAME}} or ${{NAME:-VALUE}}, and $$ for a dollar sign"
                    ),
                    Failure::Missing(message) => message,
                    Failure::TooLong => format!("with variables put in, values have more than {MOST_BYTES} bytes"),
                };
                problems.add(place, message);
                String::new()
            }
        }
    }
}

fn is_name_start(c: char) -> bool {
    c == '_' || c.is_ascii_alphabetic()
}

fn name_end(text: &str) -> usize {
    text.find(|c: char| !(c == '_' || c.is_ascii_alphanumeric())).unwrap_or(text.len())
}

fn substitute<'a>(
    text: &str,
    lookup: &dyn Fn(&str) -> Option<&'a str>,
    unset: &mut Vec<String>,
    most: usize,
    depth: usize,
) -> Result<String, Failure> {
    let (mut out, mut rest) = (String::new(), text);
    if depth > MOST_DEPTH {
        return Err(Failure::Form(format!("a word nested more than {MOST_DEPTH} times")));
    }
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(next) = after.strip_prefix('$') {
            out.push('$');
            rest = next;
        } else if let Some(inner) = after.strip_prefix('{') {
            let end = closing(inner).ok_or_else(|| Failure::Form(format!("{:?}", excerpt(&rest[at..]))))?;
            out.push_str(&braced(&inner[..end], lookup, unset, most, depth)?);
            rest = &inner[end + 1..];
        } else if after.starts_with(is_name_start) {
            let (name, next) = after.split_at(name_end(after));
            out.push_str(value_of(name, lookup, unset));
            rest = next;
        } else {
            return Err(Failure::Form(format!("{:?}", excerpt(&rest[at..]))));
        }
        if out.len() > most {
            return Err(Failure::TooLong);
        }
    }
    out.push_str(rest);
    if out.len() > most { Err(Failure::TooLong) } else { Ok(out) }
}

fn excerpt(text: &str) -> String {
    text.chars().take(20).collect()
}

fn value_of<'a>(name: &str, lookup: &dyn Fn(&str) -> Option<&'a str>, unset: &mut Vec<String>) -> &'a str {
    lookup(name).unwrap_or_else(|| {
        unset.push(name.to_owned());
        ""
    })
}

/// Where the brace closes that was open before the text; braces of references inside are stepped over.
fn closing(text: &str) -> Option<usize> {
    let (mut depth, mut previous) = (0usize, ' ');
    for (at, c) in text.char_indices() {
        match c {
            '{' if previous == '$' => depth += 1,
            '}' if depth == 0 => return Some(at),
            '}' => depth -= 1,
            _ => {}
        }
        // In `$$` the second is no beginning of a reference.
        previous = if c == '$' && previous == '$' { ' ' } else { c };
    }
    None
}

fn braced<'a>(
    inner: &str,
    lookup: &dyn Fn(&str) -> Option<&'a str>,
    unset: &mut Vec<String>,
    most: usize,
    depth: usize,
) -> Result<String, Failure> {
    let (name, operation) = inner.split_at(name_end(inner));
    if !name.starts_with(is_name_start) {
        return Err(Failure::Form(format!("{:?}", excerpt(&format!("${{{inner}}}")))));
    }
    if operation.is_empty() {
        return Ok(value_of(name, lookup, unset).to_owned());
    }
    let (counts_empty, operation) = operation.strip_prefix(':').map_or((false, operation), |rest| (true, rest));
    let value = lookup(name).filter(|value| !(counts_empty && value.is_empty()));
    let mut chars = operation.chars();
    let operator = chars.next();
    let mut word = |text: &str| substitute(text, lookup, unset, most, depth + 1);
    match (operator, value) {
        (Some('-' | '?'), Some(value)) => Ok(value.to_owned()),
        (Some('-'), None) | (Some('+'), Some(_)) => word(chars.as_str()),
        (Some('+'), None) => Ok(String::new()),
        (Some('?'), None) => {
            let why = word(chars.as_str())?;
            let state = if lookup(name).is_some() { "empty" } else { "not set" };
            let why = if why.is_empty() { String::new() } else { format!(": {why}") };
            Err(Failure::Missing(format!("the variable {name} is {state}, and the file needs it{why}")))
        }
        _ => Err(Failure::Form(format!("{:?}", excerpt(&format!("${{{inner}}}"))))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn variables() -> Variables {
        [("A", "a"), ("EMPTY", ""), ("B_1", "b")].map(|(k, v)| (k.to_owned(), v.to_owned())).into()
    }

    fn put_in(text: &str) -> Result<String, String> {
        let variables = variables();
        let mut problems = Problems::new();
        let text = Interpolation::new(&variables).text(text, Place::default(), &mut problems);
        problems.finish(text).map_err(|p| p.to_string())
    }

    #[test]
    fn every_form_has_its_meaning() {
        for (text, expected) in [
            ("plain", "plain"),
            ("$A-$B_1/${A}", "a-b/a"),
            ("$$A $${A} $$$$", "$A ${A} $$"),
            ("${UNSET}|$UNSET", "|"),
            ("${A:-w}${EMPTY:-w}${UNSET:-w}", "aww"),
            ("${A-w}${EMPTY-w}${UNSET-w}", "aw"),
            ("${A:+w}|${EMPTY:+w}|${UNSET:+w}", "w||"),
            ("${A+w}|${EMPTY+w}|${UNSET+w}", "w|w|"),
            ("${A:?no}${A?no}${EMPTY?no}", "aa"),
            ("${UNSET:-${EMPTY:-${A}x}y}z", "axyz"),
            ("${UNSET:-a b:c-d?e}", "a b:c-d?e"),
            ("${UNSET:-{x}}", "{x}"),
            ("${UNSET:-$$}", "$"),
        ] {
            assert_eq!(put_in(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_reference_or_must_be_there_is_a_problem() {
        for (text, because) in [
            ("$", "is no variable"),
            ("$1", "is no variable"),
            ("${A", "is no variable"),
            ("${}", "is no variable"),
            ("${A!}", "is no variable"),
            ("${A:}", "is no variable"),
            ("${UNSET:?give it}", "the variable UNSET is not set, and the file needs it: give it"),
            ("${UNSET?}", "the variable UNSET is not set, and the file needs it"),
            ("${EMPTY:?${A}}", "the variable EMPTY is empty, and the file needs it: a"),
        ] {
            let error = put_in(text).unwrap_err();
            assert!(error.contains(because), "{text}: {error}");
        }
        let deep = format!("{}x{}", "${U:-".repeat(5000), "}".repeat(5000));
        assert!(put_in(&deep).unwrap_err().contains("nested"));
    }

    #[test]
    fn values_that_grow_without_end_are_refused() {
        let variables = Variables::from([("BIG".to_owned(), "x".repeat(1 << 20))]);
        let mut problems = Problems::new();
        let mut interpolation = Interpolation::new(&variables);
        for _ in 0..100 {
            interpolation.text("$BIG", Place::default(), &mut problems);
        }
        assert!(problems.into_error().to_string().contains("more than"));
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "[$\\{\\}A:?+é -]{0,40}") {
            let _ = put_in(&text);
        }
    }
}
