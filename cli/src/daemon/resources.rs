//! Generic resources that the operator says a node has.

use std::collections::BTreeMap;

/// What `--node-generic-resource` says: counted ones (`ssd=3`) and named ones (`gpu=UUID1,gpu=UUID2`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GenericResources {
    /// Amounts by kind; of a named one, how many there are.
    pub counts: BTreeMap<String, u64>,
    /// Named ones as (kind, name).
    pub named: Vec<(String, String)>,
}

impl GenericResources {
    /// Reads the values of the flag, each one or several with commas, as dockerd does.
    ///
    /// # Errors
    /// What is wrong with one of them.
    pub fn parse(values: &[String]) -> Result<Self, String> {
        let mut found: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for part in values.iter().flat_map(|value| value.split(',')).map(str::trim).filter(|part| !part.is_empty()) {
            match part.split_once('=') {
                Some((kind, value)) if is_kind(kind) && !value.is_empty() => found.entry(kind).or_default().push(value),
                _ => return Err(format!("{part:?} is no resource: write KIND=AMOUNT or KIND=NAME")),
            }
        }
        let mut resources = Self::default();
        for (kind, values) in found {
            let amounts: Vec<u64> = values.iter().filter_map(|value| value.parse().ok()).collect();
            match amounts.as_slice() {
                [amount] if values.len() == 1 => {
                    resources.counts.insert(kind.to_owned(), *amount);
                }
                [] => {
                    let mut names = values.clone();
                    names.sort_unstable();
                    names.dedup();
                    if names.len() != values.len() {
                        return Err(format!("a name of the resource {kind} is given twice"));
                    }
                    resources.counts.insert(kind.to_owned(), names.len() as u64);
                    resources.named.extend(names.into_iter().map(|name| (kind.to_owned(), name.to_owned())));
                }
                _ => return Err(format!("the resource {kind} is either one amount or names, not both")),
            }
        }
        Ok(resources)
    }
}

/// A kind becomes part of a variable's name.
fn is_kind(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(values: &[&str]) -> Result<GenericResources, String> {
        GenericResources::parse(&values.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn a_number_is_an_amount_and_anything_else_a_name() {
        let found = parse(&["gpu=b,gpu=a", "ssd=3"]).unwrap();
        assert_eq!(found.counts, BTreeMap::from([("gpu".into(), 2), ("ssd".into(), 3)]));
        assert_eq!(found.named, [("gpu".into(), "a".into()), ("gpu".into(), "b".into())]);
        for wrong in ["gpu", "=3", "gpu=", "gpu=a,gpu=a", "gpu=a,gpu=2", "ssd=1,ssd=2", "g u=1"] {
            assert!(parse(&[wrong]).is_err(), "{wrong}");
        }
    }
}
