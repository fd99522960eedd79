//! Image references by Docker's rules (github.com/distribution/reference, grammar in its `reference.go`).
//!
//! `nginx` means `docker.io/library/nginx:latest`. What people see is the familiar form, without what is implied; the
//! store and registries use the full one.

use std::fmt;
use std::str::FromStr;

use super::digest::{Digest, DigestError};

/// Where names without a registry live.
pub const DEFAULT_REGISTRY: &str = "docker.io";
/// The namespace of names without one, on the default registry.
const OFFICIAL_NAMESPACE: &str = "library";
/// The tag of references that name neither tag nor digest.
const DEFAULT_TAG: &str = "latest";
/// Longest repository name, registry not counted (reference.go: `RepositoryNameTotalLengthMax`).
const MAX_NAME: usize = 255;
/// Longest tag (OCI distribution-spec, "Pulling manifests").
const MAX_TAG: usize = 128;

/// A reference to an image: registry, repository, and tag or digest or both.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// A text is no reference. The words are Docker's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Breaks the grammar.
    #[error("invalid reference format")]
    Format,
    /// Would be a reference if it were in lower case.
    #[error("invalid reference format: repository name ({0}) must be lowercase")]
    UpperCase(String),
    /// Too long.
    #[error("repository name must not be more than 255 characters")]
    TooLong,
    /// 64 hexadecimal digits, which would be taken for an image's id.
    #[error("invalid repository name ({0}), cannot specify 64-byte hexadecimal strings")]
    LooksLikeId(String),
    /// The digest is of another algorithm.
    #[error("{0}")]
    Digest(#[from] DigestError),
}

impl Reference {
    /// Host, and port if any, of the registry: `docker.io`, `127.0.0.1:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Path of the repository in its registry: `library/nginx`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if the reference has one.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if the reference has one.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Registry and repository: `docker.io/library/nginx`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// Registry and repository as people write them: `nginx`, `user/app`, `127.0.0.1:5000/app`.
    pub fn familiar_name(&self) -> String {
        if self.registry != DEFAULT_REGISTRY {
            return self.name();
        }
        match self.repository.split_once('/') {
            Some((OFFICIAL_NAMESPACE, rest)) if !rest.contains('/') => rest.to_owned(),
            _ => self.repository.clone(),
        }
    }

    /// As people write it: `nginx:latest`, `nginx@sha256:…`, `nginx:1@sha256:…`.
    pub fn familiar(&self) -> String {
        self.suffixed(self.familiar_name())
    }

    /// The same repository with `tag` and no digest.
    pub(crate) fn with_tag(&self, tag: &str) -> Self {
        Self { tag: Some(tag.to_owned()), digest: None, ..self.clone() }
    }

    /// The same repository with `digest` and no tag.
    pub(crate) fn with_digest(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }

    /// The tag, `latest` when the reference has neither tag nor digest.
    pub(crate) fn tag_or_latest(&self) -> Option<&str> {
        match (&self.tag, self.digest) {
            (Some(tag), _) => Some(tag),
            (None, None) => Some(DEFAULT_TAG),
            (None, Some(_)) => None,
        }
    }

    fn suffixed(&self, mut name: String) -> String {
        if let Some(tag) = &self.tag {
            name.push(':');
            name.push_str(tag);
        }
        if let Some(digest) = self.digest {
            name.push('@');
            name.push_str(&digest.to_string());
        }
        name
    }

    /// Reads a reference without giving it a tag when it has none.
    ///
    /// # Errors
    /// [`ReferenceError`], in Docker's words.
    pub fn parse_untagged(text: &str) -> Result<Self, ReferenceError> {
        if Digest::from_hex(text).is_ok() {
            return Err(ReferenceError::LooksLikeId(text.to_owned()));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(parse_digest(digest)?)),
            None => (text, None),
        };
        // A colon after the last slash begins the tag; one before it belongs to the registry's port.
        let name_end = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[name_end..].find(':') {
            Some(colon) => (&rest[..name_end + colon], Some(&rest[name_end + colon + 1..])),
            None => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(ReferenceError::Format);
        }
        let (registry, repository) = split_registry(name);
        if !is_registry(registry) {
            return Err(ReferenceError::Format);
        }
        if !is_repository(repository) {
            return Err(match is_repository(&repository.to_ascii_lowercase()) {
                true => ReferenceError::UpperCase(repository.to_owned()),
                false => ReferenceError::Format,
            });
        }
        // `index.docker.io` is the name that old clients saved.
        let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
        let repository = match registry == DEFAULT_REGISTRY && !repository.contains('/') {
            true => format!("{OFFICIAL_NAMESPACE}/{repository}"),
            false => repository.to_owned(),
        };
        if repository.len() > MAX_NAME {
            return Err(ReferenceError::TooLong);
        }
        Ok(Self { registry: registry.to_owned(), repository, tag: tag.map(str::to_owned), digest })
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    /// Reads a reference; one without tag and digest gets the tag `latest`.
    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let mut reference = Self::parse_untagged(text)?;
        reference.tag = reference.tag_or_latest().map(str::to_owned);
        Ok(reference)
    }
}

impl fmt::Display for Reference {
    /// The full form: `docker.io/library/nginx:latest`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.suffixed(self.name()))
    }
}

/// A digest that is well formed but of another algorithm is named as such, anything else is a broken reference.
fn parse_digest(text: &str) -> Result<Digest, ReferenceError> {
    match text.parse() {
        Ok(digest) => Ok(digest),
        Err(DigestError::Algorithm(name))
            if !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"+._-".contains(&b)) =>
        {
            Err(DigestError::Algorithm(name).into())
        }
        Err(_) => Err(ReferenceError::Format),
    }
}

