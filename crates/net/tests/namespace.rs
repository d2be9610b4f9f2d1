//! Taps, bridges, ports and announcements in network namespaces of their own. Needs root.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use limosa_model::Mac;
use limosa_net::{
    Bridge, BridgeWarning, IfName, Net, NetError, PathMtu, PortState, Schedule, Tap, TapSpec, announce,
    frames, path_mtu_probe,
};
use rtnetlink::packet_route::link::LinkFlags;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Runs a test on a thread with a network namespace of its own, and a `/sys` that shows it.
fn in_private_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "these tests need root, and CI must run them");
        eprintln!("SKIPPED: network namespaces need root");
        return;
    }
    let thread = std::thread::spawn(move || {
        // SAFETY: the thread shares no descriptor table and no state of its file system with others by intent;
        // new namespaces for the calling thread touch no memory.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS) }.unwrap();
        mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE).unwrap();
        mount("sysfs", "/sys", "sysfs", MountFlags::empty(), None).unwrap();
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn name(text: &str) -> IfName {
    text.parse().unwrap()
}

fn mac(last: u8) -> Mac {
    format!("52:54:00:00:00:{last:02x}").parse().unwrap()
}

fn spec(text: &str, last: u8) -> TapSpec {
    TapSpec { name: name(text), guest_mac: mac(last), mtu: 1500, owner: 0 }
}

/// A tap whose far end, the guest's, is in the test's hands.
struct Guest {
    tap: Tap,
    mac: Mac,
    queue: File,
}

/// The virtio header before each frame on a tap's queue.
const VNET_HEADER: [u8; 10] = [0; 10];

impl Guest {
    async fn attached(net: &Net, bridge: &Bridge, text: &str, last: u8) -> Self {
        let (tap, descriptor) = net.create_tap(&spec(text, last)).await.unwrap();
        net.attach(&tap, bridge).await.unwrap();
        Self { tap, mac: mac(last), queue: File::from(descriptor) }
    }

    fn send(&mut self, frame: &[u8]) -> std::io::Result<()> {
        self.queue.write_all(&[&VNET_HEADER, frame].concat())
    }

    /// The next frame with this destination and source, or nothing when the queue holds none. Frames travel through a
    /// bridge within the sender's own call, so what is not there by then does not come.
    fn received(&mut self, is_wanted: impl Fn(&[u8]) -> bool) -> bool {
        let mut buffer = [0; 2048];
        loop {
            match self.queue.read(&mut buffer) {
                Ok(length) if is_wanted(&buffer[VNET_HEADER.len()..length]) => return true,
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return false,
                Err(e) => panic!("{e}"),
            }
        }
    }
}

fn frame(to: Mac, from: Mac) -> Vec<u8> {
    let mut frame = [&to.octets()[..], &from.octets()[..], &[0x88, 0xb5]].concat();
    frame.resize(60, 0);
    frame
}

#[test]
fn a_tap_lives_as_long_as_its_descriptor() {
    in_private_namespace(|| async {
        let net = Net::connect().unwrap();
        let (tap, descriptor): (Tap, OwnedFd) = net.create_tap(&spec("lm00000001n0", 1)).await.unwrap();
        assert_eq!(net.port_state(&tap).await.unwrap(), PortState::Detached);
        let sys = |file| fs::read_to_string(format!("/sys/class/net/lm00000001n0/{file}")).unwrap();
        assert_eq!(sys("address").trim(), "fe:54:00:00:00:01");
        assert_eq!(sys("mtu").trim(), "1500");
        let ipv6 = fs::read_to_string("/proc/sys/net/ipv6/conf/lm00000001n0/disable_ipv6").unwrap();
        assert_eq!(ipv6.trim(), "1");
        assert!(matches!(net.create_tap(&spec("lm00000001n0", 1)).await, Err(NetError::Busy { .. })));

        assert_eq!(net.adopt_tap(tap.name()).await.unwrap(), tap);
        drop(descriptor);
        assert!(matches!(net.adopt_tap(tap.name()).await, Err(NetError::NotFound { .. })));
        net.remove_tap(tap.name()).await.unwrap();
        net.close_port(&tap, mac(1)).await.unwrap();
    });
}

#[test]
fn a_tap_that_is_removed_is_gone_though_somebody_holds_it() {
    in_private_namespace(|| async {
        let net = Net::connect().unwrap();
        let (tap, _descriptor) = net.create_tap(&spec("lm0n0", 1)).await.unwrap();
        net.remove_tap(tap.name()).await.unwrap();
        assert!(matches!(net.adopt_tap(tap.name()).await, Err(NetError::NotFound { .. })));
    });
}

#[test]
fn nothing_leaves_through_a_closed_port_and_everything_through_an_open_one() {
    in_private_namespace(|| async {
        let net = Net::connect().unwrap();
        let bridge = net.create_bridge(&name("br0"), mac(0xff), 1500).await.unwrap();
        let mut uplink = Guest::attached(&net, &bridge, "uplink", 9).await;
        net.open_port(&uplink.tap, uplink.mac).await.unwrap();
        let mut guest = Guest::attached(&net, &bridge, "guest", 1).await;
        let announcement = frames::rarp_request(guest.mac);

        assert_eq!(net.port_state(&guest.tap).await.unwrap(), PortState::Closed);
        assert_eq!(guest.send(&announcement).unwrap_err().raw_os_error(), Some(libc::EIO));
        assert!(!uplink.received(|f| f == announcement));

        net.open_port(&guest.tap, guest.mac).await.unwrap();
        net.open_port(&guest.tap, guest.mac).await.unwrap();
        guest.send(&announcement).unwrap();
        assert!(uplink.received(|f| f == announcement), "the first frame after the opening was lost");
        assert_eq!(net.port_state(&guest.tap).await.unwrap(), PortState::Open);

        net.close_port(&guest.tap, guest.mac).await.unwrap();
        net.close_port(&guest.tap, guest.mac).await.unwrap();
        guest.send(&announcement).unwrap_err();
        assert!(!uplink.received(|f| f == announcement));
    });
}

#[test]
fn an_open_port_keeps_its_guests_traffic_whatever_comes_from_the_uplink() {
    in_private_namespace(|| async {
        let net = Net::connect().unwrap();
        let bridge = net.create_bridge(&name("br0"), mac(0xff), 1500).await.unwrap();
        let mut uplink = Guest::attached(&net, &bridge, "uplink", 9).await;
        let mut neighbour = Guest::attached(&net, &bridge, "neighbour", 2).await;
        let mut guest = Guest::attached(&net, &bridge, "guest", 1).await;
        net.open_port(&uplink.tap, uplink.mac).await.unwrap();
        net.open_port(&neighbour.tap, neighbour.mac).await.unwrap();
        let to_guest = frame(guest.mac, neighbour.mac);

        // Before the handover the guest is elsewhere, and the bridge learns so.
        uplink.send(&frames::rarp_request(guest.mac)).unwrap();
        neighbour.send(&to_guest).unwrap();
        assert!(uplink.received(|f| f == to_guest));

        net.open_port(&guest.tap, guest.mac).await.unwrap();
        uplink.send(&frames::rarp_request(guest.mac)).unwrap();
        neighbour.send(&to_guest).unwrap();
        assert!(guest.received(|f| f == to_guest), "a late frame drew the guest's traffic away");
        assert!(!uplink.received(|f| f == to_guest));

        // And when it leaves again, the bridge believes the uplink.
        net.close_port(&guest.tap, guest.mac).await.unwrap();
        uplink.send(&frames::rarp_request(guest.mac)).unwrap();
        neighbour.send(&to_guest).unwrap();
        assert!(uplink.received(|f| f == to_guest));
    });
}

/// A bridge drops what the host itself sends until the kernel has noticed, on its own time, that a port is up.
async fn until_running(bridge: &Bridge) {
    let (connection, handle, _) = rtnetlink::new_connection().unwrap();
    tokio::spawn(connection);
    loop {
        let mut links = std::pin::pin!(handle.link().get().match_index(bridge.index()).execute());
        let link = links.next().await.unwrap().unwrap();
        if link.header.flags.contains(LinkFlags::Running) {
            return;
        }
    }
}

#[test]
fn an_announcement_reaches_the_uplink_round_by_round_until_it_is_dropped() {
    in_private_namespace(|| async {
        let net = Net::connect().unwrap();
        let bridge = net.create_bridge(&name("br0"), mac(0xff), 1500).await.unwrap();
        let mut uplink = Guest::attached(&net, &bridge, "uplink", 9).await;
        net.open_port(&uplink.tap, uplink.mac).await.unwrap();
        until_running(&bridge).await;
        let addresses = ["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()];
        let expected = frames::announcement(mac(1), &addresses);

        tokio::time::pause();
        let announcement = announce(&bridge, mac(1), &addresses, Schedule::default()).unwrap();
        for frame in &expected {
            assert!(uplink.received(|f| f == frame), "missing in the first round");
        }
        announcement.finished().await.unwrap();
        for round in 2..=Schedule::default().rounds {
            for frame in &expected {
                assert!(uplink.received(|f| f == frame), "missing in round {round}");
            }
        }

        drop(announce(&bridge, mac(2), &[], Schedule::default()).unwrap());
        let announced = |f: &[u8]| f == frames::rarp_request(mac(2));
        assert!(uplink.received(announced));
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(!uplink.received(announced), "an announcement went on after it was dropped");
    });
}

#[test]
fn what_is_not_a_bridge_is_refused_by_name() {
    in_private_namespace(|| async {
        let net = Net::connect().unwrap();
        let missing = net.bridge(&name("br7")).await.unwrap_err();
        assert!(matches!(&missing, NetError::NotFound { name } if name == "br7"), "{missing}");
        assert!(matches!(net.bridge(&name("lo")).await, Err(NetError::NotABridge { .. })));
        assert!(matches!(
            net.create_bridge(&name("lo"), mac(1), 1500).await,
            Err(NetError::NotABridge { .. })
        ));
    });
}

#[test]
fn a_bridge_keeps_its_address_when_taps_come_and_go() {
    in_private_namespace(|| async {
        let net = Net::connect().unwrap();
        let bridge = net.create_bridge(&name("br0"), mac(0xff), 1400).await.unwrap();
        assert_eq!(bridge.mac_is_pinned(), Some(true));
        assert_eq!(bridge.warnings(), []);
        let guest = Guest::attached(&net, &bridge, "guest", 1).await;
        let with_tap = net.create_bridge(&name("br0"), mac(0xfe), 9000).await.unwrap();
        assert_eq!(with_tap, bridge, "a bridge that was there was changed");
        drop(guest);
        assert_eq!(net.bridge(&name("br0")).await.unwrap(), bridge);
    });
}

#[test]
fn a_bridge_whose_address_is_not_pinned_is_warned_of_and_can_be_pinned() {
    in_private_namespace(|| async {
        let net = Net::connect().unwrap();
        let (connection, handle, _) = rtnetlink::new_connection().unwrap();
        tokio::spawn(connection);
        handle.link().add(rtnetlink::LinkBridge::new("br0").build()).execute().await.unwrap();
        let bridge = net.bridge(&name("br0")).await.unwrap();
        assert_eq!(bridge.warnings(), [BridgeWarning::MacNotPinned]);
        net.pin_mac(&bridge).await.unwrap();
        let pinned = net.bridge(&name("br0")).await.unwrap();
        assert_eq!((pinned.mac_is_pinned(), pinned.mac()), (Some(true), bridge.mac()));

        fs::write("/sys/class/net/br0/bridge/stp_state", "1").unwrap();
        let slow = net.bridge(&name("br0")).await.unwrap();
        assert_eq!(slow.warnings(), [BridgeWarning::ForwardDelay { forward_delay_ms: 15_000 }]);
    });
}

#[test]
fn a_path_is_proven_by_an_echo_that_may_not_be_fragmented() {
    in_private_namespace(|| async {
        let net = Net::connect().unwrap();
        // An address of the host's own answers over the loopback, whose MTU bounds the packet.
        let bridge = net.create_bridge(&name("br0"), mac(0xff), 1500).await.unwrap();
        let (connection, handle, _) = rtnetlink::new_connection().unwrap();
        tokio::spawn(connection);
        let lo = rtnetlink::LinkUnspec::new_with_name("lo").up().mtu(1400).build();
        handle.link().change(lo).execute().await.unwrap();
        let address = "192.0.2.1".parse().unwrap();
        handle.address().add(bridge.index(), address, 24).execute().await.unwrap();

        assert_eq!(path_mtu_probe(address, 1400).await.unwrap(), PathMtu::Proven);
        assert_eq!(path_mtu_probe(address, 1401).await.unwrap(), PathMtu::TooLarge);
        assert_eq!(path_mtu_probe("::1".parse().unwrap(), 1400).await.unwrap(), PathMtu::Proven);
        assert_eq!(path_mtu_probe("192.0.2.2".parse().unwrap(), 1400).await.unwrap(), PathMtu::NoAnswer);
    });
}

/// A figure for the reader, not a judgement: how much opening a port adds to a migration's downtime.
#[test]
fn opening_a_port_prints_what_it_costs() {
    in_private_namespace(|| async {
        let net = Net::connect().unwrap();
        let bridge = net.create_bridge(&name("br0"), mac(0xff), 1500).await.unwrap();
        let guest = Guest::attached(&net, &bridge, "guest", 1).await;
        for _ in 0..5 {
            let start = Instant::now();
            net.open_port(&guest.tap, guest.mac).await.unwrap();
            eprintln!("open_port took {:?}", start.elapsed());
            net.close_port(&guest.tap, guest.mac).await.unwrap();
        }
    });
}
