//! Identities, and the numbers that order and fence.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Why a text is not the identity or name that it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a valid {what}: {why}")]
pub struct InvalidId {
    what: &'static str,
    text: String,
    why: &'static str,
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
        #[serde(transparent)]
        #[schemars(with = "String")]
        pub struct $name(Uuid);

        impl $name {
            /// An identity never given before; later ones sort behind earlier ones.
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }

            /// The identity with this number: for tests and models, which need the same ones each time.
            pub const fn from_u128(number: u128) -> Self {
                Self(Uuid::from_u128(number))
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::new()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Uuid::try_parse(text).map(Self).map_err(|_| InvalidId {
                    what: $what,
                    text: text.to_owned(),
                    why: "a UUID is expected",
                })
            }
        }
    };
}

uuid_id!(
    /// A host: the machine, for as long as its agent keeps its state directory.
    HostId, "host id"
);
uuid_id!(
    /// A VM, from its creation to its deletion, whatever it is called and wherever it runs.
    VmId, "VM id"
);
uuid_id!(
    /// One migration. A second attempt is another migration.
    MigrationId, "migration id"
);
uuid_id!(
    /// What the API returns for anything long.
    TaskId, "task id"
);
uuid_id!(
    /// A place where disks live.
    DatastoreId, "datastore id"
);
uuid_id!(
    /// What NICs attach to.
    NetworkId, "network id"
);

uuid_id!(
    /// An agent's journal. Another one under the same host identity means that the journal was lost; orders are
    /// meant for one journal only, so that a late one cannot reach an agent that has forgotten what came after it.
    JournalId, "journal id"
);

/// The number under which a host has the right to run a VM. The server never gives one twice; a higher one
/// fences all lower ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch that follows this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which life of the server's state this is. A server restored from a backup starts a higher one, and agents
/// take no orders from a lower one than they have seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Incarnation(pub u64);

/// The kernel's boot id: two reports with different ones have a reboot between them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct BootId(pub String);

/// A name that a user gives: 1 to 63 characters of `a-z`, `0-9`, `-`, `_` and `.`, the first a letter or digit.
///
/// Such a name is a safe file name (no `/`, and never `.` or `..`) and a safe word in every output.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct Name(#[schemars(regex(pattern = r"^[a-z0-9][a-z0-9._-]{0,62}$"))] String);

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for Name {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let invalid = |why| InvalidId { what: "name", text: text.chars().take(80).collect(), why };
        if text.is_empty() || text.len() > 63 {
            return Err(invalid("1 to 63 characters are allowed"));
        }
        let allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"-_.".contains(&c);
        if !text.bytes().all(allowed) {
            return Err(invalid("only a-z, 0-9, '-', '_' and '.' are allowed"));
        }
        if b"-_.".contains(&text.as_bytes()[0]) {
            return Err(invalid("it must begin with a letter or a digit"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The address of a NIC: unicast, unique in the cluster.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, JsonSchema)]
#[schemars(with = "String")]
pub struct Mac([u8; 6]);

impl Mac {
    /// The six octets, in the order in which they go onto the wire.
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }

    /// The address for NIC number `nic` of a VM: locally administered, and the same each time it is asked for,
    /// so that a repeated create gives the same VM the same address. The server still checks that it is unique.
    pub fn derived(vm: VmId, nic: u8) -> Self {
        let id = vm.0.as_bytes();
        Self([0x52, 0x54, id[13], id[14], id[15], nic ^ id[12]])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mac({self})")
    }
}

impl FromStr for Mac {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let invalid = |why| InvalidId { what: "MAC address", text: text.chars().take(40).collect(), why };
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().ok_or(invalid("six octets are expected, as in 52:54:00:12:34:56"))?;
            if part.len() != 2 || !part.bytes().all(|c| c.is_ascii_hexdigit()) {
                return Err(invalid("each octet is two hexadecimal digits"));
            }
            *octet =
                u8::from_str_radix(part, 16).map_err(|_| invalid("each octet is two hexadecimal digits"))?;
        }
        if parts.next().is_some() {
            return Err(invalid("six octets are expected, as in 52:54:00:12:34:56"));
        }
        if octets[0] & 1 == 1 {
            return Err(invalid("a NIC cannot have a multicast address"));
        }
        if octets == [0; 6] {
            return Err(invalid("all zeroes is no address"));
        }
        Ok(Self(octets))
    }
}

impl Serialize for Mac {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_could_leave_its_directory_is_refused() {
        for bad in ["", ".", "..", "../x", "a/b", "-rf", "A", "a b", "é", &"x".repeat(64)] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?} was taken");
        }
        for good in ["a", "web-1", "db_2.old", "0", &"x".repeat(63)] {
            assert!(good.parse::<Name>().is_ok(), "{good:?} was refused");
        }
    }

    #[test]
    fn a_mac_is_six_unicast_octets() {
        assert_eq!("52:54:00:AB:cd:01".parse::<Mac>().unwrap().to_string(), "52:54:00:ab:cd:01");
        for bad in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "53:54:00:12:34:56",
            "00:00:00:00:00:00",
            "5:54:00:12:34:567",
            "+5:54:00:12:34:56",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn derived_macs_differ_by_nic_and_are_valid() {
        let vm = VmId::new();
        let macs: std::collections::BTreeSet<_> = (0..=255).map(|nic| Mac::derived(vm, nic)).collect();
        assert_eq!(macs.len(), 256);
        for mac in macs {
            assert_eq!(mac.to_string().parse(), Ok(mac));
        }
    }
}
