//! The value of `--mount`.

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

/// Reads `type=bind|volume|tmpfs,source=…,target=…,readonly`.
///
/// # Errors
/// What is wrong with it.
pub fn parse(text: &str) -> anyhow::Result<Value> {
    let mut mount = json!({"Type": "volume"});
    for part in text.split(',') {
        let (key, value) = part.split_once('=').unwrap_or((part, "true"));
        match key {
            "type" => mount["Type"] = json!(value),
            "source" | "src" => mount["Source"] = json!(value),
            "target" | "dst" | "destination" => mount["Target"] = json!(value),
            "readonly" | "ro" => mount["ReadOnly"] = json!(flag(key, value)?),
            "bind-propagation" => mount["BindOptions"]["Propagation"] = json!(value),
            "volume-nocopy" => mount["VolumeOptions"]["NoCopy"] = json!(flag(key, value)?),
            "tmpfs-size" => {
                mount["TmpfsOptions"]["SizeBytes"] =
                    json!(value.parse::<u64>().with_context(|| format!("{value:?} is no number of bytes"))?);
            }
            "tmpfs-mode" => {
                let mode = u32::from_str_radix(value, 8).with_context(|| format!("{value:?} is no octal mode"))?;
                mount["TmpfsOptions"]["Mode"] = json!(mode);
            }
            _ => bail!("--mount {text}: there is no key {key:?} that skep knows"),
        }
    }
    ensure!(mount["Target"].is_string(), "--mount {text}: a target is needed");
    Ok(mount)
}

fn flag(key: &str, value: &str) -> anyhow::Result<bool> {
    match value {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => bail!("{key} is true or false, not {value:?}"),
    }
}
