//! The frames that tell a network where an address is: pure functions from addresses to bytes.
//!
//! - RARP request (RFC 903): carries the MAC alone, so it works whatever the guest speaks; switches learn from it.
//! - Gratuitous ARP (RFC 5944, section 4.6), as request and as reply: some stacks take only the one or the other.
//! - Unsolicited neighbour advertisement (RFC 4861, section 7.2.6) with the override flag. The router flag is clear:
//!   it is for the addresses of hosts, since a neighbour takes it off its list of routers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use limosa_model::Mac;

const BROADCAST: [u8; 6] = [0xff; 6];
/// The group of all nodes on the link, `ff02::1`, and the MAC address that it maps to.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_RARP: u16 = 0x8035;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// The shortest frame of Ethernet, without its checksum.
const FRAME_MIN: usize = 60;

/// Everything that announces one NIC: RARP always, and what fits each address.
pub fn announcement(mac: Mac, addresses: &[IpAddr]) -> Vec<Vec<u8>> {
    let mut frames = vec![rarp_request(mac)];
    for address in addresses {
        match *address {
            IpAddr::V4(address) => {
                frames.push(gratuitous_arp_request(mac, address));
                frames.push(gratuitous_arp_reply(mac, address));
            }
            IpAddr::V6(address) => frames.push(unsolicited_advertisement(mac, address)),
        }
    }
    frames
}

/// A reverse ARP request: "who knows the IP address of this MAC?".
pub fn rarp_request(mac: Mac) -> Vec<u8> {
    let none = Ipv4Addr::UNSPECIFIED;
    arp(ETHERTYPE_RARP, 3, mac, none, mac.octets(), none)
}

/// A gratuitous ARP in the form of a request.
pub fn gratuitous_arp_request(mac: Mac, address: Ipv4Addr) -> Vec<u8> {
    arp(ETHERTYPE_ARP, 1, mac, address, [0; 6], address)
}

/// A gratuitous ARP in the form of a reply.
pub fn gratuitous_arp_reply(mac: Mac, address: Ipv4Addr) -> Vec<u8> {
    arp(ETHERTYPE_ARP, 2, mac, address, mac.octets(), address)
}

/// An unsolicited neighbour advertisement to all nodes.
pub fn unsolicited_advertisement(mac: Mac, address: Ipv6Addr) -> Vec<u8> {
    const ADVERTISEMENT: u8 = 136;
    const OVERRIDE: u8 = 0x20;
    const TARGET_LINK_LAYER_ADDRESS: u8 = 2;
    const ICMPV6: u8 = 58;

    let mut message = vec![ADVERTISEMENT, 0, 0, 0, OVERRIDE, 0, 0, 0];
    message.extend(address.octets());
    message.extend([TARGET_LINK_LAYER_ADDRESS, 1]);
    message.extend(mac.octets());
    let checksum = icmpv6_checksum(address, ALL_NODES, &message);
    message[2..4].copy_from_slice(&checksum.to_be_bytes());

    let mut frame = ethernet(ALL_NODES_MAC, mac, ETHERTYPE_IPV6);
    frame.extend([0x60, 0, 0, 0, 0, message.len() as u8, ICMPV6, 255]);
    frame.extend(address.octets());
    frame.extend(ALL_NODES.octets());
    frame.extend(message);
    frame
}

fn ethernet(to: [u8; 6], from: Mac, ethertype: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(96);
    frame.extend(to);
    frame.extend(from.octets());
    frame.extend(ethertype.to_be_bytes());
    frame
}

fn arp(
    ethertype: u16,
    operation: u8,
    mac: Mac,
    sender: Ipv4Addr,
    target_mac: [u8; 6],
    target: Ipv4Addr,
) -> Vec<u8> {
    let mut frame = ethernet(BROADCAST, mac, ethertype);
    // Ethernet, IPv4, and the lengths of their addresses.
    frame.extend([0, 1, 0x08, 0x00, 6, 4, 0, operation]);
    frame.extend(mac.octets());
    frame.extend(sender.octets());
    frame.extend(target_mac);
    frame.extend(target.octets());
    frame.resize(FRAME_MIN, 0);
    frame
}

/// RFC 4443, section 2.3: over a pseudo-header and the message, whose checksum is zero.
fn icmpv6_checksum(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> u16 {
    let mut bytes = Vec::with_capacity(40 + message.len());
    bytes.extend(from.octets());
    bytes.extend(to.octets());
    bytes.extend((message.len() as u32).to_be_bytes());
    bytes.extend([0, 0, 0, 58]);
    bytes.extend(message);
    internet_checksum(&bytes)
}

/// RFC 1071: the complement of the one's complement sum of all 16-bit words.
pub(crate) fn internet_checksum(bytes: &[u8]) -> u16 {
    let words =
        bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | word.get(1).map_or(0, |low| u32::from(*low)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    fn mac() -> Mac {
        "52:54:00:12:34:56".parse().unwrap()
    }

    #[test]
    fn a_rarp_request_asks_for_the_macs_own_address() {
        let expected = "ffffffffffff525400123456803500010800060400035254001234560000000052540012345600000000";
        assert_eq!(hex(&rarp_request(mac())), format!("{expected}{}", "00".repeat(18)));
    }

    #[test]
    fn gratuitous_arp_says_the_same_as_request_and_as_reply() {
        let address = Ipv4Addr::new(192, 0, 2, 7);
        let request = "ffffffffffff52540012345608060001080006040001525400123456c0000207000000000000c0000207";
        let reply = "ffffffffffff52540012345608060001080006040002525400123456c0000207525400123456c0000207";
        let padding = "00".repeat(18);
        assert_eq!(hex(&gratuitous_arp_request(mac(), address)), format!("{request}{padding}"));
        assert_eq!(hex(&gratuitous_arp_reply(mac(), address)), format!("{reply}{padding}"));
    }

    #[test]
    fn an_unsolicited_advertisement_overrides_what_neighbours_know() {
        let frame = unsolicited_advertisement(mac(), "2001:db8::7".parse().unwrap());
        let expected = "333300000001525400123456\
                        86dd6000000000203aff20010db8000000000000000000000007ff020000000000000000000000000001\
                        880074632000000020010db80000000000000000000000070201525400123456";
        assert_eq!(hex(&frame), expected);
        // A receiver sums the message as it stands, checksum included, and must find nothing left.
        assert_eq!(icmpv6_checksum("2001:db8::7".parse().unwrap(), ALL_NODES, &frame[54..]), 0);
    }

    #[test]
    fn a_nic_without_known_addresses_is_announced_by_its_mac_alone() {
        assert_eq!(announcement(mac(), &[]), [rarp_request(mac())]);
        let both = ["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()];
        assert_eq!(announcement(mac(), &both).len(), 4);
    }
}
