//! One record in the file.
//!
//! ```text
//! length of the body, 4 bytes │ number, 8 bytes │ seal, 16 bytes │ body: JSON
//! ```
//!
//! All numbers are little endian. The seal is a keyed hash of number and body under the file's own key, so that bytes
//! which a failed write left behind, whatever they are, do not pass for a record. A length of 0 is the end.

/// Bytes before the body.
pub(crate) const HEAD: usize = 4 + 8 + 16;

/// Longest body, in bytes.
pub(crate) const BODY_MAX: usize = 1 << 20;

/// The key of a file's seals.
pub(crate) type Key = [u8; 32];

fn seal(key: &Key, number: u64, body: &[u8]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(&number.to_le_bytes());
    hasher.update(body);
    let mut seal = [0; 16];
    seal.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    seal
}

/// The record's bytes.
pub(crate) fn encode(key: &Key, number: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD + body.len());
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&number.to_le_bytes());
    bytes.extend_from_slice(&seal(key, number, body));
    bytes.extend_from_slice(body);
    bytes
}

/// The number and the body of the record at the start of `bytes`, if there is a whole one.
pub(crate) fn decode<'b>(key: &Key, bytes: &'b [u8]) -> Option<(u64, &'b [u8])> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    let (number, rest) = rest.split_first_chunk::<8>()?;
    let (sealed, rest) = rest.split_first_chunk::<16>()?;
    let len = u32::from_le_bytes(*len) as usize;
    let number = u64::from_le_bytes(*number);
    if len == 0 || len > BODY_MAX {
        return None;
    }
    let body = rest.get(..len)?;
    (seal(key, number, body) == *sealed).then_some((number, body))
}
