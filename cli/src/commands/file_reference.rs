//! `--secret` and `--config` of services: `NAME`, or `source=…,target=…,uid=…,gid=…,mode=…`.

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Value, json};

use super::file::Kind;
use super::{filters, text};
use crate::client::Client;

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileReference {
    /// Name of the secret or config.
    pub source: String,
    /// Where it appears.
    pub target: String,
    uid: String,
    gid: String,
    mode: u32,
}

/// Reads one flag.
///
/// # Errors
/// A key or a value that is not known.
pub fn parse(kind: Kind, flag: &str) -> anyhow::Result<FileReference> {
    let word = kind.word();
    let mut read =
        FileReference { source: String::new(), target: String::new(), uid: "0".into(), gid: "0".into(), mode: 0o444 };
    for part in flag.split(',') {
        let Some((key, value)) = part.split_once('=') else {
            if flag == part {
                read.source = flag.to_owned();
                continue;
            }
            bail!("--{word} {flag}: write KEY=VALUE, not {part:?}");
        };
        match key.trim() {
            "source" | "src" => read.source = value.to_owned(),
            "target" => read.target = value.to_owned(),
            "uid" => read.uid = value.to_owned(),
            "gid" => read.gid = value.to_owned(),
            "mode" => {
                let mode = u32::from_str_radix(value, 8).ok().filter(|mode| *mode <= 0o7777);
                read.mode = mode.with_context(|| format!("--{word} {flag}: a mode is octal, like 0440"))?;
            }
            other => bail!("--{word} {flag}: {other:?} is none of source, target, uid, gid and mode"),
        }
    }
    if read.source.is_empty() {
        bail!("--{word} {flag}: a source is needed");
    }
    if read.target.is_empty() {
        read.target = match kind {
            Kind::Secret => read.source.clone(),
            Kind::Config => format!("/{}", read.source),
        };
    }
    Ok(read)
}

/// The references as the API takes them, with ids.
///
/// # Errors
/// A name that the cluster does not have.
pub async fn resolve(kind: Kind, wanted: &[FileReference], client: &Client) -> anyhow::Result<Vec<Value>> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let names: Vec<String> = wanted.iter().map(|reference| reference.source.clone()).collect();
    let found: Vec<Value> = client.get(&format!("{}?filters={}", kind.path(), filters(&[("name", &names)]))).await?;
    let word = if kind == Kind::Secret { "Secret" } else { "Config" };
    wanted
        .iter()
        .map(|reference| {
            let known = found.iter().find(|file| text(&file["Spec"]["Name"]) == reference.source);
            let known = known.with_context(|| format!("{} not found: {}", kind.word(), reference.source))?;
            let file =
                json!({"Name": reference.target, "UID": reference.uid, "GID": reference.gid, "Mode": reference.mode});
            Ok(json!({"File": file, (format!("{word}ID")): known["ID"], (format!("{word}Name")): reference.source}))
        })
        .collect()
}

/// Flags of `service create`.
#[derive(Debug, Default, Args)]
pub struct CreateFiles {
    /// Secret for the tasks, NAME or source=…,target=…,uid=…,gid=…,mode=…; may be repeated
    #[arg(long)]
    secret: Vec<String>,
    /// Config for the tasks, NAME or source=…,target=…,uid=…,gid=…,mode=…; may be repeated
    #[arg(long)]
    config: Vec<String>,
}

/// Flags of `service update`.
#[derive(Debug, Default, Args)]
pub struct UpdateFiles {
    /// Add or change a secret; may be repeated
    #[arg(long)]
    secret_add: Vec<String>,
    /// Remove a secret; may be repeated
    #[arg(long)]
    secret_rm: Vec<String>,
    /// Add or change a config; may be repeated
    #[arg(long)]
    config_add: Vec<String>,
    /// Remove a config; may be repeated
    #[arg(long)]
    config_rm: Vec<String>,
}

impl CreateFiles {
    /// Puts the references into a spec.
    ///
    /// # Errors
    /// As [`parse`] and [`resolve`].
    pub async fn apply(&self, spec: &mut Value, client: &Client) -> anyhow::Result<()> {
        change(spec, Kind::Secret, &[], &self.secret, client).await?;
        change(spec, Kind::Config, &[], &self.config, client).await
    }
}

impl UpdateFiles {
    /// Changes the references of a spec.
    ///
    /// # Errors
    /// As [`parse`] and [`resolve`].
    pub async fn apply(&self, spec: &mut Value, client: &Client) -> anyhow::Result<()> {
        change(spec, Kind::Secret, &self.secret_rm, &self.secret_add, client).await?;
        change(spec, Kind::Config, &self.config_rm, &self.config_add, client).await
    }
}

async fn change(
    spec: &mut Value,
    kind: Kind,
    remove: &[String],
    add: &[String],
    client: &Client,
) -> anyhow::Result<()> {
    if remove.is_empty() && add.is_empty() {
        return Ok(());
    }
    let wanted = add.iter().map(|flag| parse(kind, flag)).collect::<anyhow::Result<Vec<_>>>()?;
    let added = resolve(kind, &wanted, client).await?;
    let (part, name) = match kind {
        Kind::Secret => ("Secrets", "SecretName"),
        Kind::Config => ("Configs", "ConfigName"),
    };
    let list = &mut spec["TaskTemplate"]["ContainerSpec"][part];
    let mut kept = list.as_array().cloned().unwrap_or_default();
    kept.retain(|known| {
        let replaced = added.iter().any(|new| new[name] == known[name] && new["File"]["Name"] == known["File"]["Name"]);
        !replaced && !remove.iter().any(|gone| known[name] == *gone)
    });
    kept.extend(added);
    *list = Value::Array(kept);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_alone_has_dockers_defaults_and_keys_change_them() {
        let parsed = |kind, flag| parse(kind, flag).unwrap();
        let of = |source: &str, target: &str, uid: &str, gid: &str, mode| FileReference {
            source: source.into(),
            target: target.into(),
            uid: uid.into(),
            gid: gid.into(),
            mode,
        };
        assert_eq!(parsed(Kind::Secret, "key"), of("key", "key", "0", "0", 0o444));
        assert_eq!(parsed(Kind::Config, "conf"), of("conf", "/conf", "0", "0", 0o444));
        let long = parsed(Kind::Secret, "source=key,target=/a,uid=1,gid=2,mode=0400");
        assert_eq!(long, of("key", "/a", "1", "2", 0o400));
        for bad in ["source=key,colour=red", "target=x", "key,target=x", "source=key,mode=9"] {
            assert!(parse(Kind::Secret, bad).is_err(), "{bad}");
        }
    }
}
