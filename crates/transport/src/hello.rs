//! The first bytes on a connection: which migration, which channel, and the answer to that.
//!
//! Both messages have a fixed size, so a parser has nothing to allocate and nothing to run past.

use std::fmt;

use crate::Error;

/// The version of the protocol that this crate speaks.
pub const PROTOCOL_VERSION: u16 = 1;

/// How many channels a migration may have: QEMU opens at most 255 multifd channels, the main one and the
/// pre-emption one.
pub const CHANNELS_MAX: u16 = 257;

const HELLO_MAGIC: &[u8; 8] = b"LIMOSAmg";
const ANSWER_MAGIC: &[u8; 8] = b"LIMOSAok";

/// What the source says first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// The protocol that the source speaks.
    pub version: u16,
    /// Which channel of the stream this is, counted from 0 in the order in which QEMU opened them.
    pub channel: u16,
    /// The migration's id.
    pub migration: [u8; 16],
}

impl Hello {
    /// The size on the wire, in bytes.
    pub const SIZE: usize = 32;

    /// The message as it goes onto the wire.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..8].copy_from_slice(HELLO_MAGIC);
        bytes[8..10].copy_from_slice(&self.version.to_be_bytes());
        bytes[10..12].copy_from_slice(&self.channel.to_be_bytes());
        bytes[16..].copy_from_slice(&self.migration);
        bytes
    }

    /// Reads what came off the wire. The version and the channel are for the caller to judge.
    ///
    /// # Errors
    /// [`Error::Protocol`] if this is no hello.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Result<Self, Error> {
        if &bytes[..8] != HELLO_MAGIC {
            return Err(Error::Protocol("its first bytes are no hello"));
        }
        if bytes[12..16] != [0; 4] {
            return Err(Error::Protocol("the reserved bytes of its hello are not zero"));
        }
        Ok(Self {
            version: u16::from_be_bytes([bytes[8], bytes[9]]),
            channel: u16::from_be_bytes([bytes[10], bytes[11]]),
            migration: bytes[16..].try_into().expect("32 less 16 bytes are 16"),
        })
    }
}

/// What the destination says to a [`Hello`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The channel stands, and what follows is QEMU's.
    Accepted,
    /// The destination speaks another version of the protocol.
    OtherVersion,
    /// The destination is here for another migration.
    OtherMigration,
    /// The channel's number is taken, too high, or the channels before it never came.
    NoSuchChannel,
    /// The destination's QEMU does not take the connection.
    QemuUnreachable,
}

impl Answer {
    /// The size on the wire, in bytes.
    pub const SIZE: usize = 16;

    const ALL: [Self; 5] = [
        Self::Accepted,
        Self::OtherVersion,
        Self::OtherMigration,
        Self::NoSuchChannel,
        Self::QemuUnreachable,
    ];

    /// The message as it goes onto the wire.
    pub fn encode(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..8].copy_from_slice(ANSWER_MAGIC);
        bytes[8..10].copy_from_slice(&PROTOCOL_VERSION.to_be_bytes());
        bytes[10..12].copy_from_slice(&(self as u16).to_be_bytes());
        bytes
    }

    /// Reads what came off the wire.
    ///
    /// # Errors
    /// [`Error::Protocol`] if this is no answer, or one that this version does not know.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Result<Self, Error> {
        if &bytes[..8] != ANSWER_MAGIC {
            return Err(Error::Protocol("its first bytes are no answer to a hello"));
        }
        let code = u16::from_be_bytes([bytes[10], bytes[11]]);
        let answer = Self::ALL.into_iter().find(|answer| *answer as u16 == code);
        answer.ok_or(Error::Protocol("its answer has a code that is not known"))
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Accepted => "accepted",
            Self::OtherVersion => {
                "it speaks another version of the protocol: run the same Limosa on both hosts"
            }
            Self::OtherMigration => "it is here for another migration",
            Self::NoSuchChannel => "the channel's number is taken, too high, or out of turn",
            Self::QemuUnreachable => "its QEMU does not take the connection: see the destination's log",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_hello_survives_the_wire(version: u16, channel: u16, migration: [u8; 16]) {
            let hello = Hello { version, channel, migration };
            prop_assert_eq!(Hello::decode(&hello.encode()).unwrap(), hello);
        }

        #[test]
        fn whatever_is_taken_for_a_hello_encodes_to_the_same_bytes(mut bytes: [u8; Hello::SIZE], magic: bool, zero: bool) {
            if magic {
                bytes[..8].copy_from_slice(HELLO_MAGIC);
            }
            if zero {
                bytes[12..16].fill(0);
            }
            match Hello::decode(&bytes) {
                Ok(hello) => prop_assert_eq!(hello.encode(), bytes),
                Err(_) => prop_assert!(&bytes[..8] != HELLO_MAGIC || bytes[12..16] != [0; 4]),
            }
        }

        #[test]
        fn an_answer_with_an_unknown_code_is_refused(code in 5u16..) {
            let mut bytes = Answer::Accepted.encode();
            bytes[10..12].copy_from_slice(&code.to_be_bytes());
            prop_assert!(Answer::decode(&bytes).is_err());
        }
    }

    #[test]
    fn every_answer_survives_the_wire() {
        for answer in Answer::ALL {
            assert_eq!(Answer::decode(&answer.encode()).unwrap(), answer);
        }
    }
}
