//! `docker import`: one layer from a root file system's archive.

use std::io::Read;
use std::sync::Arc;

use skep_proto::model::engine::ImageConfig;

use super::Images;
use super::archive::{Upload, archive_error, with_reader};
use super::document::{Descriptor, NewHistory, NewImage, NewRootfs, OCI_LAYER, RawConfig, parse_port};
use super::error::ImageError;
use super::install::Arrived;
use super::lease::Lease;
use super::load::copy;
use super::platform::Platform;
use super::reference::Reference;
use super::unpack::{Decompressed, LimitedReader};

/// What an import is told besides the archive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Import {
    /// Name of the image; `None` for none.
    pub reference: Option<String>,
    /// Lines of a Dockerfile: `CMD`, `ENTRYPOINT`, `ENV`, `EXPOSE`, `WORKDIR`, `USER`, `LABEL`, `VOLUME`, `STOPSIGNAL`.
    pub changes: Vec<String>,
    /// Comment in the image's history; empty for Docker's `Imported from -`.
    pub message: String,
    /// Platform of the image; `None` for the node's.
    pub platform: Option<String>,
}

impl Images {
    /// Makes an image of one layer from a root file system's tar, compressed or not; gives its id.
    ///
    /// # Errors
    /// [`ImageError::Invalid`] for a change that cannot be applied, [`ImageError::Archive`].
    pub async fn import(&self, upload: Upload, import: Import) -> Result<String, ImageError> {
        let name = import.reference.as_deref().map(str::parse::<Reference>).transpose()?;
        if name.as_ref().is_some_and(|name| name.digest().is_some()) {
            return Err(ImageError::Invalid("cannot import digest reference".into()));
        }
        let mut config = ImageConfig::default();
        for line in &import.changes {
            apply_change(&mut config, line)?;
        }
        let platform = import.platform.as_deref().map_or_else(|| Ok(Platform::host()), str::parse)?;
        let lease = Arc::new(self.0.pins.lease());
        let (images, reading) = (self.clone(), lease.clone());
        let arrived =
            with_reader(upload, move |reader| images.read_root(reader, &config, &platform, &import.message, &reading))
                .await?;
        let known = self.install(&lease, arrived, name.into_iter().collect()).await?;
        Ok(known.record.id.to_string())
    }

    fn read_root(
        &self,
        upload: impl Read,
        config: &ImageConfig,
        platform: &Platform,
        message: &str,
        lease: &Lease,
    ) -> Result<Arrived, ImageError> {
        let content = Decompressed::new(upload).map_err(|e| archive_error("cannot import the archive", e))?;
        let mut spool = self.0.content.spool()?;
        copy(&mut LimitedReader::new(content, self.0.limits.bytes), &mut spool)?;
        // Stored uncompressed, so the blob's digest is the diffID.
        let (diff_id, size) = spool.commit(lease)?;
        let now = i64::try_from((self.0.clock)().0).unwrap_or(i64::MAX);
        let created = jiff::Timestamp::from_millisecond(now).unwrap_or(jiff::Timestamp::MAX).to_string();
        let document = NewImage {
            created: &created,
            architecture: &platform.architecture,
            os: &platform.os,
            config: RawConfig::from(config),
            rootfs: NewRootfs { r#type: "layers", diff_ids: &[diff_id] },
            history: [NewHistory {
                created: &created,
                comment: if message.is_empty() { "Imported from -" } else { message },
            }],
        };
        let document = serde_json::to_string(&document).expect("a configuration is JSON");
        let layers = vec![Descriptor::new(OCI_LAYER, diff_id, size)];
        let (id, manifest) = self.write_manifest(lease, document.as_bytes(), layers)?;
        Ok(Arrived { id, manifest, index: None, blobs: vec![diff_id], document })
    }
}

/// Applies one line of a Dockerfile (Dockerfile reference; `docker import --change`).
fn apply_change(config: &mut ImageConfig, line: &str) -> Result<(), ImageError> {
    let invalid = |why: &str| ImageError::Invalid(format!("cannot apply change {line:?}: {why}"));
    let line_text = line.trim();
    let (word, rest) = line_text.split_once(char::is_whitespace).unwrap_or((line_text, ""));
    let rest = rest.trim();
    if rest.is_empty() {
        return Err(invalid("it has no argument"));
    }
    match word.to_ascii_uppercase().as_str() {
        "CMD" => config.command = command(rest),
        "ENTRYPOINT" => config.entrypoint = command(rest),
        "WORKDIR" if rest.starts_with('/') => config.dir = rest.to_owned(),
        // Relative to the one before.
        "WORKDIR" => config.dir = format!("{}/{rest}", config.dir.trim_end_matches('/')),
        "USER" => config.user = rest.to_owned(),
        "STOPSIGNAL" => config.stop_signal = rest.to_owned(),
        "EXPOSE" => {
            for port in rest.split_whitespace() {
                let port = parse_port(port).map_err(|e| invalid(&e.to_string()))?;
                if !config.exposed.contains(&port) {
                    config.exposed.push(port);
                }
            }
        }
        "VOLUME" => config.volumes.extend(
            serde_json::from_str::<Vec<String>>(rest)
                .unwrap_or_else(|_| rest.split_whitespace().map(str::to_owned).collect()),
        ),
        "ENV" => {
            for (name, value) in pairs(rest).ok_or_else(|| invalid("it is not NAME=VALUE"))? {
                let entry = format!("{name}={value}");
                match config.env.iter_mut().find(|e| e.split_once('=').is_some_and(|(known, _)| known == name)) {
                    Some(known) => *known = entry,
                    None => config.env.push(entry),
                }
            }
        }
        "LABEL" => config.labels.extend(pairs(rest).ok_or_else(|| invalid("it is not NAME=VALUE"))?),
        other => return Err(invalid(&format!("{} is not a valid change command", other.to_lowercase()))),
    }
    Ok(())
}

/// The exec form, a JSON list, or the shell form.
fn command(text: &str) -> Vec<String> {
    serde_json::from_str(text).unwrap_or_else(|_| vec!["/bin/sh".into(), "-c".into(), text.to_owned()])
}

/// `NAME=VALUE…` with quotes and backslashes, or the old `NAME VALUE` for a single one.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let first = text.split_whitespace().next()?;
    if !first.contains('=') {
        let (name, value) = text.split_once(char::is_whitespace)?;
        return Some(vec![(name.to_owned(), value.trim().to_owned())]);
    }
    split_words(text)?
        .into_iter()
        .map(|word| {
            word.split_once('=').filter(|(name, _)| !name.is_empty()).map(|(n, v)| (n.to_owned(), v.to_owned()))
        })
        .collect()
}

