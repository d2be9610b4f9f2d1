//! Random secrets: shown once, kept as digests, compared in constant time.

use std::fmt;

use serde::{Deserialize, Serialize};

/// 256 random bits, as 64 hexadecimal digits.
pub struct Secret(String);

impl Secret {
    pub(crate) fn new() -> Self {
        let (a, b, c) = (uuid::Uuid::new_v4(), uuid::Uuid::new_v4(), uuid::Uuid::new_v4());
        // Each v4 UUID has 122 bits of the system's randomness; three of them have more than 256.
        let mut hasher = blake3::Hasher::new();
        for part in [a, b, c] {
            hasher.update(part.as_bytes());
        }
        Self(hasher.finalize().to_hex().to_string())
    }

    /// The secret itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// What is kept of a secret. It is random enough that no salt or slow hash is needed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Digest(String);

impl Digest {
    pub(crate) fn of(secret: &str) -> Self {
        Self(blake3::hash(secret.as_bytes()).to_hex().to_string())
    }

    /// Whether this is the digest of `secret`. The time that it takes says nothing about how much of it is right.
    pub(crate) fn is_of(&self, secret: &str) -> bool {
        let kept = blake3::Hash::from_hex(&self.0);
        kept.is_ok_and(|kept| kept == blake3::hash(secret.as_bytes()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_secret_itself_fits_its_digest() {
        let (secret, other) = (Secret::new(), Secret::new());
        assert!(secret.digest().is_of(secret.reveal()));
        assert!(!secret.digest().is_of(other.reveal()));
        assert!(!secret.digest().is_of(""));
        assert_eq!(secret.reveal().len(), 64);
        assert!(!format!("{secret:?}").contains(secret.reveal()));
    }
}
