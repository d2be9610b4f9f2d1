//! Names of network devices.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

use crate::NetError;

/// The name of a network device: 1 to 15 characters of `a-z`, `A-Z`, `0-9`, `-`, `_` and `.`, and neither `.` nor
/// `..`. Narrower than what the kernel takes, so that it is a safe word in paths under `/sys` and `/proc`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct IfName(String);

impl IfName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for IfName {
    type Err = NetError;

    fn from_str(name: &str) -> Result<Self, NetError> {
        let invalid = |why| NetError::InvalidName { name: name.chars().take(40).collect(), why };
        if name.is_empty() || name.len() > 15 {
            return Err(invalid("1 to 15 characters are allowed"));
        }
        if !name.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c)) {
            return Err(invalid("only letters, digits, '-', '_' and '.' are allowed"));
        }
        if name == "." || name == ".." {
            return Err(invalid("it would be a directory"));
        }
        Ok(Self(name.to_owned()))
    }
}

impl<'de> Deserialize<'de> for IfName {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_too_long_or_unsafe_in_a_path_is_refused() {
        for bad in ["", ".", "..", "a/b", "a b", "sixteen-chars-xx", "é", "a\0"] {
            assert!(bad.parse::<IfName>().is_err(), "{bad:?} was taken");
        }
        for good in ["br0", "lm0011aabbn0", "enp0s31f6.100"] {
            assert_eq!(good.parse::<IfName>().unwrap().as_str(), good);
        }
    }
}
