//! What handlers take from a request. Each extractor fails with `{"message": …}`, never with plain text.

use std::collections::{BTreeMap, BTreeSet};

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Request};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::request::Parts;
use regex::{RegexSet, RegexSetBuilder};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use skep_proto::model::Version;
use skep_proto::model::container::RegistryAuth;

use super::error::ApiError;

/// Largest JSON body that is read, in bytes. Secrets and configs are at most 500 KiB; specs are smaller.
const JSON_LIMIT: usize = 4 << 20;
/// Most memory that the regular expressions of one filter may take, in bytes.
const PATTERN_BYTES: usize = 1 << 20;

/// The API version that a request names in its path, or ours when it names none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ApiVersion(pub u16, pub u16);

impl<S: Send + Sync> FromRequestParts<S> for ApiVersion {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(parts.extensions.get().copied().unwrap_or(super::front::MAX_VERSION))
    }
}

/// A JSON body. Nulls are taken as absent, as Go does.
pub(crate) struct Json<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let kind = request.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
        let empty = request.headers().get(CONTENT_LENGTH).is_none_or(|v| v == "0")
            && !request.headers().contains_key(http::header::TRANSFER_ENCODING);
        if !empty && kind.split(';').next().map(str::trim) != Some("application/json") {
            return Err(ApiError::bad_request(format!(
                "unsupported Content-Type header ({kind}): must be 'application/json'"
            )));
        }
        let bytes = read_limited(request.into_body()).await?;
        parse_json(&bytes).map(Self)
    }
}

/// A JSON body that may be missing: then the default.
pub(crate) struct OptionalJson<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Default> FromRequest<S> for OptionalJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let bytes = read_limited(request.into_body()).await?;
        if bytes.is_empty() { Ok(Self(T::default())) } else { parse_json(&bytes).map(Self) }
    }
}

async fn read_limited(body: Body) -> Result<bytes::Bytes, ApiError> {
    use http_body_util::{BodyExt, LengthLimitError, Limited};
    match Limited::new(body, JSON_LIMIT).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(ApiError::too_large(JSON_LIMIT)),
        Err(error) => Err(ApiError::bad_request(format!("the request's body broke off: {error}"))),
    }
}

fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    if bytes.is_empty() {
        return Err(ApiError::bad_request("invalid JSON: got EOF while reading request body"));
    }
    let mut value: Value =
        serde_json::from_slice(bytes).map_err(|e| ApiError::bad_request(format!("invalid JSON: {e}")))?;
    strip_nulls(&mut value);
    serde_json::from_value(value).map_err(|e| ApiError::bad_request(format!("invalid JSON: {e}")))
}

/// Removes nulls from objects: Go decodes a null as "not given". serde_json bounds the depth at 128.
fn strip_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, v| !v.is_null());
            map.values_mut().for_each(strip_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(strip_nulls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The query string.
pub(crate) struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        axum::extract::Query::try_from_uri(&parts.uri)
            .map(|query| Self(query.0))
            .map_err(|e| ApiError::bad_request(e.body_text()))
    }
}

/// A flag of a query: everything is true but the words that Docker takes for false.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Flag(pub bool);

impl<'de> Deserialize<'de> for Flag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(Self(!matches!(text.trim().to_lowercase().as_str(), "" | "0" | "no" | "false" | "none")))
    }
}

/// `filters=` of a list: `{"key":{"value":true}}` as the CLI sends it or `{"key":["value"]}` as docker-py does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Filters(BTreeMap<String, BTreeSet<String>>);

impl Filters {
    /// Reads the parameter's text.
    ///
    /// # Errors
    /// 400 when it has neither form.
    pub(crate) fn parse(text: &str) -> Result<Self, ApiError> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Values {
            Map(BTreeMap<String, bool>),
            List(Vec<String>),
        }
        if text.is_empty() {
            return Ok(Self::default());
        }
        let raw: BTreeMap<String, Values> =
            serde_json::from_str(text).map_err(|_| ApiError::bad_request("invalid filter"))?;
        Ok(Self(
            raw.into_iter()
                .map(|(key, values)| match values {
                    Values::Map(map) => (key, map.into_keys().collect()),
                    Values::List(list) => (key, list.into_iter().collect()),
                })
                .collect(),
        ))
    }

    /// Refuses every key that is not among `known`.
    ///
    /// # Errors
    /// 400 naming the key.
    pub(crate) fn only(&self, known: &[&str]) -> Result<(), ApiError> {
        match self.0.keys().find(|key| !known.contains(&key.as_str())) {
            Some(key) => Err(ApiError::bad_request(format!("invalid filter '{key}'"))),
            None => Ok(()),
        }
    }

    /// The values of a key, in order; empty when it is not given.
    pub(crate) fn get(&self, key: &str) -> BTreeSet<String> {
        self.0.get(key).cloned().unwrap_or_default()
    }

    /// Whether one of the key's values satisfies `test`; true when the key is not given.
    pub(crate) fn any(&self, key: &str, test: impl Fn(&str) -> bool) -> bool {
        self.0.get(key).is_none_or(|values| values.is_empty() || values.iter().any(|v| test(v)))
    }

    /// The key's values as regular expressions, of which one has to be found in a text (moby `api/types/filters`,
    /// `Match`). Their matching takes linear time, whatever a client writes.
    ///
    /// # Errors
    /// 400 for one that is no regular expression.
    pub(crate) fn patterns(&self, key: &str) -> Result<Patterns, ApiError> {
        let Some(values) = self.0.get(key).filter(|values| !values.is_empty()) else { return Ok(Patterns(None)) };
        let set = RegexSetBuilder::new(values).size_limit(PATTERN_BYTES).build();
        let set = set.map_err(|e| ApiError::bad_request(format!("invalid filter '{key}': {e}")))?;
        Ok(Patterns(Some(set)))
    }

    /// A key that is a boolean.
    ///
    /// # Errors
    /// 400 when it is given and is none.
    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, ApiError> {
        let Some(values) = self.0.get(key) else { return Ok(None) };
        let mut found = None;
        for value in values {
            found = Some(match value.as_str() {
                "1" | "t" | "true" | "True" | "TRUE" => true,
                "0" | "f" | "false" | "False" | "FALSE" => false,
                _ => return Err(ApiError::bad_request(format!("invalid filter '{key}=[{value}]'"))),
            });
        }
        Ok(found)
    }

    /// Whether `labels` satisfy each of the key's values, `name` or `name=value`.
    pub(crate) fn labels(&self, key: &str, labels: &BTreeMap<String, String>) -> bool {
        self.0.get(key).is_none_or(|wanted| {
            wanted.iter().all(|want| match want.split_once('=') {
                Some((name, value)) => labels.get(name).is_some_and(|v| v == value),
                None => labels.contains_key(want),
            })
        })
    }
}

