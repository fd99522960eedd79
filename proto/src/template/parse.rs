//! From pieces to a tree.

use super::TemplateError;
use super::lex::{self, Kind, Piece, Token};

/// Parentheses and `if`s in each other at most.
const MOST_NESTED: usize = 64;

/// A part of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    Text(String),
    Print(Pipeline),
    /// Branches in order, then what holds when none does.
    If(Vec<(Pipeline, Vec<Node>)>, Vec<Node>),
}

/// Calls, each of which takes the result of the one before as its last argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pipeline {
    pub at: usize,
    pub calls: Vec<Call>,
}

/// A function with its arguments, or a single value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub at: usize,
    pub function: Option<Function>,
    pub arguments: Vec<Operand>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operand {
    Field(usize, Vec<String>),
    Text(String),
    Number(i64),
    Bool(bool),
    Nested(Pipeline),
}

macro_rules! functions {
    ($($variant:ident $name:literal),+) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Function {
            $($variant),+
        }
        impl Function {
            const ALL: &'static [(&'static str, Self)] = &[$(($name, Self::$variant)),+];
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name),+
                }
            }
        }
    };
}
functions! {
    Index "index", Join "join", Print "print", Printf "printf", Eq "eq", Ne "ne", Not "not", And "and", Or "or", Len "len",
    Env "env", Secret "secret", Config "config"
}

impl Function {
    fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, function)| *function)
    }
}

/// Words of Go's templates that are not known here.
const UNSUPPORTED: [&str; 7] = ["range", "with", "define", "template", "block", "break", "continue"];

/// Parses a template.
pub fn template(text: &str) -> Result<Vec<Node>, TemplateError> {
    let mut pieces = lex::pieces(text)?.into_iter();
    let (nodes, end) = nodes(&mut pieces, 0)?;
    match end {
        None => Ok(nodes),
        Some(End { at, word, .. }) => Err(TemplateError::new(at, format!("an unexpected {word}"))),
    }
}

/// The action that ends a list of nodes.
struct End {
    at: usize,
    word: &'static str,
    /// The condition of an `else if`.
    condition: Option<Pipeline>,
}

fn nodes(pieces: &mut impl Iterator<Item = Piece>, depth: usize) -> Result<(Vec<Node>, Option<End>), TemplateError> {
    let mut nodes = Vec::new();
    while let Some(piece) = pieces.next() {
        let (at, tokens) = match piece {
            Piece::Text(text) => {
                nodes.push(Node::Text(text));
                continue;
            }
            Piece::Action(at, tokens) => (at, tokens),
        };
        if depth > MOST_NESTED {
            return Err(TemplateError::new(at, format!("more than {MOST_NESTED} ifs in each other")));
        }
        let mut reader = Reader { at, tokens: tokens.into_iter().peekable() };
        match reader.keyword().as_deref() {
            Some("if") => {
                let condition = reader.pipeline(0)?;
                reader.finish()?;
                nodes.push(branches(pieces, at, condition, depth)?);
            }
            Some("else") => {
                let condition = match reader.keyword().as_deref() {
                    Some("if") => Some(reader.pipeline(0)?),
                    Some(word) => return Err(TemplateError::new(at, format!("else {word} is not supported"))),
                    None => None,
                };
                reader.finish()?;
                return Ok((nodes, Some(End { at, word: "else", condition })));
            }
            Some("end") => {
                reader.finish()?;
                return Ok((nodes, Some(End { at, word: "end", condition: None })));
            }
            Some(word) => return Err(TemplateError::new(at, format!("{word} is not supported"))),
            None => {
                nodes.push(Node::Print(reader.pipeline(0)?));
                reader.finish()?;
            }
        }
    }
    Ok((nodes, None))
}

