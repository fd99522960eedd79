//! Values in templates.

use std::collections::BTreeMap;

/// What a pipeline gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Text.
    Text(String),
    /// A whole number.
    Number(i64),
    /// `true` or `false`.
    Bool(bool),
    /// Labels: any key may be asked for.
    Labels(BTreeMap<String, String>),
    /// An object with fixed fields.
    Record(BTreeMap<&'static str, Value>),
}

impl Value {
    /// An object.
    pub fn record<const N: usize>(fields: [(&'static str, Value); N]) -> Self {
        Self::Record(fields.into())
    }

    /// Text.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// What Go takes for true: anything but the zero value.
    pub(super) fn is_true(&self) -> bool {
        match self {
            Self::Text(text) => !text.is_empty(),
            Self::Number(number) => *number != 0,
            Self::Bool(is_true) => *is_true,
            Self::Labels(labels) => !labels.is_empty(),
            Self::Record(_) => true,
        }
    }

    /// As Go prints it; `None` for an object.
    pub(super) fn shown(&self) -> Option<String> {
        Some(match self {
            Self::Text(text) => text.clone(),
            Self::Number(number) => number.to_string(),
            Self::Bool(is_true) => is_true.to_string(),
            Self::Labels(labels) => {
                let pairs: Vec<String> = labels.iter().map(|(key, value)| format!("{key}:{value}")).collect();
                format!("map[{}]", pairs.join(" "))
            }
            Self::Record(_) => return None,
        })
    }
}
