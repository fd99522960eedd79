//! YAML as a tree that knows the place of each value.
//!
//! Aliases share their target, merge keys (`<<`) are resolved, duplicate keys are refused, and so are tags but for Compose's
//! `!reset` and `!override` and YAML's own (`!!str`). What a file may cost is bounded: its size, its depth, and the number of
//! nodes that a reader walks after aliases are followed.

use std::collections::HashMap;
use std::rc::Rc;

use granit_parser::{Event, Options, Parser, ScalarStyle, Span};

use super::problem::{FileId, Place, Problems};

/// Bytes of a file at most.
pub const MOST_BYTES: usize = 8 << 20;
/// Nodes at most, those behind an alias counted each time.
const MOST_NODES: usize = 200_000;
/// Levels at most.
const MOST_DEPTH: usize = 100;

/// A value and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Where it begins.
    pub place: Place,
    /// What it is.
    pub value: Value,
    /// What merging files does with it.
    pub tag: Option<Tag>,
    /// Itself and everything below it, counted.
    weight: usize,
}

/// What merging files does with a value (Compose Specification, "Merge").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tag {
    /// It takes away what the files before said.
    Reset,
    /// It replaces what the files before said.
    Override,
}

/// A value. Scalars keep their text: what it means is for the reader to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Text, and whether it was quoted (a quoted `null` or `true` is text).
    Scalar {
        /// The text.
        text: String,
        /// It was quoted, or a block.
        quoted: bool,
    },
    /// A list.
    Sequence(Vec<Rc<Node>>),
    /// Pairs in their order.
    Mapping(Vec<Entry>),
}

/// A pair of a mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where the key begins.
    pub place: Place,
    /// The value.
    pub value: Rc<Node>,
}

impl Node {
    /// A value at a place, for passes that rewrite a tree.
    pub fn new(place: Place, value: Value, tag: Option<Tag>) -> Self {
        let below: usize = match &value {
            Value::Scalar { .. } => 0,
            Value::Sequence(items) => items.iter().map(|n| n.weight).sum(),
            Value::Mapping(entries) => entries.iter().map(|e| e.value.weight).sum(),
        };
        Self { place, value, tag, weight: below.saturating_add(1) }
    }

    /// How many values it has, those behind an alias counted each time.
    pub fn weight(&self) -> usize {
        self.weight
    }

    /// The value of a key, when this is a mapping that has it.
    pub fn get(&self, key: &str) -> Option<&Rc<Node>> {
        match &self.value {
            Value::Mapping(entries) => entries.iter().find(|e| e.key == key).map(|e| &e.value),
            _ => None,
        }
    }

    /// The text of a single value that is present.
    pub fn as_text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar { text, .. } if !self.is_null() => Some(text),
            _ => None,
        }
    }

    /// An absent value: nothing, `~` or `null`.
    pub fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, quoted: false } if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// What the value is, for messages.
    pub fn kind(&self) -> &'static str {
        match self.value {
            Value::Scalar { .. } if self.is_null() => "nothing",
            Value::Scalar { .. } => "a single value",
            Value::Sequence(_) => "a list",
            Value::Mapping(_) => "a mapping",
        }
    }
}

/// Reads every document of a text. What makes it unreadable is added to the problems, and nothing is returned.
pub fn parse(file: FileId, text: &str, problems: &mut Problems) -> Vec<Rc<Node>> {
    if text.len() > MOST_BYTES {
        let message = format!("the file has {} bytes; at most {MOST_BYTES} are read: split it", text.len());
        problems.add(Place { file, line: 0, column: 0 }, message);
        return Vec::new();
    }
    let mut options = Options::default();
    options.set_emit_comments(false);
    let parser = Parser::new_from_str_with_options(text, options);
    let mut builder = Builder { file, parser, anchors: HashMap::new(), nodes: 0 };
    builder.documents().unwrap_or_else(|(place, message)| {
        problems.add(place, message);
        Vec::new()
    })
}

type Failure = (Place, String);

struct Builder<'a> {
    file: FileId,
    parser: Parser<'a, granit_parser::StrInput<'a>>,
    anchors: HashMap<usize, Rc<Node>>,
    nodes: usize,
}

