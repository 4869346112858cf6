//! PEM text: written here, read by rustls.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

pub fn certificate(der: &[u8]) -> String {
    section("CERTIFICATE", der)
}

pub fn private_key(pkcs8_der: &[u8]) -> String {
    section("PRIVATE KEY", pkcs8_der)
}

/// All certificates of a text, in order.
pub fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    CertificateDer::pem_slice_iter(text).collect::<Result<_, _>>().map_err(|error| error.to_string())
}

pub fn key(text: &[u8]) -> Result<PrivatePkcs8KeyDer<'static>, String> {
    PrivatePkcs8KeyDer::from_pem_slice(text).map_err(|error| error.to_string())
}

fn section(label: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in base64(der).as_bytes().chunks(64) {
        text.extend(line.iter().map(|&byte| char::from(byte)));
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

fn base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let word = group.iter().fold(0u32, |word, &byte| word << 8 | u32::from(byte)) << (8 * (3 - group.len()));
        for position in 0..4 {
            let digit = ALPHABET[(word >> (18 - 6 * position) & 63) as usize];
            text.push(if position <= group.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_every_remainder() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn what_is_written_can_be_read() {
        let der: Vec<u8> = (0..=255).collect();
        let text = certificate(&der) + &certificate(&der[..100]);
        let read = certificates(text.as_bytes()).unwrap();
        assert_eq!(read.iter().map(|one| one.as_ref()).collect::<Vec<_>>(), [&der[..], &der[..100]]);
        assert_eq!(key(private_key(&der).as_bytes()).unwrap().secret_pkcs8_der(), der);
    }
}
