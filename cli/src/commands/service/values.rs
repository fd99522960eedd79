//! Values of flags as people write them.

use anyhow::{Context, bail};

/// The words of a line.
pub fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

/// CPUs in nano-CPUs.
pub fn nano_cpus(cpus: f64) -> i64 {
    #[expect(clippy::cast_possible_truncation, reason = "the daemon checks the range; the cast saturates")]
    let nano = (cpus * 1e9).round() as i64;
    nano
}

/// A size in bytes.
///
/// # Errors
/// When it is none; names the flag.
pub fn bytes(flag: &str, text: Option<&String>) -> anyhow::Result<Option<i64>> {
    let Some(text) = text else { return Ok(None) };
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let shift = match text[end..].to_ascii_lowercase().trim_end_matches("ib").trim_end_matches('b') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => bail!("{flag} {text}: write a size like 512M or 2G"),
    };
    let number: i64 = text[..end].parse().with_context(|| format!("{flag} {text}: write a size like 512M or 2G"))?;
    Ok(Some(number.checked_mul(1 << shift).with_context(|| format!("{flag} {text} is too large"))?))
}

/// A duration in nanoseconds.
///
/// # Errors
/// When it is none; names the flag.
pub fn nanoseconds(flag: &str, text: Option<&String>) -> anyhow::Result<Option<i64>> {
    let Some(text) = text else { return Ok(None) };
    let wrong = || format!("{flag} {text}: write a duration like 10s or 1m30s");
    let span: jiff::SignedDuration = text.parse().with_context(wrong)?;
    Ok(Some(i64::try_from(span.as_nanos()).with_context(wrong)?))
}
