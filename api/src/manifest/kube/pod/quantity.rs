//! Quantities (apimachinery `resource.Quantity`): `500m`, `1.5`, `128Mi`, `1e3`.

use crate::manifest::decode::text;
use crate::manifest::problem::Problems;
use crate::manifest::yaml::Node;

/// Reads a quantity, in thousandths.
pub fn read(node: &Node, what: &str, problems: &mut Problems) -> Option<i128> {
    let written = text(node, what, problems);
    let value = parse(&written);
    if value.is_none() {
        problems.add(node.place, format!("{what} is a quantity like 500m, 2 or 128Mi, not {written:?}"));
    }
    value
}

/// In thousandths, rounded up. `None` for what is no quantity, or beyond 2^63.
pub fn parse(text: &str) -> Option<i128> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || whole.len() > 19 || fraction.len() > 9 {
        return None;
    }
    let scale = 10i128.pow(u32::try_from(fraction.len()).ok()?);
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let (factor, divisor) = match suffix {
        "n" => (1, 1_000_000),
        "u" => (1, 1000),
        "m" => (1, 1),
        "" => (1000, 1),
        "k" => (1_000_000, 1),
        "M" => (1_000_000_000, 1),
        "G" => (1_000_000_000_000, 1),
        "T" => (1_000_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1000 << 10, 1),
        "Mi" => (1000 << 20, 1),
        "Gi" => (1000 << 30, 1),
        "Ti" => (1000i128 << 40, 1),
        "Pi" => (1000i128 << 50, 1),
        exponent => {
            let power: u32 = exponent.strip_prefix(['e', 'E'])?.parse().ok().filter(|power| *power <= 18)?;
            (1000 * 10i128.pow(power), 1)
        }
    };
    let value = digits.checked_mul(factor)?;
    let divisor = scale * divisor;
    let rounded = value / divisor + i128::from(value % divisor != 0);
    (rounded <= i128::from(i64::MAX) * 1000).then_some(rounded)
}

/// Whole units, rounded up: bytes.
pub fn units(thousandths: i128) -> i64 {
    i64::try_from(thousandths / 1000 + i128::from(thousandths % 1000 != 0)).unwrap_or(i64::MAX)
}

/// CPU in nano-CPUs.
pub fn nano(thousandths: i128) -> i64 {
    i64::try_from(thousandths.saturating_mul(1_000_000)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_in_every_form() {
        let rows = [
            ("500m", 500),
            ("0.5", 500),
            ("2", 2000),
            ("1.5", 1500),
            ("128Mi", 128_000 << 20),
            ("1G", 1_000_000_000_000),
            ("1e3", 1_000_000),
            ("1Gi", 1000 << 30),
            ("100n", 1),
            (".5", 500),
        ];
        for (text, expected) in rows {
            assert_eq!(parse(text), Some(expected), "{text}");
        }
        for wrong in
            ["", "m", "1x", "-1", "1.2.3", "1e99", "99999999999999999999", "1 Mi", "0x10", "9999999999999999Pi"]
        {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
        assert_eq!((units(1500), nano(250)), (2, 250_000_000));
    }
}
