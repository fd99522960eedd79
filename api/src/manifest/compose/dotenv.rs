//! Files of variables: `.env`, `--env-file` and `env_file` (Compose Specification, "Env file").
//!
//! A line is `NAME=VALUE`, perhaps after `export`; `#` begins a comment. A value without quotes ends at ` #`, in double
//! quotes `\n`, `\t`, `\"`, `\\` and `\$` are escapes, in single quotes nothing is. Quoted values may span lines. Variables are
//! put in, but for single quotes. A name alone takes its value from the caller.

use crate::manifest::problem::{FileId, Place, Problems};

use super::interpolate::{Interpolation, Variables};

/// Bytes of a file of variables at most.
pub const MOST_BYTES: usize = 1 << 20;

/// Reads a file of variables into `into`; a later one of the same name wins. References are looked up in `outer` first, then
/// in what stands before. A name alone gives a variable only where `outer` has it.
pub fn read(file: FileId, text: &str, outer: &Variables, into: &mut Variables, problems: &mut Problems) {
    let mut rest = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut line = 1;
    while !rest.is_empty() {
        let before = rest.len();
        let trimmed = rest.trim_start_matches([' ', '\t', '\r']);
        let place = Place { file, line, column: before - trimmed.len() + 1 };
        let used = one(trimmed, place, outer, into, problems);
        let consumed = &rest[..before - trimmed.len() + used];
        line += consumed.matches('\n').count();
        rest = &rest[consumed.len()..];
    }
}

/// Reads a file of `NAME=VALUE` lines in which nothing else has a meaning (`format: raw`, and `docker run --env-file`).
pub fn read_raw(file: FileId, text: &str, outer: &Variables, into: &mut Variables, problems: &mut Problems) {
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = line.split_once('=').map_or((line.trim_end(), None), |(name, value)| (name, Some(value)));
        let place = Place { file, line: number + 1, column: 1 };
        if name.is_empty() || name.contains(char::is_whitespace) {
            problems.add(place, format!("{name:?} is no name of a variable: a line is NAME=VALUE"));
        } else if let Some(value) = value.or_else(|| outer.get(name).map(String::as_str)) {
            into.insert(name.to_owned(), value.to_owned());
        }
    }
}

/// Reads one line, or several for a quoted value; how many bytes it had.
fn one(text: &str, place: Place, outer: &Variables, into: &mut Variables, problems: &mut Problems) -> usize {
    let end_of_line = text.find('\n').map_or(text.len(), |at| at + 1);
    let line = text[..end_of_line].trim_end();
    if line.is_empty() || line.starts_with('#') {
        return end_of_line;
    }
    let body = line.strip_prefix("export ").map_or(line, str::trim_start);
    let offset = line.len() - body.len();
    let split = body.find(['=', ':']);
    let name = body[..split.unwrap_or(body.len())].trim_end();
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c)) {
        problems.add(
            place,
            format!("{:?} is no name of a variable: a line is NAME=VALUE", name.chars().take(40).collect::<String>()),
        );
        return end_of_line;
    }
    let Some(split) = split else {
        if let Some(value) = outer.get(name) {
            into.insert(name.to_owned(), value.clone());
        }
        return end_of_line;
    };
    let start = offset + split + 1;
    let start = start + text[start..].len() - text[start..].trim_start_matches([' ', '\t']).len();
    let quote = text[start..].chars().next().filter(|c| matches!(c, '"' | '\''));
    let (value, end) = match quote {
        Some(quote) => match quoted(&text[start + 1..], quote) {
            Some((value, used)) => (value, start + 1 + used),
            None => {
                problems.add(place, format!("the quotation mark of {name} is not closed"));
                return text.len();
            }
        },
        None => {
            let raw = text[start..end_of_line.max(start)].trim_end();
            let raw =
                raw.find(" #").or_else(|| raw.starts_with('#').then_some(0)).map_or(raw, |at| raw[..at].trim_end());
            (raw.to_owned(), end_of_line.max(start))
        }
    };
    let value = if quote == Some('\'') || !value.contains('$') {
        value
    } else {
        let mut variables = into.clone();
        variables.extend(outer.iter().map(|(k, v)| (k.clone(), v.clone())));
        Interpolation::new(&variables).text(&value, place, problems)
    };
    into.insert(name.to_owned(), value);
    // What follows a closing quotation mark on its line is a comment, if anything.
    let rest = &text[end..];
    if quote.is_some() {
        let line_end = rest.find('\n').map_or(rest.len(), |at| at + 1);
        let tail = rest[..line_end].trim();
        if !tail.is_empty() && !tail.starts_with('#') {
            problems.add(place, format!("{tail:?} follows the closing quotation mark of {name}: remove it"));
        }
        return end + line_end;
    }
    end
}

/// The value up to the closing quotation mark, and the bytes with it.
fn quoted(text: &str, quote: char) -> Option<(String, usize)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            c if c == quote => return Some((value, at + 1)),
            '\\' if quote == '"' => match chars.next()?.1 {
                'n' => value.push('\n'),
                't' => value.push('\t'),
                'r' => value.push('\r'),
                '$' => value.push_str("$$"),
                c @ ('"' | '\\') => value.push(c),
                c => value.extend(['\\', c]),
            },
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> Variables {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn parse(text: &str) -> Result<Variables, String> {
        let mut problems = Problems::new();
        let file = problems.file(".env", text);
        let mut into = Variables::new();
        read(file, text, &variables(&[("OUT", "outer")]), &mut into, &mut problems);
        problems.finish(into).map_err(|p| p.to_string())
    }

    #[test]
    fn lines_quotes_comments_and_references_are_read() {
        let text = "# c\nA=1\n export B = two words # c\nC=\"x\\ty $A\" # c\nD='$A\n#y'\n\nE=a#b\nF=\nOUT\nNONE\nG=${OUT}-${A:-}\nH: y\nI=\"\\$A\"\r\n";
        let expected = [
            ("A", "1"),
            ("B", "two words"),
            ("C", "x\ty 1"),
            ("D", "$A\n#y"),
            ("E", "a#b"),
            ("F", ""),
            ("OUT", "outer"),
            ("G", "outer-1"),
            ("H", "y"),
            ("I", "$A"),
        ];
        assert_eq!(parse(text), Ok(variables(&expected)));
    }

    #[test]
    fn nonsense_has_its_line() {
        let error = parse("A=1\nB='\nx\n").unwrap_err();
        assert!(error.starts_with(".env:2:1: the quotation mark of B is not closed"), "{error}");
        assert!(parse("A=1\n?=2\n").unwrap_err().starts_with(".env:2:1: \"?\" is no name"));
        assert!(parse("A='1'2\n").unwrap_err().contains("follows the closing"));
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "[A-C='\"\\\\# \\né$\\{\\}:\\r]{0,40}") {
            let _ = parse(&text);
            let mut problems = Problems::new();
            let file = problems.file("f", &text);
            read_raw(file, &text, &Variables::new(), &mut Variables::new(), &mut problems);
        }
    }
}