impl<'a> Builder<'a> {
    fn place(&self, span: Span) -> Place {
        Place { file: self.file, line: span.start.line(), column: span.start.col() + 1 }
    }

    fn next(&mut self) -> Result<(Event<'a>, Place), Failure> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => Ok((event, self.place(span))),
            Some(Err(error)) => {
                let mark = error.marker();
                Err((
                    Place { file: self.file, line: mark.line(), column: mark.col() + 1 },
                    advice(&error.info().to_string()),
                ))
            }
            None => Ok((Event::StreamEnd, Place::default())),
        }
    }

    fn documents(&mut self) -> Result<Vec<Rc<Node>>, Failure> {
        let mut documents = Vec::new();
        loop {
            match self.next()? {
                (Event::StreamEnd, _) => return Ok(documents),
                (Event::DocumentStart(..), _) => {
                    self.anchors.clear();
                    let (event, at) = self.next()?;
                    documents.push(self.node(event, at, 0)?);
                }
                _ => {}
            }
        }
    }

    fn node(&mut self, event: Event<'a>, at: Place, depth: usize) -> Result<Rc<Node>, Failure> {
        if depth > MOST_DEPTH {
            return Err((at, format!("nested more than {MOST_DEPTH} levels deep")));
        }
        let (anchor, tag, value) = match event {
            Event::Alias(id) => {
                // The parser refuses unknown names; an alias inside its own anchor is not complete yet.
                let target = self
                    .anchors
                    .get(&id)
                    .cloned()
                    .ok_or_else(|| (at, "the alias refers to a value that contains it".to_owned()))?;
                self.count(target.weight, at)?;
                return Ok(target);
            }
            Event::Scalar(text, style, anchor, tag) => {
                let quoted = !matches!(style, ScalarStyle::Plain);
                (anchor, tag, Value::Scalar { text: text.into_owned(), quoted })
            }
            Event::SequenceStart(_, anchor, tag) => (anchor, tag, self.sequence(depth)?),
            Event::MappingStart(_, anchor, tag) => (anchor, tag, self.mapping(depth)?),
            other => return Err((at, format!("unexpected {other:?}"))),
        };
        let (tag, value) = match tag.as_deref().map(|tag| (tag.handle(), tag.suffix())) {
            None => (None, value),
            Some(("!", "reset")) => (Some(Tag::Reset), value),
            Some(("!", "override")) => (Some(Tag::Override), value),
            Some(("tag:yaml.org,2002:", word)) => (None, value.typed(word).ok_or_else(|| (at, unknown_tag(word)))?),
            Some((_, word)) => return Err((at, unknown_tag(word))),
        };
        self.count(1, at)?;
        let node = Rc::new(Node::new(at, value, tag));
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn count(&mut self, more: usize, at: Place) -> Result<(), Failure> {
        self.nodes = self.nodes.saturating_add(more);
        if self.nodes > MOST_NODES {
            return Err((at, format!("the file has more than {MOST_NODES} values once its aliases are followed")));
        }
        Ok(())
    }

    fn sequence(&mut self, depth: usize) -> Result<Value, Failure> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(Value::Sequence(items)),
                (event, at) => items.push(self.node(event, at, depth + 1)?),
            }
        }
    }

    fn mapping(&mut self, depth: usize) -> Result<Value, Failure> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut merged: Vec<Entry> = Vec::new();
        let mut seen: HashMap<String, Place> = HashMap::new();
        loop {
            let (key, place) = match self.next()? {
                (Event::MappingEnd, _) => break,
                (event, at) => (self.node(event, at, depth + 1)?, at),
            };
            let (event, at) = self.next()?;
            let value = self.node(event, at, depth + 1)?;
            let Value::Scalar { text, quoted } = &key.value else {
                return Err((place, format!("a key is a single value, not {}", key.kind())));
            };
            if text == "<<" && !quoted {
                merge(&value, &mut merged)?;
                continue;
            }
            if let Some(first) = seen.insert(text.clone(), place) {
                return Err((place, format!("the key {text:?} stands here twice: first on line {}", first.line)));
            }
            entries.push(Entry { key: text.clone(), place, value });
        }
        // YAML merge type: keys of the mapping itself win, then the first of several merged mappings.
        for entry in merged {
            if !seen.contains_key(&entry.key) {
                seen.insert(entry.key.clone(), entry.place);
                entries.push(entry);
            }
        }
        Ok(Value::Mapping(entries))
    }
}