/// The first component is a registry when it cannot be a namespace: it has a dot, a colon or a capital, or is `localhost`.
fn split_registry(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':']) || first == "localhost" || first.to_ascii_lowercase() != first =>
        {
            (first, rest)
        }
        _ => (DEFAULT_REGISTRY, name),
    }
}

fn is_registry(text: &str) -> bool {
    if let Some(rest) = text.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else { return false };
        return address.parse::<std::net::Ipv6Addr>().is_ok()
            && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    host.split('.').all(|label| {
        let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
        edge(label.bytes().next())
            && edge(label.bytes().last())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    }) && port.is_none_or(is_port)
}

/// Digits only: the grammar sets no bound, a port that cannot be fails at the connection.
fn is_port(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

fn is_repository(text: &str) -> bool {
    text.split('/').all(is_path_component)
}

/// Lower-case letters and digits, joined by `.`, `_`, `__` or any number of `-`.
fn is_path_component(text: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let ends_in_words = bytes.first().is_some_and(|b| is_word(*b)) && bytes.last().is_some_and(|b| is_word(*b));
    ends_in_words
        && bytes
            .split(|b| is_word(*b))
            .filter(|separator| !separator.is_empty())
            .all(|separator| matches!(separator, b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-'))
}

fn is_tag(text: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.len() <= MAX_TAG
        && text.bytes().next().is_some_and(is_word)
        && text.bytes().all(|b| is_word(b) || b == b'.' || b == b'-')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn full(text: &str) -> String {
        text.parse::<Reference>().unwrap().to_string()
    }

    #[test]
    fn what_is_left_out_is_filled_in() {
        assert_eq!(full("nginx"), "docker.io/library/nginx:latest");
        assert_eq!(full("user/app:1"), "docker.io/user/app:1");
        assert_eq!(full("index.docker.io/nginx"), "docker.io/library/nginx:latest");
        assert_eq!(full("localhost/app"), "localhost/app:latest");
        assert_eq!(full("127.0.0.1:5000/app"), "127.0.0.1:5000/app:latest");
        assert_eq!(full("[::1]:5000/a/b:v"), "[::1]:5000/a/b:v");
        assert_eq!(full("Registry/app"), "Registry/app:latest");
        assert_eq!(full(&format!("nginx@{DIGEST}")), format!("docker.io/library/nginx@{DIGEST}"));
        assert_eq!(full(&format!("h.io/a:1@{DIGEST}")), format!("h.io/a:1@{DIGEST}"));
        assert_eq!(full("localhost:5000"), "docker.io/library/localhost:5000");
    }

    #[test]
    fn the_familiar_form_leaves_out_what_is_implied() {
        for text in ["nginx:latest", "user/app:1", "127.0.0.1:5000/app:latest", "localhost/library/app:1"] {
            assert_eq!(text.parse::<Reference>().unwrap().familiar(), text);
        }
        assert_eq!("docker.io/library/nginx".parse::<Reference>().unwrap().familiar(), "nginx:latest");
        assert_eq!("docker.io/library/a/b".parse::<Reference>().unwrap().familiar(), "library/a/b:latest");
    }

    #[test]
    fn what_breaks_the_grammar_is_refused_in_dockers_words() {
        let long_tag = format!("a:{}", "t".repeat(129));
        for text in [
            "",
            ":",
            "/",
            "a//b",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a:",
            "a:.x",
            "a@",
            "a@sha256:12",
            "a b",
            "h:x/a",
            &long_tag,
            "a@sha256",
            "http://a",
            "a/",
            "[::1/a",
            "h_x.y/a",
            "a:b:c",
            "é",
        ] {
            assert_eq!(text.parse::<Reference>(), Err(ReferenceError::Format), "{text:?}");
        }
        assert_eq!(
            "Nginx".parse::<Reference>().unwrap_err().to_string(),
            "invalid reference format: repository name (Nginx) must be lowercase"
        );
        assert_eq!("h.io/".to_owned().parse::<Reference>(), Err(ReferenceError::Format));
        assert_eq!(format!("h.io/{}", "a".repeat(256)).parse::<Reference>(), Err(ReferenceError::TooLong));
        assert!(format!("h.io/{}", "a".repeat(255)).parse::<Reference>().is_ok());
        assert!(matches!("a".repeat(64).parse::<Reference>(), Err(ReferenceError::LooksLikeId(_))));
    }

    #[test]
    fn separators_of_the_grammar_are_accepted() {
        for text in ["a.b", "a_b", "a__b", "a-b", "a---b", "a/b/c.d_e__f--g", "a:A.b-_9"] {
            assert!(text.parse::<Reference>().is_ok(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "\\PC{0,80}") {
            let _ = text.parse::<Reference>();
        }

        #[test]
        fn both_forms_read_back_as_the_same_reference(
            registry in "([a-z]{1,5}\\.[a-z]{2,3}(:[0-9]{1,5})?/)?",
            path in "[a-z0-9]{1,6}([_-][a-z0-9]{1,4}){0,2}(/[a-z0-9]{1,6}(\\.[a-z0-9]{1,4})?){0,2}",
            tag in "(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,10})?",
        ) {
            let reference: Reference = format!("{registry}{path}{tag}").parse().unwrap();
            prop_assert_eq!(&reference.to_string().parse::<Reference>().unwrap(), &reference);
            prop_assert_eq!(&reference.familiar().parse::<Reference>().unwrap(), &reference);
        }
    }
}
