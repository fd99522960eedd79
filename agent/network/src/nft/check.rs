//! Whether the kernel holds what it was told, read from the kernel and changing nothing.

use std::collections::BTreeMap;
use std::io;

use super::diff;
use super::table::{Family, Table, Value};
use crate::nlattr::{self, Attrs};
use crate::sys::netlink::NetlinkSocket;

const GET_RULE: u16 = (10 << 8) | 7;
const GET_ELEMENTS: u16 = (10 << 8) | 13;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = 0x301;

/// Elements of a set, with the bytes that they map to, if any.
type Elements = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// What of a table the kernel does not hold, or holds otherwise; each in a few words. Rules are counted, elements of sets
/// and maps are compared.
///
/// # Errors
/// Those of the socket.
pub fn differences(socket: &mut NetlinkSocket, table: &Table) -> io::Result<Vec<String>> {
    let mut attrs = Attrs::new();
    attrs.text(1, &table.name);
    let messages = dump(socket, GET_RULE, table.family, &attrs)?.unwrap_or_default();
    let mut found = chains(table, &rules(&messages, &table.name));
    for (name, set) in &table.sets {
        let mut attrs = Attrs::new();
        attrs.text(1, &table.name).text(2, name);
        let Some(messages) = dump(socket, GET_ELEMENTS, table.family, &attrs)? else {
            found.push(format!("set {name} of table {} is gone", table.name));
            continue;
        };
        let held = elements(&messages);
        let is_held = |(key, value): (&Vec<u8>, &Value)| match (held.get(key), value) {
            (Some(held), Value::Bytes(bytes)) => held.as_ref() == Some(bytes),
            (Some(_), Value::None | Value::Verdict(_)) => true,
            (None, _) => false,
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

/// Number of rules by chain, of one table.
fn rules(messages: &[Vec<u8>], table: &str) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for attrs in messages.iter().filter_map(|message| message.get(4..)) {
        if let (Some(of), Some(chain)) = (nlattr::find(attrs, 1), nlattr::find(attrs, 2))
            && text(of) == table
        {
            *counts.entry(text(chain).to_owned()).or_default() += 1;
        }
    }
    counts
}

fn chains(table: &Table, held: &BTreeMap<String, usize>) -> Vec<String> {
    let differs = |(name, chain): (&String, &super::table::Chain)| {
        let (wanted, held) = (chain.rules.len(), held.get(name).copied().unwrap_or(0));
        (wanted != held).then(|| format!("chain {name} of table {} has {held} rules instead of {wanted}", table.name))
    };
    table.chains.iter().filter_map(differs).collect()
}

fn elements(messages: &[Vec<u8>]) -> Elements {
    let mut found = Elements::new();
    for list in messages.iter().filter_map(|message| nlattr::find(message.get(4..)?, 3)) {
        for (_, element) in nlattr::iter(list).filter(|(kind, _)| *kind == 1) {
            let part = |kind: u16| Some(nlattr::find(nlattr::find(element, kind)?, 1)?.to_vec());
            if let Some(key) = part(1) {
                found.insert(key, part(2));
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
        let held = rules(&[rule("skep-sk"), rule("other"), rule("skep-sk")], "skep-sk");
        assert_eq!(chains(&table, &held), Vec::<String>::new());
        let held = rules(&[rule("skep-sk"), rule("other")], "skep-sk");
        assert_eq!(chains(&table, &held), ["chain raw of table skep-sk has 1 rules instead of 2"]);
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
        assert_eq!(elements(&[message]), Elements::from([(vec![1, 2], Some(vec![3]))]));
    }

    proptest! {
        #[test]
        fn arbitrary_answers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            rules(std::slice::from_ref(&bytes), "x");
            elements(&[bytes]);
        }
    }
}
