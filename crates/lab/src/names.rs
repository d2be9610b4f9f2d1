//! What things in a lab are called, and which addresses they have. Pure.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// With what the name of every namespace of every lab begins.
pub const PREFIX: &str = "limosa-lab";
/// The most hosts that a lab can have: it keeps interface names within the kernel's 15 characters.
pub const HOSTS_LIMIT: u8 = 99;

/// The name of a lab: 1 to 24 lower-case letters, digits and inner hyphens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LabName(String);

impl LabName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What the namespace of a room is called: `limosa-lab-NAME-ROOM`.
    pub fn namespace(&self, room: Room) -> String {
        format!("{PREFIX}-{self}-{room}")
    }

    /// The room whose namespace this is, if it is one of this lab's.
    pub fn room_of(&self, namespace: &str) -> Option<Room> {
        namespace
            .strip_prefix(PREFIX)?
            .strip_prefix('-')?
            .strip_prefix(self.as_str())?
            .strip_prefix('-')?
            .parse()
            .ok()
    }
}

impl Default for LabName {
    fn default() -> Self {
        Self("default".to_owned())
    }
}

impl fmt::Display for LabName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for LabName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if !(1..=24).contains(&text.len())
            || !text.chars().all(valid)
            || text.starts_with('-')
            || text.ends_with('-')
        {
            let why = "1 to 24 lower-case letters, digits and inner hyphens are expected";
            return Err(Error::invalid("name of a lab", text, why));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for LabName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<LabName> for String {
    fn from(name: LabName) -> Self {
        name.0
    }
}

/// One namespace of a lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Room {
    /// Where the three networks' bridges and the link emulators are.
    Switch,
    /// Where the server runs: on the management network.
    Server,
    /// Where guests' users are: on the guest network.
    Client,
    /// A host, from 1.
    Host(u8),
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Switch => f.pad("switch"),
            Self::Server => f.pad("server"),
            Self::Client => f.pad("client"),
            Self::Host(number) => f.pad(&format!("h{number}")),
        }
    }
}

impl FromStr for Room {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let host = || {
            let number: u8 = text.strip_prefix('h')?.parse().ok()?;
            // `h01` and `h+1` are other spellings, and two names for one thing are one too many.
            ((1..=HOSTS_LIMIT).contains(&number) && text == format!("h{number}"))
                .then_some(Self::Host(number))
        };
        match text {
            "switch" => Ok(Self::Switch),
            "server" => Ok(Self::Server),
            "client" => Ok(Self::Client),
            _ => host().ok_or_else(|| {
                Error::invalid("room of a lab", text, "h1 to h99, server, client or switch is expected")
            }),
        }
    }
}

impl TryFrom<String> for Room {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Room> for String {
    fn from(room: Room) -> Self {
        room.to_string()
    }
}

/// One of a lab's three networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Network {
    /// Server and hosts: 10.76.0.0/24.
    Management,
    /// Hosts among themselves: 10.75.0.0/24.
    Migration,
    /// Guests and the client: 10.77.0.0/24.
    Guest,
}

impl Network {
    /// All three.
    pub const ALL: [Self; 3] = [Self::Management, Self::Migration, Self::Guest];
    /// The length of every network's prefix.
    pub const PREFIX_BITS: u8 = 24;