fn merge(value: &Rc<Node>, into: &mut Vec<Entry>) -> Result<(), Failure> {
    match &value.value {
        Value::Mapping(entries) => into.extend(entries.iter().cloned()),
        Value::Sequence(items) if items.iter().all(|i| matches!(i.value, Value::Mapping(_))) => {
            for item in items {
                merge(item, into)?;
            }
        }
        _ => return Err((value.place, format!("<< merges a mapping or a list of mappings, not {}", value.kind()))),
    }
    Ok(())
}

fn unknown_tag(word: &str) -> String {
    format!("the tag {word} is not supported: remove it; !reset and !override are, and YAML's own, like !!str")
}

/// The parser's words, and what to do where they do not say.
fn advice(error: &str) -> String {
    match error {
        _ if error.contains("tab") => format!("{error}: indent with spaces"),
        "recursion limit exceeded" => format!("nested more than {MOST_DEPTH} levels deep"),
        _ => error.to_owned(),
    }
}

impl Value {
    /// The value as a tag of YAML says (`!!str 1`); `None` when it is not that.
    fn typed(self, word: &str) -> Option<Self> {
        match (word, self) {
            ("str", Self::Scalar { text, .. }) => Some(Self::Scalar { text, quoted: true }),
            ("int" | "float" | "bool" | "null", value @ Self::Scalar { .. })
            | ("seq", value @ Self::Sequence(_))
            | ("map", value @ Self::Mapping(_)) => Some(value),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(file: &str, text: &str) -> Result<Vec<Rc<Node>>, Problems> {
        let mut problems = Problems::new();
        let id = problems.file(file, text);
        let documents = super::parse(id, text, &mut problems);
        problems.finish(documents)
    }

    fn scalar(node: &Node, path: &[&str]) -> String {
        match (&node.value, path) {
            (Value::Scalar { text, .. }, []) => text.clone(),
            (Value::Mapping(entries), [key, rest @ ..]) => {
                scalar(&entries.iter().find(|e| e.key == *key).expect("the key is there").value, rest)
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn merge_keys_are_resolved_and_the_mapping_itself_wins() {
        let text = "base: &b {image: x, user: u}\nmore: &m {user: v, tty: yes}\nweb: {<<: [*b, *m], image: y}\n";
        let tree = parse("f", text).unwrap();
        let get = |key| scalar(&tree[0], &["web", key]);
        assert_eq!((get("image"), get("user"), get("tty")), ("y".into(), "u".into(), "yes".into()));
    }

    #[test]
    fn comments_may_stand_everywhere() {
        let tree = parse("f", "# a\na: 1 # b\n# c\nb: # d\n  - x # e\n  # f\nc: [y, # g\n z]\n").unwrap();
        assert_eq!((scalar(&tree[0], &["a"]), tree.len()), ("1".into(), 1));
    }

    #[test]
    fn problems_have_file_line_column_and_a_caret() {
        let error = parse("stack.yml", "a: 1\nb:\n  c: 1\n  c: 2\n").unwrap_err();
        assert_eq!(
            error.to_string(),
            "stack.yml:4:3: the key \"c\" stands here twice: first on line 3\n  4 |   c: 2\n    |   ^"
        );
    }

    #[test]
    fn a_bomb_of_aliases_costs_little() {
        let mut text = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x]\n");
        for i in 1..30 {
            let of = format!("*a{}", i - 1);
            text.push_str(&format!("a{i}: &a{i} [{}]\n", vec![of; 9].join(",")));
        }
        assert!(parse("f", &text).unwrap_err().to_string().contains("more than 200000 values"));
    }

    #[test]
    fn depth_size_tags_and_tabs_are_refused() {
        for text in ["[".repeat(5000), "a: !include x".into(), "a:\n\tb: 1".into(), "x".repeat(MOST_BYTES + 1)] {
            assert!(parse("f", &text).is_err());
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "[ \\t\\na-c:{}\\[\\],&*!<>|'\"#-]{0,80}") {
            let _ = parse("f", &text).map_err(|e| e.to_string());
        }
    }
}
