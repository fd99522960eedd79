//! Platforms, and the choice of a manifest for one.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

use super::digest::Digest;
use super::error::ImageError;

/// Operating system, architecture and variant, in Go's words (OCI image-spec, image index, "platform").
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Platform {
    /// `linux`.
    #[serde(default)]
    pub os: String,
    /// `amd64`, `arm64`, `arm`.
    #[serde(default)]
    pub architecture: String,
    /// `v7`; empty when the architecture has none.
    #[serde(default)]
    pub variant: String,
}

impl Platform {
    /// That of this node.
    pub fn host() -> Self {
        let (architecture, variant) = normal(std::env::consts::ARCH, "");
        Self { os: "linux".into(), architecture, variant }
    }

    /// How well an image for `self` runs on `wanted`: smaller is better, `None` when it does not.
    fn rank(&self, wanted: &Self) -> Option<u32> {
        let (architecture, variant) = normal(&self.architecture, &self.variant);
        if self.os != wanted.os || architecture != wanted.architecture {
            return None;
        }
        let version = |v: &str| v.strip_prefix('v').and_then(|v| v.parse::<u32>().ok());
        match (version(&variant), version(&wanted.variant)) {
            // Machines of a later version run what was made for an earlier one, never the reverse.
            (Some(made_for), Some(has)) => has.checked_sub(made_for),
            // An index that says nothing of the variant comes after any that fits.
            (None, _) => Some(u32::MAX),
            (Some(made_for), None) => (made_for <= 1).then_some(0),
        }
    }
}

impl FromStr for Platform {
    type Err = ImageError;

    /// `OS/ARCHITECTURE[/VARIANT]`, or an architecture alone, as `--platform` takes it.
    fn from_str(text: &str) -> Result<Self, ImageError> {
        let parts: Vec<&str> = text.split('/').collect();
        let known =
            |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if !parts.iter().all(known) {
            return Err(ImageError::Invalid(format!(
                "{text:?} is an invalid platform: use OS/ARCH or OS/ARCH/VARIANT"
            )));
        }
        let (os, architecture, variant) = match parts.as_slice() {
            ["linux"] => return Ok(Self::host()),
            [architecture] => ("linux", *architecture, ""),
            [os, architecture] => (*os, *architecture, ""),
            [os, architecture, variant] => (*os, *architecture, *variant),
            _ => {
                return Err(ImageError::Invalid(format!(
                    "{text:?} is an invalid platform: use OS/ARCH or OS/ARCH/VARIANT"
                )));
            }
        };
        let (architecture, variant) = normal(&architecture.to_ascii_lowercase(), &variant.to_ascii_lowercase());
        Ok(Self { os: os.to_ascii_lowercase(), architecture, variant })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

/// One name for each machine, with the variant that it means when none is given (containerd, `platforms/database.go`).
fn normal(architecture: &str, variant: &str) -> (String, String) {
    let (architecture, variant) = match (architecture, variant) {
        ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
        ("x86_64" | "x86-64" | "amd64", variant) => ("amd64", variant),
        ("aarch64" | "arm64", "" | "8" | "v8") => ("arm64", "v8"),
        ("aarch64" | "arm64", variant) => ("arm64", variant),
        ("arm" | "armhf", "" | "7") => ("arm", "v7"),
        ("armel", _) => ("arm", "v6"),
        ("i386" | "x86", variant) => ("386", variant),
        other => other,
    };
    (architecture.to_owned(), variant.to_owned())
}

/// The manifest of an index that runs best on `wanted`; of equals the first.
pub fn choose<'a>(
    entries: impl IntoIterator<Item = (&'a Digest, Option<&'a Platform>)>,
    wanted: &Platform,
) -> Option<Digest> {
    let ranked = entries.into_iter().filter_map(|(digest, platform)| Some((platform?.rank(wanted)?, *digest)));
    // `min_by_key` gives the first of equals.
    ranked.min_by_key(|(rank, _)| *rank).map(|(_, digest)| digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(entries: &[&str], wanted: &str) -> Option<usize> {
        let entries: Vec<(Digest, Platform)> = entries
            .iter()
            .enumerate()
            .map(|(i, text)| {
                let mut parts = text.split('/').map(str::to_owned);
                let mut next = || parts.next().unwrap_or_default();
                (Digest::of(&[i as u8]), Platform { os: next(), architecture: next(), variant: next() })
            })
            .collect();
        let chosen = choose(entries.iter().map(|(d, p)| (d, Some(p))), &wanted.parse().unwrap())?;
        entries.iter().position(|(digest, _)| *digest == chosen)
    }

    #[test]
    fn the_manifest_of_the_platform_is_chosen_whatever_the_order() {
        let index = ["linux/arm64/v8", "windows/amd64", "unknown/unknown", "linux/amd64"];
        assert_eq!(pick(&index, "linux/amd64"), Some(3));
        assert_eq!(pick(&index, "arm64"), Some(0));
        assert_eq!(pick(&index, "linux/s390x"), None);
    }

    #[test]
    fn the_latest_variant_that_the_machine_runs_wins() {
        let index = ["linux/arm/v5", "linux/arm/v6", "linux/arm/v7"];
        assert_eq!(pick(&index, "linux/arm/v6"), Some(1));
        assert_eq!(pick(&index, "linux/arm"), Some(2));
        assert_eq!(pick(&["linux/arm/v7"], "linux/arm/v6"), None);
        assert_eq!(pick(&["linux/amd64/v3", "linux/amd64"], "linux/amd64"), Some(1));
    }

    #[test]
    fn platforms_are_read_as_the_command_line_takes_them() {
        assert_eq!("linux/x86_64".parse::<Platform>().unwrap().to_string(), "linux/amd64");
        assert_eq!("linux/arm64".parse::<Platform>().unwrap().to_string(), "linux/arm64/v8");
        for text in ["", "linux/", "a/b/c/d", "linux/am d64"] {
            assert!(text.parse::<Platform>().is_err(), "{text:?}");
        }
    }
}
