//! Values at rest: chosen resources are sealed with AES-256-GCM before they reach the store.
//!
//! A sealed value is the ASCII prefix `k8s:enc:aesgcm:v1:<key name>:`, a random 96-bit nonce and the cipher text. The
//! store key is authenticated with it, so that a sealed value cannot be moved to another object. Values
//! without the prefix are read as they are, which lets encryption be turned on for existing data.

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use bytes::Bytes;
use rand::RngCore;

/// Start of every sealed value, up to the key's name.
const SEALED: &[u8] = b"k8s:enc:aesgcm:v1:";
/// Name of the only key.
const KEY_NAME: &[u8] = b"key1:";
/// Bytes of a nonce.
const NONCE: usize = 12;

/// The value cannot be opened: it was changed, moved, or sealed with another key.
#[derive(Debug, thiserror::Error)]
#[error("value of {0} cannot be decrypted")]
pub struct OpenError(pub String);

/// Seals and opens values of secret resources.
#[derive(Clone, Default)]
pub struct Transformer {
    cipher: Option<Aes256Gcm>,
}

impl Transformer {
    /// With a 32-byte key; without one values are stored as they are.
    pub fn new(key: Option<&[u8; 32]>) -> Self {
        Self {
            cipher: key.map(|k| Aes256Gcm::new(k.into())),
        }
    }

    /// The bytes to store for `value`.
    pub fn seal(&self, secret: bool, key: &[u8], value: Bytes) -> Bytes {
        let Some(cipher) = self.cipher.as_ref().filter(|_| secret) else {
            return value;
        };
        let mut nonce = [0u8; NONCE];
        rand::rng().fill_bytes(&mut nonce);
        // AES-GCM refuses only messages of more than 64 GiB.
        let Ok(sealed) = cipher.encrypt(
            Nonce::from_slice(&nonce),
            Payload {
                msg: &value,
                aad: key,
            },
        ) else {
            return value;
        };
        [SEALED, KEY_NAME, &nonce, &sealed].concat().into()
    }

    /// The value whose stored bytes are `stored`.
    ///
    /// # Errors
    /// When the value is sealed and cannot be opened with this key.
    pub fn open(&self, key: &[u8], stored: Bytes) -> Result<Bytes, OpenError> {
        let Some(rest) = stored.strip_prefix(SEALED) else {
            return Ok(stored);
        };
        let fail = || OpenError(String::from_utf8_lossy(key).into_owned());
        let rest = rest.strip_prefix(KEY_NAME).ok_or_else(fail)?;
        let (nonce, sealed) = rest.split_at_checked(NONCE).ok_or_else(fail)?;
        let cipher = self.cipher.as_ref().ok_or_else(fail)?;
        let open = cipher.decrypt(
            Nonce::from_slice(nonce),
            Payload {
                msg: sealed,
                aad: key,
            },
        );
        open.map(Bytes::from).map_err(|_| fail())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_values_open_only_under_their_key() {
        let t = Transformer::new(Some(&[7; 32]));
        let value = Bytes::from_static(b"{\"kind\":\"Secret\"}");
        let sealed = t.seal(true, b"/registry/secrets/a/b", value.clone());
        assert!(!sealed.windows(6).any(|w| w == b"Secret"));
        assert_eq!(
            t.open(b"/registry/secrets/a/b", sealed.clone()).unwrap(),
            value
        );
        assert!(t.open(b"/registry/secrets/a/c", sealed.clone()).is_err());
        assert!(
            Transformer::new(Some(&[8; 32]))
                .open(b"/registry/secrets/a/b", sealed.clone())
                .is_err()
        );
        assert!(
            Transformer::default()
                .open(b"/registry/secrets/a/b", sealed)
                .is_err()
        );
        assert_eq!(t.seal(false, b"k", value.clone()), value);
        assert_eq!(t.open(b"k", value.clone()).unwrap(), value);
    }
}
