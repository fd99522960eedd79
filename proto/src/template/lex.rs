//! From text to pieces: text between actions, and the tokens inside them.

use super::TemplateError;

/// A token of an action, with its offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub at: usize,
    pub kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// `.` and `.A.B`.
    Field(Vec<String>),
    Word(String),
    Text(String),
    Number(i64),
    Pipe,
    Open,
    Close,
}

/// A piece of a template.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    Text(String),
    /// What stands between `{{` and `}}`; the offset is that of `{{`.
    Action(usize, Vec<Token>),
}

/// White space that a trim marker takes away (Go: space, tab, return, newline).
const SPACE: [char; 4] = [' ', '\t', '\r', '\n'];

/// Cuts a template into pieces, trimmed where its markers say so.
pub fn pieces(text: &str) -> Result<Vec<Piece>, TemplateError> {
    let (mut pieces, mut at, mut trim) = (Vec::new(), 0, false);
    while let Some(open) = text[at..].find("{{").map(|found| at + found) {
        let mut start = open + 2;
        let trims_before = text[start..].starts_with('-') && text[start + 1..].starts_with(SPACE);
        push_text(&mut pieces, &text[at..open], trim, trims_before);
        start += usize::from(trims_before);
        let comment = text[start..].trim_start_matches(SPACE);
        if comment.starts_with("/*") {
            let end = comment.find("*/").ok_or_else(|| TemplateError::new(open, "a comment without end"))?;
            let rest = &comment[end + 2..];
            trim = rest.trim_start_matches(SPACE).starts_with("-}}") && rest.starts_with(SPACE);
            let close = rest.trim_start_matches(SPACE);
            let close = if trim { &close[1..] } else { close };
            if !close.starts_with("}}") {
                return Err(TemplateError::new(open, "a comment ends before its closing delimiter"));
            }
            at = text.len() - close.len() + 2;
            continue;
        }
        let (tokens, end, trims_after) = tokens(text, open, start)?;
        pieces.push(Piece::Action(open, tokens));
        (at, trim) = (end, trims_after);
    }
    push_text(&mut pieces, &text[at..], trim, false);
    Ok(pieces)
}

fn push_text(pieces: &mut Vec<Piece>, text: &str, trim_start: bool, trim_end: bool) {
    let text = if trim_start { text.trim_start_matches(SPACE) } else { text };
    let text = if trim_end { text.trim_end_matches(SPACE) } else { text };
    if !text.is_empty() {
        pieces.push(Piece::Text(text.to_owned()));
    }
}

/// The tokens from `at` to the closing delimiter; the offset behind it, and whether it trims.
fn tokens(text: &str, open: usize, mut at: usize) -> Result<(Vec<Token>, usize, bool), TemplateError> {
    let mut tokens = Vec::new();
    loop {
        let rest = &text[at..];
        let space = rest.len() - rest.trim_start_matches(SPACE).len();
        let rest = &rest[space..];
        at += space;
        if rest.starts_with("}}") {
            return Ok((tokens, at + 2, false));
        }
        if space > 0 && rest.starts_with("-}}") {
            return Ok((tokens, at + 3, true));
        }
        let Some(first) = rest.chars().next() else {
            return Err(TemplateError::new(open, "an action that is not closed by }}"));
        };
        let (kind, len) = match first {
            '|' => (Kind::Pipe, 1),
            '(' => (Kind::Open, 1),
            ')' => (Kind::Close, 1),
            '.' => field(rest, at)?,
            '"' => quoted(rest, at)?,
            '`' => {
                let end = rest[1..].find('`').ok_or_else(|| TemplateError::new(at, "a raw string without end"))?;
                (Kind::Text(rest[1..=end].to_owned()), end + 2)
            }
            c if c.is_ascii_digit() || c == '-' || c == '+' => number(rest, at)?,
            c if is_word(c) => {
                let len = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
                (Kind::Word(rest[..len].to_owned()), len)
            }
            '$' => return Err(TemplateError::new(at, "variables ($) are not supported")),
            '\'' => return Err(TemplateError::new(at, "character constants are not supported")),
            ':' | '=' => return Err(TemplateError::new(at, "assignments are not supported")),
            ',' => return Err(TemplateError::new(at, "an unexpected comma")),
            other => return Err(TemplateError::new(at, format!("an unexpected character {other:?}"))),
        };
        tokens.push(Token { at, kind });
        at += len;
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn field(rest: &str, at: usize) -> Result<(Kind, usize), TemplateError> {
    let (mut path, mut len) = (Vec::new(), 0);
    while rest[len..].starts_with('.') {
        let name = &rest[len + 1..];
        let end = name.find(|c| !is_word(c)).unwrap_or(name.len());
        if end == 0 && len > 0 {
            return Err(TemplateError::new(at + len, "a field without a name"));
        }
        if end > 0 {
            path.push(name[..end].to_owned());
        }
        len += 1 + end;
        if end == 0 {
            break;
        }
    }
    Ok((Kind::Field(path), len))
}

fn number(rest: &str, at: usize) -> Result<(Kind, usize), TemplateError> {
    let sign = usize::from(rest.starts_with(['-', '+']));
    let len = sign + rest[sign..].find(|c: char| !is_word(c) && c != '.').unwrap_or(rest.len() - sign);
    let number = rest[..len].parse();
    number
        .map(|number| (Kind::Number(number), len))
        .map_err(|_| TemplateError::new(at, format!("{:?} is no whole number", &rest[..len])))
}

/// An interpreted string (Go specification, "String literals"), without octal and surrogate escapes.
fn quoted(rest: &str, at: usize) -> Result<(Kind, usize), TemplateError> {
    let mut text = String::new();
    let mut chars = rest.char_indices().skip(1);
    while let Some((offset, c)) = chars.next() {
        match c {
            '"' => return Ok((Kind::Text(text), offset + 1)),
            '\n' => break,
            '\\' => {
                let escape = |what: &str| TemplateError::new(at + offset, format!("{what} is no escape in a string"));
                let (_, c) = chars.next().ok_or_else(|| escape("\\"))?;
                let digits = match c {
                    'n' => '\n'.into(),
                    't' => '\t'.into(),
                    'r' => '\r'.into(),
                    '\\' | '"' => c.into(),
                    'u' | 'x' => {
                        let count = if c == 'u' { 4 } else { 2 };
                        let digits: String = chars.by_ref().take(count).map(|(_, c)| c).collect();
                        let code = u32::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == count);
                        // \x names a byte: only those that are a character by themselves are text.
                        let code = code.filter(|code| c == 'u' || *code < 0x80).and_then(char::from_u32);
                        code.ok_or_else(|| escape(&format!("\\{c}{digits}")))?.to_string()
                    }
                    other => return Err(escape(&format!("\\{other}"))),
                };
                text.push_str(&digits);
            }
            c => text.push(c),
        }
    }
    Err(TemplateError::new(at, "a string without end"))
}