/// The values of a filter that are regular expressions.
pub(crate) struct Patterns(Option<RegexSet>);

impl Patterns {
    /// Whether one of them is found in `text`; true when there are none.
    pub(crate) fn fit(&self, text: &str) -> bool {
        self.0.as_ref().is_none_or(|set| set.is_match(text))
    }
}

impl<'de> Deserialize<'de> for Filters {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(|e| serde::de::Error::custom(e.message()))
    }
}

/// The version of the object that an update was made from.
///
/// # Errors
/// 400 when it is missing or no number.
pub(crate) fn object_version(kind: &str, text: Option<&str>) -> Result<Version, ApiError> {
    let text = text.unwrap_or("");
    text.parse().map(Version).map_err(|_| {
        ApiError::bad_request(format!(
            "invalid {kind} version '{text}': strconv.ParseUint: parsing \"{text}\": invalid syntax"
        ))
    })
}

/// The value of `X-Registry-Auth`, when it carries credentials. The CLI sends `{}` when it has none.
pub(crate) fn registry_auth(headers: &http::HeaderMap) -> Option<RegistryAuth> {
    use base64::Engine;
    use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE};
    let text = headers.get("x-registry-auth")?.to_str().ok()?;
    if text.is_empty() {
        return None;
    }
    let decoded = BASE64_URL_SAFE.decode(text).or_else(|_| BASE64_STANDARD.decode(text)).ok();
    let empty =
        decoded.and_then(|json| serde_json::from_slice::<Value>(&json).ok()).is_some_and(|v| super::spec::is_zero(&v));
    (!empty).then(|| RegistryAuth(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn both_encodings_of_a_filter_mean_the_same(key in "[a-z_-]{1,8}", values in prop::collection::btree_set(".{0,8}", 0..4)) {
            let map: BTreeMap<_, _> = values.iter().map(|v| (v.clone(), true)).collect();
            let cli = serde_json::json!({ key.clone(): map }).to_string();
            let python = serde_json::json!({ key.clone(): values }).to_string();
            prop_assert_eq!(Filters::parse(&cli).unwrap(), Filters::parse(&python).unwrap());
            prop_assert_eq!(Filters::parse(&cli).unwrap().get(&key), values);
        }

        #[test]
        fn arbitrary_filters_and_bodies_never_panic(text in ".{0,64}") {
            let _ = Filters::parse(&text);
            let _ = parse_json::<Value>(text.as_bytes());
        }
    }

    #[test]
    fn a_null_is_as_good_as_nothing() {
        #[derive(Deserialize, Debug, PartialEq)]
        struct Body {
            #[serde(default)]
            list: Vec<u8>,
        }
        assert_eq!(parse_json::<Body>(br#"{"list":null}"#).unwrap(), Body { list: vec![] });
    }

    #[test]
    fn names_are_found_by_regular_expressions_and_bad_ones_are_refused() {
        let fits = |pattern: &str, text: &str| {
            Filters::parse(&serde_json::json!({ "name": [pattern] }).to_string())
                .unwrap()
                .patterns("name")
                .map(|p| p.fit(text))
        };
        for (pattern, text, expected) in
            [("web", "my-web-1", true), ("^web$", "web1", false), ("^(a|b)$", "b", true), ("^w.b", "wob", true)]
        {
            assert_eq!(fits(pattern, text), Ok(expected), "{pattern} in {text}");
        }
        assert!(fits("(", "x").unwrap_err().message().starts_with("invalid filter 'name'"));
        assert!(fits("(a{1000}){1000}", "x").is_err());
        assert!(Filters::default().patterns("name").unwrap().fit("anything"));
    }

    #[test]
    fn an_unknown_filter_is_named() {
        let error = Filters::parse(r#"{"colour":{"red":true}}"#).unwrap().only(&["name"]).unwrap_err();
        assert_eq!(error.message(), "invalid filter 'colour'");
    }

    #[test]
    fn empty_credentials_are_none() {
        use base64::Engine;
        let mut headers = http::HeaderMap::new();
        headers.insert("x-registry-auth", base64::prelude::BASE64_URL_SAFE.encode("{}").parse().unwrap());
        assert_eq!(registry_auth(&headers), None);
        let some = base64::prelude::BASE64_URL_SAFE.encode(r#"{"username":"u"}"#);
        headers.insert("x-registry-auth", some.parse().unwrap());
        assert_eq!(registry_auth(&headers), Some(RegistryAuth(some)));
    }
}