    /// What its bridge in the switch is called, and with what the names of its interfaces begin.
    pub const fn bridge(self) -> &'static str {
        match self {
            Self::Management => "mgmt",
            Self::Migration => "migr",
            Self::Guest => "guest",
        }
    }

    /// What a room's interface on this network is called inside the room.
    pub fn interface(self) -> String {
        format!("{}0", self.bridge())
    }

    /// What the other end of a room's interface is called in the switch, such as `h1-migr`.
    pub fn port(self, room: Room) -> String {
        format!("{room}-{}", self.bridge())
    }

    /// The address of a room on this network, if it has one. A host is only a bridge on the guest network.
    pub const fn address(self, room: Room) -> Option<Ipv4Addr> {
        match (self, room) {
            (Self::Management, Room::Server) => Some(Ipv4Addr::new(10, 76, 0, 1)),
            (Self::Management, Room::Host(number)) => Some(Ipv4Addr::new(10, 76, 0, 10 + number)),
            (Self::Migration, Room::Host(number)) => Some(Ipv4Addr::new(10, 75, 0, 10 + number)),
            (Self::Guest, Room::Client) => Some(Ipv4Addr::new(10, 77, 0, 2)),
            _ => None,
        }
    }

    /// Whether a room has an interface on this network.
    pub const fn reaches(self, room: Room) -> bool {
        matches!((self, room), (Self::Guest, Room::Host(_))) || self.address(room).is_some()
    }

    const fn number(self) -> u8 {
        match self {
            Self::Management => 76,
            Self::Migration => 75,
            Self::Guest => 77,
        }
    }

    /// The MAC address of the bridge in the switch.
    pub(crate) fn bridge_mac(self) -> String {
        format!("02:4c:{:02x}:00:00:01", self.number())
    }

    /// The MAC address of a room's interface.
    pub(crate) fn interface_mac(self, room: Room) -> String {
        self.mac(1, room)
    }

    /// The MAC address of the little bridge before a link emulator.
    pub(crate) fn emulator_mac(self, room: Room) -> String {
        self.mac(2, room)
    }

    fn mac(self, use_of_it: u8, room: Room) -> String {
        let (kind, number) = match room {
            Room::Switch => (0, 0),
            Room::Server => (1, 0),
            Room::Client => (2, 0),
            Room::Host(number) => (3, number),
        };
        format!("02:4c:{:02x}:{use_of_it:02x}:{kind:02x}:{number:02x}", self.number())
    }
}

/// The MAC address of a host's `br0`: pinned, or it would change as taps come and go and break its peers' ARP.
pub(crate) fn host_bridge_mac(host: u8) -> String {
    format!("02:4c:00:00:03:{host:02x}")
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Management => "management",
            Self::Migration => "migration",
            Self::Guest => "guest",
        })
    }
}

impl FromStr for Network {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "management" | "mgmt" => Ok(Self::Management),
            "migration" => Ok(Self::Migration),
            "guest" => Ok(Self::Guest),
            _ => Err(Error::invalid("network of a lab", text, "mgmt, migration or guest is expected")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lab_recognises_its_own_namespaces_and_no_other_labs() {
        let lab: LabName = "a".parse().unwrap();
        for room in [Room::Switch, Room::Server, Room::Client, Room::Host(1), Room::Host(99)] {
            assert_eq!(lab.room_of(&lab.namespace(room)), Some(room));
        }
        let longer: LabName = "a-h1".parse().unwrap();
        assert_eq!(lab.room_of(&longer.namespace(Room::Host(1))), None);
        for other in
            ["limosa-lab-a", "limosa-lab-a-", "limosa-lab-a-h0", "limosa-lab-a-h01", "limosa-lab-ah1", "a-h1"]
        {
            assert_eq!(lab.room_of(other), None, "{other}");
        }
    }

    #[test]
    fn names_that_could_leave_the_state_directory_are_refused() {
        for text in ["", ".", "..", "a/b", "A", "-a", "a-", "a b", "ä", "abcdefghijklmnopqrstuvwxyz"] {
            assert!(text.parse::<LabName>().is_err(), "{text}");
        }
    }

    #[test]
    fn every_interface_name_fits_the_kernels_limit_even_with_an_emulators_ending() {
        for network in Network::ALL {
            for room in [Room::Server, Room::Client, Room::Host(HOSTS_LIMIT)] {
                assert!(format!("{}-o", network.port(room)).len() <= 15);
            }
        }
    }

    #[test]
    fn no_two_interfaces_share_an_address() {
        let rooms = [Room::Server, Room::Client].into_iter().chain((1..=HOSTS_LIMIT).map(Room::Host));
        let mut macs = std::collections::BTreeSet::new();
        let mut addresses = std::collections::BTreeSet::new();
        for room in rooms {
            for network in Network::ALL.into_iter().filter(|network| network.reaches(room)) {
                assert!(macs.insert(network.interface_mac(room)));
                assert!(macs.insert(network.emulator_mac(room)));
                assert!(network.address(room).is_none_or(|address| addresses.insert(address)));
            }
        }
    }
}
