//! A lab's namespaces and wires, made with `ip`. Everything is made inside the namespaces.

use std::fs::File;

use crate::command::ip;
use crate::error::Result;
use crate::names::{LabName, Network, Room, host_bridge_mac};
use crate::namespace::{self, Namespace};

/// What the bridge of a host is called: guests' taps are its ports, and so is `guest0`.
pub(crate) const HOST_BRIDGE: &str = "br0";

/// All rooms of a lab with so many hosts; the switch first, since all others are wired to it.
pub(crate) fn rooms(hosts: u8) -> impl Iterator<Item = Room> {
    [Room::Switch, Room::Server, Room::Client].into_iter().chain((1..=hosts).map(Room::Host))
}

/// Makes every namespace, bridge and wire of a lab, under the lock on all labs.
pub(crate) fn build(name: &LabName, hosts: u8, lock: &File) -> Result<()> {
    for room in rooms(hosts) {
        Namespace::named(name.namespace(room)).create(lock)?;
        ip(&name.namespace(room), &["link", "set", "lo", "up"])?;
    }
    let switch = name.namespace(Room::Switch);
    for network in Network::ALL {
        add_bridge(&switch, network.bridge(), &network.bridge_mac())?;
    }
    for room in rooms(hosts).skip(1) {
        for network in Network::ALL.into_iter().filter(|network| network.reaches(room)) {
            connect(name, room, network)?;
        }
        if let Room::Host(number) = room {
            let host = name.namespace(room);
            add_bridge(&host, HOST_BRIDGE, &host_bridge_mac(number))?;
            ip(&host, &["link", "set", &Network::Guest.interface(), "master", HOST_BRIDGE])?;
        }
    }
    Ok(())
}

/// Removes every namespace of the lab that there is; its wires go with it.
pub(crate) fn remove(name: &LabName) -> Result<()> {
    existing(name).try_for_each(|(_, namespace)| namespace.remove())
}

/// The namespaces of a lab that there are, however many were made.
pub(crate) fn existing(name: &LabName) -> impl Iterator<Item = (Room, Namespace)> {
    namespace::all_names()
        .into_iter()
        .filter_map(|found| Some((name.room_of(&found)?, Namespace::named(found))))
}

/// Adds a bridge that forwards at once: no spanning tree, no forward delay, no multicast snooping, a MAC address
/// that does not change with its ports.
pub(crate) fn add_bridge(namespace: &str, bridge: &str, mac: &str) -> Result<()> {
    let kind = ["type", "bridge", "stp_state", "0", "forward_delay", "0", "mcast_snooping", "0"];
    ip(namespace, &[&["link", "add", "name", bridge, "address", mac], &kind[..]].concat())?;
    ip(namespace, &["link", "set", bridge, "up"])
}

fn connect(name: &LabName, room: Room, network: Network) -> Result<()> {
    let (switch, inside) = (name.namespace(Room::Switch), name.namespace(room));
    let (port, interface, mac) = (network.port(room), network.interface(), network.interface_mac(room));
    let peer = ["type", "veth", "peer", "name", &interface, "address", &mac, "netns", &inside];
    ip(&switch, &[&["link", "add", "name", &port], &peer[..]].concat())?;
    ip(&switch, &["link", "set", &port, "master", network.bridge(), "up"])?;
    ip(&inside, &["link", "set", &interface, "up"])?;
    if let Some(address) = network.address(room) {
        let address = format!("{address}/{}", Network::PREFIX_BITS);
        ip(&inside, &["addr", "add", &address, "dev", &interface])?;
    }
    Ok(())
}
