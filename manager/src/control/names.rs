//! Which names objects may have.

use skep_api::ports::control::ControlError;

/// Longest name of a service or network: a component of a DNS name (RFC 1035, section 2.3.4).
const MOST_DNS_COMPONENT: usize = 63;
/// Longest name of a secret or config (swarmkit).
const MOST_FILE_NAME: usize = 64;

/// A name that DNS answers to: letters, digits, `-` and `_`, beginning and ending with a letter or digit.
///
/// # Errors
/// In swarmkit's words.
pub fn check_dns_name(name: &str) -> Result<(), ControlError> {
    if name.is_empty() {
        return Err(ControlError::InvalidArgument("meta: name must be provided".into()));
    }
    if name.len() > MOST_DNS_COMPONENT {
        return Err(ControlError::InvalidArgument("name must be 63 characters or fewer".into()));
    }
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let inside = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    if ends(name.chars().next()) && ends(name.chars().next_back()) && inside {
        return Ok(());
    }
    Err(ControlError::InvalidArgument("name must be valid as a DNS name component".into()))
}

/// A name of a network: as Docker, anything that begins with a letter or digit and goes on with those, `_`, `.` and `-`.
///
/// # Errors
/// In Docker's words.
pub fn check_network_name(name: &str) -> Result<(), ControlError> {
    let valid = name.chars().next().is_some_and(|c| c.is_ascii_alphanumeric())
        && name.len() <= MOST_DNS_COMPONENT
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
    if valid {
        Ok(())
    } else {
        Err(ControlError::InvalidArgument(format!(
            "invalid name {name:?}: only [a-zA-Z0-9][a-zA-Z0-9_.-]* and 63 characters are allowed"
        )))
    }
}

/// A name of a secret or config.
///
/// # Errors
/// In swarmkit's words.
pub fn check_file_name(kind: &str, name: &str) -> Result<(), ControlError> {
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let valid = name.len() <= MOST_FILE_NAME
        && ends(name.chars().next())
        && ends(name.chars().next_back())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    if valid {
        return Ok(());
    }
    Err(ControlError::InvalidArgument(format!(
        "invalid {kind} name, only 64 [a-zA-Z0-9-_.] characters allowed, and the start and end character must be [a-zA-Z0-9]"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded_and_begin_and_end_with_a_letter_or_digit() {
        for good in ["web", "a", "web-1_x", "9"] {
            assert!(check_dns_name(good).is_ok(), "{good}");
        }
        for bad in ["", "-web", "web-", "a.b", "wéb", "a b", &"x".repeat(64)] {
            assert!(check_dns_name(bad).is_err(), "{bad}");
        }
        assert!(check_file_name("secret", "a.b").is_ok());
        assert!(check_file_name("secret", ".a").is_err());
        assert!(check_network_name("my.net_1").is_ok());
        assert!(check_network_name("_x").is_err());
    }
}