fn branches(
    pieces: &mut impl Iterator<Item = Piece>,
    at: usize,
    first: Pipeline,
    depth: usize,
) -> Result<Node, TemplateError> {
    let (mut branches, mut condition) = (Vec::new(), first);
    loop {
        let (body, end) = nodes(pieces, depth + 1)?;
        branches.push((condition, body));
        match end {
            Some(End { word: "end", .. }) => return Ok(Node::If(branches, Vec::new())),
            Some(End { condition: Some(next), .. }) => condition = next,
            Some(End { at: otherwise, .. }) => {
                let (body, end) = nodes(pieces, depth + 1)?;
                return match end {
                    Some(End { word: "end", .. }) => Ok(Node::If(branches, body)),
                    _ => Err(TemplateError::new(otherwise, "an else that is not followed by end")),
                };
            }
            None => return Err(TemplateError::new(at, "an if without end")),
        }
    }
}

struct Reader<I: Iterator<Item = Token>> {
    at: usize,
    tokens: std::iter::Peekable<I>,
}

impl<I: Iterator<Item = Token>> Reader<I> {
    /// Takes a word that is no function, if one is next.
    fn keyword(&mut self) -> Option<String> {
        let is_keyword = |word: &str| ["if", "else", "end"].contains(&word) || UNSUPPORTED.contains(&word);
        match self.tokens.next_if(|token| matches!(&token.kind, Kind::Word(word) if is_keyword(word))) {
            Some(Token { kind: Kind::Word(word), .. }) => Some(word),
            _ => None,
        }
    }

    fn finish(&mut self) -> Result<(), TemplateError> {
        match self.tokens.next() {
            None => Ok(()),
            Some(token) => Err(TemplateError::new(token.at, "an unexpected token")),
        }
    }

    fn pipeline(&mut self, depth: usize) -> Result<Pipeline, TemplateError> {
        let at = self.tokens.peek().map_or(self.at, |token| token.at);
        if depth > MOST_NESTED {
            return Err(TemplateError::new(at, format!("more than {MOST_NESTED} parentheses in each other")));
        }
        let mut calls = vec![self.call(depth)?];
        while self.tokens.next_if(|token| token.kind == Kind::Pipe).is_some() {
            let call = self.call(depth)?;
            if call.function.is_none() {
                return Err(TemplateError::new(call.at, "something that is no function after |"));
            }
            calls.push(call);
        }
        Ok(Pipeline { at, calls })
    }

    fn call(&mut self, depth: usize) -> Result<Call, TemplateError> {
        let at = self.tokens.peek().map_or(self.at, |token| token.at);
        let mut call = Call { at, function: None, arguments: Vec::new() };
        while let Some(token) = self.tokens.next_if(|token| !matches!(token.kind, Kind::Pipe | Kind::Close)) {
            let operand = match token.kind {
                Kind::Field(path) => Operand::Field(token.at, path),
                Kind::Text(text) => Operand::Text(text),
                Kind::Number(number) => Operand::Number(number),
                Kind::Word(word) if word == "true" || word == "false" => Operand::Bool(word == "true"),
                Kind::Word(word) => {
                    let function = Function::named(&word);
                    let Some(function) = function else {
                        return Err(TemplateError::new(token.at, format!("function {word:?} is not defined")));
                    };
                    if call.function.is_none() && call.arguments.is_empty() {
                        call.function = Some(function);
                        continue;
                    }
                    Operand::Nested(Pipeline {
                        at: token.at,
                        calls: vec![Call { at: token.at, function: Some(function), arguments: Vec::new() }],
                    })
                }
                Kind::Open => {
                    let nested = self.pipeline(depth + 1)?;
                    if self.tokens.next_if(|token| token.kind == Kind::Close).is_none() {
                        return Err(TemplateError::new(token.at, "a parenthesis that is not closed"));
                    }
                    Operand::Nested(nested)
                }
                Kind::Pipe | Kind::Close => unreachable!("left for the caller"),
            };
            call.arguments.push(operand);
        }
        match (&call.function, call.arguments.len()) {
            (None, 0) => Err(TemplateError::new(at, "a missing value")),
            (None, 2..) => Err(TemplateError::new(at, "a value that is no function and has arguments")),
            _ => Ok(call),
        }
    }
}
