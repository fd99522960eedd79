//! Whether the kernel holds what it was told, read from the kernel and changing nothing.

use std::collections::BTreeMap;
use std::io;

use super::diff;
use super::expr::Verdict;
use super::rule::Rule;
use super::table::{Chain, Family, Table, Value};
use crate::nlattr::{self, Attrs};
use crate::sys::netlink::NetlinkSocket;

const GET_RULE: u16 = (10 << 8) | 7;
const GET_ELEMENTS: u16 = (10 << 8) | 13;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = 0x301;

/// Elements of a set, with what they map to, if anything: attributes of data.
type Elements = BTreeMap<Vec<u8>, Option<Vec<u8>>>;
/// Expressions of rules by chain, each rule's as a list of attributes.
type Held<'a> = BTreeMap<String, Vec<&'a [u8]>>;

/// What of a table the kernel does not hold, or holds otherwise; each in a few words. Rules are counted, elements of sets
/// and maps are compared. With `closely` rules are compared as well, as far as the kernel repeats what it was told: that
/// need not be looked at where nobody changed anything.
///
/// # Errors
/// Those of the socket.
pub fn differences(socket: &mut NetlinkSocket, table: &Table, closely: bool) -> io::Result<Vec<String>> {
    let mut attrs = Attrs::new();
    attrs.text(1, &table.name);
    let messages = dump(socket, GET_RULE, table.family, &attrs)?.unwrap_or_default();
    let mut found = chains(table, &rules(&messages, &table.name), closely);
    for (name, set) in &table.sets {
        let mut attrs = Attrs::new();
        attrs.text(1, &table.name).text(2, name);
        let Some(messages) = dump(socket, GET_ELEMENTS, table.family, &attrs)? else {
            found.push(format!("set {name} of table {} is gone", table.name));
            continue;
        };
        let held = elements(&messages);
        let is_held = |(key, value): (&Vec<u8>, &Value)| match (held.get(key), value) {
            (Some(Some(held)), Value::Bytes(bytes)) => nlattr::find(held, 1) == Some(bytes),
            (Some(Some(held)), Value::Verdict(verdict)) => leads(held, verdict),
            (Some(_), Value::None) => true,
            (Some(None), Value::Bytes(_) | Value::Verdict(_)) | (None, _) => false,
        };
        let missing = set.elements.iter().filter(|element| !is_held(*element)).count();
        let strange = held.keys().filter(|key| !set.elements.contains_key(*key)).count();
        if missing + strange > 0 {
            found.push(format!(
                "set {name} of table {}: {missing} elements are missing or other, {strange} are not ours",
                table.name
            ));
        }
    }
    Ok(found)
}

/// A dump; `None` when what was asked for is not there.
fn dump(socket: &mut NetlinkSocket, kind: u16, family: Family, attrs: &Attrs) -> io::Result<Option<Vec<Vec<u8>>>> {
    let mut request = Vec::new();
    diff::header(&mut request, kind, DUMP, 1, family as u8, 0, attrs.as_slice());
    let answer = socket.request(&request)?;
    match answer.errors.into_iter().next() {
        None => Ok(Some(answer.messages)),
        Some((_, error)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Some((_, error)) => Err(error),
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default().trim_end_matches('\0')
}

/// Rules of one table.
fn rules<'a>(messages: &'a [Vec<u8>], table: &str) -> Held<'a> {
    let mut held = Held::new();
    for attrs in messages.iter().filter_map(|message| message.get(4..)) {
        if let (Some(of), Some(chain)) = (nlattr::find(attrs, 1), nlattr::find(attrs, 2))
            && text(of) == table
        {
            held.entry(text(chain).to_owned()).or_default().push(nlattr::find(attrs, 4).unwrap_or_default());
        }
    }
    held
}

fn chains(table: &Table, held: &Held<'_>, closely: bool) -> Vec<String> {
    let differs = |(name, chain): (&String, &Chain)| {
        let held = held.get(name).map(Vec::as_slice).unwrap_or_default();
        let wanted = &chain.rules;
        if wanted.len() != held.len() {
            let (wanted, held) = (wanted.len(), held.len());
            return Some(format!("chain {name} of table {} has {held} rules instead of {wanted}", table.name));
        }
        let other = wanted.iter().zip(held).position(|(rule, held)| closely && !is_held(rule, held))?;
        Some(format!("rule {} of chain {name} of table {} is not ours", other + 1, table.name))
    };
    table.chains.iter().filter_map(differs).collect()
}

/// Whether these expressions are the rule's: the same ones, each with all that it was told. The kernel adds to that.
fn is_held(rule: &Rule, held: &[u8]) -> bool {
    let mut wanted = Attrs::new();
    for expr in rule.exprs() {
        expr.encode(&mut wanted);
    }
    let (wanted, held): (Vec<_>, Vec<_>) = (nlattr::iter(wanted.as_slice()).collect(), nlattr::iter(held).collect());
    wanted.len() == held.len() && wanted.iter().zip(&held).all(|((_, ours), (_, theirs))| is_within(ours, theirs))
}

