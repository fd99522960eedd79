//! PEM texts (RFC 7468).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

/// A text is not PEM, or holds no certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    /// Broken framing or base64.
    #[error("not a PEM text: {reason}")]
    Malformed {
        /// What the parser found.
        reason: String,
    },
    /// Well formed, but no certificate in it.
    #[error("the PEM text holds no certificate")]
    NoCertificate,
}

/// The certificates of a PEM text in their order, at least one.
///
/// # Errors
/// When the text is malformed or holds none.
pub fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let found = CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| PemError::Malformed { reason: e.to_string() })?;
    if found.is_empty() { Err(PemError::NoCertificate) } else { Ok(found) }
}

/// Certificates as one PEM text, in their order.
pub fn encode_certificates(certificates: &[CertificateDer<'_>]) -> String {
    certificates.iter().map(|c| encode("CERTIFICATE", c)).collect()
}

/// The contents of the first block with that label.
pub(crate) fn block(label: &str, text: &str) -> Option<Vec<u8>> {
    let (_, rest) = text.split_once(&format!("-----BEGIN {label}-----"))?;
    let (body, _) = rest.split_once("-----END")?;
    STANDARD.decode(body.split_whitespace().collect::<String>()).ok()
}

/// One PEM block, in lines of 64 characters.
pub fn encode(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in body.as_bytes().chunks(64) {
        out.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
        out.push('\n');
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_read_back_in_order() {
        let two = [CertificateDer::from(vec![7; 100]), CertificateDer::from(vec![8; 3])];
        assert_eq!(certificates(&encode_certificates(&two)).unwrap(), two);
    }

    #[test]
    fn a_text_without_certificate_is_an_error() {
        assert_eq!(certificates("hello"), Err(PemError::NoCertificate));
        assert!(matches!(certificates("-----BEGIN CERTIFICATE-----\n!"), Err(PemError::Malformed { .. })));
    }
}