/// Splits at spaces outside quotes; `None` when a quote is not closed.
fn split_words(text: &str) -> Option<Vec<String>> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\\', None | Some('"')) => word.get_or_insert_default().push(chars.next()?),
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, Some(open)) if c == open => quote = None,
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

#[cfg(test)]
mod tests {
    use skep_proto::model::service::Protocol;

    use super::*;

    fn changed(lines: &[&str]) -> Result<ImageConfig, String> {
        let mut config = ImageConfig::default();
        lines.iter().try_for_each(|line| apply_change(&mut config, line)).map_err(|e| e.to_string())?;
        Ok(config)
    }

    #[test]
    fn changes_read_as_lines_of_a_dockerfile() {
        let lines = [
            "CMD [\"a\", \"b c\"]",
            "ENTRYPOINT sh -x",
            "ENV A=1 B=\"two words\" C=t\\ hree",
            "env A 4",
            "EXPOSE 80 53/udp 80/tcp",
            "WORKDIR /srv",
            "WORKDIR app",
            "USER 1000:1000",
            "LABEL k=v 'l m'=n",
            "VOLUME [\"/d\"]",
            "STOPSIGNAL SIGINT",
        ];
        assert_eq!(
            changed(&lines),
            Ok(ImageConfig {
                command: vec!["a".into(), "b c".into()],
                entrypoint: vec!["/bin/sh".into(), "-c".into(), "sh -x".into()],
                env: vec!["A=4".into(), "B=two words".into(), "C=t hree".into()],
                exposed: vec![(Protocol::Tcp, 80), (Protocol::Udp, 53)],
                dir: "/srv/app".into(),
                user: "1000:1000".into(),
                labels: [("k".into(), "v".into()), ("l m".into(), "n".into())].into(),
                volumes: vec!["/d".into()],
                stop_signal: "SIGINT".into(),
                healthcheck: None,
            })
        );
    }

    #[test]
    fn a_change_that_cannot_be_applied_is_named() {
        assert_eq!(
            changed(&["RUN ls"]),
            Err("cannot apply change \"RUN ls\": run is not a valid change command".into())
        );
        for line in ["CMD", "ENV A", "EXPOSE x", "EXPOSE 99999", "LABEL k=\"v", "ENV =x"] {
            assert!(changed(&[line]).is_err(), "{line}");
        }
    }
}