/// Whether all attributes of one list are in the other. Zeros may be left out there.
fn is_within(ours: &[u8], theirs: &[u8]) -> bool {
    nlattr::iter(ours).all(|(kind, ours)| match nlattr::find(theirs, kind) {
        None => ours.iter().all(|byte| *byte == 0),
        Some(theirs) if ours == theirs => true,
        Some(theirs) => match (<[u8; 4]>::try_from(ours), <[u8; 4]>::try_from(theirs)) {
            (Ok(ours), Ok(theirs)) => register(ours) == register(theirs),
            _ => is_list(ours) && is_within(ours, theirs),
        },
    })
}

/// A register that is one of the wide ones goes by that one's number on its way back (`nft_dump_register`): four narrow
/// ones from 8 on are a wide one from 1 on. Other numbers are changed alike on both sides.
fn register(number: [u8; 4]) -> u32 {
    match u32::from_be_bytes(number) {
        narrow @ 8..=23 if narrow % 4 == 0 => narrow / 4 - 1,
        other => other,
    }
}

/// Whether bytes are a list of attributes and nothing else.
fn is_list(bytes: &[u8]) -> bool {
    let length: usize = nlattr::iter(bytes).map(|(_, payload)| (4 + payload.len()).next_multiple_of(4)).sum();
    !bytes.is_empty() && length == bytes.len().next_multiple_of(4)
}

/// Whether data of an element is this verdict.
fn leads(data: &[u8], verdict: &Verdict) -> bool {
    let mut wanted = Attrs::new();
    verdict.encode(&mut wanted, 1);
    nlattr::find(wanted.as_slice(), 1).is_some_and(|wanted| is_within(wanted, data))
}

fn elements(messages: &[Vec<u8>]) -> Elements {
    let mut found = Elements::new();
    for list in messages.iter().filter_map(|message| nlattr::find(message.get(4..)?, 3)) {
        for (_, element) in nlattr::iter(list).filter(|(kind, _)| *kind == 1) {
            if let Some(key) = nlattr::find(element, 1).and_then(|key| nlattr::find(key, 1)) {
                found.insert(key.to_vec(), nlattr::find(element, 2).map(<[u8]>::to_vec));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::rule::Rule;
    use super::super::table::{Hook, Kind};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_chain_with_another_number_of_rules_is_named() {
        let mut table = Table::new(Family::Ipv4, "skep-sk");
        table.base("raw", Kind::Filter, Hook::Prerouting, 0, vec![Rule::new().drop(), Rule::new().drop()]);
        let rule = |table: &str| {
            let mut attrs = Attrs::new();
            attrs.text(1, table).text(2, "raw");
            [&[2, 0, 0, 0], attrs.as_slice()].concat()
        };
        let messages = [rule("skep-sk"), rule("other"), rule("skep-sk")];
        let held = rules(&messages, "skep-sk");
        assert_eq!(chains(&table, &held, false), Vec::<String>::new());
        let messages = [rule("skep-sk"), rule("other")];
        let held = rules(&messages, "skep-sk");
        assert_eq!(chains(&table, &held, false), ["chain raw of table skep-sk has 1 rules instead of 2"]);
    }

    #[test]
    fn elements_are_read_with_what_they_map_to() {
        let mut attrs = Attrs::new();
        attrs.nest(3, |list| {
            list.nest(1, |element| {
                element.nest(1, |key| {
                    key.bytes(1, &[1, 2]);
                });
                element.nest(2, |data| {
                    data.bytes(1, &[3]);
                });
            });
        });
        let message = [&[2, 0, 0, 0], attrs.as_slice()].concat();
        let mut three = Attrs::new();
        three.bytes(1, &[3]);
        assert_eq!(elements(&[message]), Elements::from([(vec![1, 2], Some(three.as_slice().to_vec()))]));
    }

    #[test]
    fn a_rule_is_known_again_by_what_it_was_told() {
        let encode = |rule: &Rule| {
            let mut attrs = Attrs::new();
            for expr in rule.exprs() {
                expr.encode(&mut attrs);
            }
            attrs.as_slice().to_vec()
        };
        let port = |port| Rule::new().destination_port(super::super::rule::TCP, port).drop();
        let rule = port(80);
        assert!(is_held(&rule, &encode(&rule)));
        assert!(!is_held(&rule, &encode(&port(81))));
        assert!(!is_held(&rule, &encode(&Rule::new().drop())));
        assert!(!is_held(&rule, &[]));
        assert_eq!([[0, 0, 0, 8], [0, 0, 0, 12], [0, 0, 0, 9], [0, 0, 0, 1]].map(register), [1, 2, 9, 1]);
        assert!(is_list(&encode(&rule)) && !is_list(&[]) && !is_list(b"abcdefgh"));
        let goto = |chain: &str| {
            let mut attrs = Attrs::new();
            Verdict::Goto(chain.into()).encode(&mut attrs, 2);
            nlattr::find(attrs.as_slice(), 2).unwrap().to_vec()
        };
        let wanted = Verdict::Goto("one".into());
        assert!(leads(&goto("one"), &wanted) && !leads(&goto("two"), &wanted) && !leads(&[], &wanted));
    }

    proptest! {
        #[test]
        fn arbitrary_answers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            rules(std::slice::from_ref(&bytes), "x");
            let _ = (is_held(&Rule::new().drop(), &bytes), is_within(&bytes, &bytes), leads(&bytes, &Verdict::Drop));
            elements(&[bytes]);
        }
    }
}
