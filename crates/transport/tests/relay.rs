//! Two relays over loopback, with stand-ins for the two QEMUs on Unix sockets.

#![allow(clippy::unwrap_used, reason = "a helper that panics fails its test")]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use limosa_transport::{
    Acceptor, Answer, Connection, Count, Credential, Dialer, Error, Side, TcpOptions, relay,
};

const MIGRATION: [u8; 16] = [7; 16];

/// Both ends of a migration that know each other, and the socket on which the destination is reached.
struct Hosts {
    dialer: Dialer,
    acceptor: Acceptor,
    listener: TcpListener,
}

fn hosts(migration_of_source: [u8; 16]) -> Hosts {
    let [source, destination] = [(); 2].map(|()| Credential::generate().unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // An address that refuses comes first: the next one is tried.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let addresses = vec![closed, listener.local_addr().unwrap()];
    let options = TcpOptions::default();
    Hosts {
        dialer: Dialer::new(
            &source,
            destination.fingerprint(),
            migration_of_source,
            addresses,
            options.clone(),
        )
        .unwrap(),
        acceptor: Acceptor::new(&destination, source.fingerprint(), MIGRATION, options).unwrap(),
        listener,
    }
}

fn connections() -> (Connection, Connection) {
    let Hosts { dialer, acceptor, listener } = hosts(MIGRATION);
    thread::scope(|scope| {
        let accepting =
            scope.spawn(|| acceptor.accept(listener.accept().unwrap().0).unwrap().accept().unwrap());
        (dialer.connect(3).unwrap(), accepting.join().unwrap())
    })
}

struct Channel {
    source_qemu: UnixStream,
    destination_qemu: UnixStream,
    source: JoinHandle<Result<(), Error>>,
    destination: JoinHandle<Result<(), Error>>,
    source_count: Arc<Count>,
    destination_count: Arc<Count>,
}

fn channel() -> Channel {
    let (source_peer, destination_peer) = connections();
    let start = |peer| {
        let (qemu, local) = UnixStream::pair().unwrap();
        let count = Arc::new(Count::default());
        let shared = count.clone();
        (qemu, thread::spawn(move || relay(local, peer, &shared)), count)
    };
    let (source_qemu, source, source_count) = start(source_peer);
    let (destination_qemu, destination, destination_count) = start(destination_peer);
    Channel { source_qemu, destination_qemu, source, destination, source_count, destination_count }
}

fn pattern(length: usize, seed: u32) -> Vec<u8> {
    let mut state = seed;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(next).collect()
}

#[test]
fn both_directions_arrive_byte_for_byte_at_once() {
    let channel = channel();
    let (there, back) = (pattern(9_000_001, 1), pattern(5_000_003, 2));
    thread::scope(|scope| {
        for (qemu, out, expected) in
            [(&channel.source_qemu, &there, &back), (&channel.destination_qemu, &back, &there)]
        {
            scope.spawn(move || {
                (&mut &*qemu).write_all(out).unwrap();
                qemu.shutdown(Shutdown::Write).unwrap();
            });
            scope.spawn(move || {
                let mut received = Vec::new();
                (&mut &*qemu).read_to_end(&mut received).unwrap();
                assert!(received == *expected, "the bytes differ");
            });
        }
    });
    channel.source.join().unwrap().unwrap();
    channel.destination.join().unwrap().unwrap();
    assert_eq!(channel.source_count.to_peer(), there.len() as u64);
    assert_eq!(channel.source_count.from_peer(), back.len() as u64);
    assert_eq!(channel.destination_count.to_peer(), back.len() as u64);
    assert_eq!(channel.destination_count.from_peer(), there.len() as u64);
}

#[test]
fn a_half_close_ends_one_direction_and_leaves_the_other() {
    let mut channel = channel();
    channel.source_qemu.write_all(b"all").unwrap();
    channel.source_qemu.shutdown(Shutdown::Write).unwrap();
    let mut received = String::new();
    channel.destination_qemu.read_to_string(&mut received).unwrap();
    assert_eq!(received, "all");

    let answer = pattern(1_000_000, 3);
    thread::scope(|scope| {
        scope.spawn(|| {
            (&channel.destination_qemu).write_all(&answer).unwrap();
            channel.destination_qemu.shutdown(Shutdown::Write).unwrap();
        });
        let mut received = Vec::new();
        (&channel.source_qemu).read_to_end(&mut received).unwrap();
        assert!(received == answer, "the bytes differ");
    });
    channel.source.join().unwrap().unwrap();
    channel.destination.join().unwrap().unwrap();
}

#[test]
fn a_reader_that_stands_still_stops_only_its_own_direction() {
    let channel = channel();
    // Nobody reads at the destination, so this direction fills until it takes no more.
    channel.source_qemu.set_nonblocking(true).unwrap();
    let chunk = pattern(64 * 1024, 4);
    let back = pattern(3_000_000, 5);
    thread::scope(|scope| {
        scope.spawn(|| (&channel.destination_qemu).write_all(&back).unwrap());
        let mut received = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        while received.len() < back.len() {
            // Pushes as hard as it can while the other direction is read.
            let _ = (&channel.source_qemu).write(&chunk);
            match (&channel.source_qemu).read(&mut buffer) {
                Ok(count) => received.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        }
        assert!(received == back, "the bytes differ");
    });
    drop(channel.source_qemu);
    drop(channel.destination_qemu);
    assert!(channel.destination.join().unwrap().is_err(), "undelivered bytes count as an end");
    let _ = channel.source.join().unwrap();
}

#[test]
fn tcp_that_ends_without_a_goodbye_is_a_loss_and_ends_qemus_stream() {
    let (source_peer, destination_peer) = connections();
    let (mut qemu, local) = UnixStream::pair().unwrap();
    let relaying = thread::spawn(move || relay(local, destination_peer, &Count::default()));
    drop(source_peer);
    assert_eq!(qemu.read(&mut [0]).unwrap(), 0);
    let error = relaying.join().unwrap().unwrap_err();
    assert!(matches!(error, Error::Lost { side: Side::Peer, .. }), "{error}");
}

#[test]
fn a_qemu_that_dies_is_seen_by_the_other_side() {
    let mut channel = channel();
    drop(channel.destination_qemu);
    let chunk = [0; 64 * 1024];
    while channel.source_qemu.write_all(&chunk).is_ok() {}
    let error = channel.destination.join().unwrap().unwrap_err();
    assert!(matches!(error, Error::Lost { side: Side::Local, .. }), "{error}");
    let error = channel.source.join().unwrap().unwrap_err();
    assert!(matches!(error, Error::Lost { side: Side::Peer, .. }), "{error}");
}

#[test]
fn a_hello_of_another_migration_is_refused_with_the_reason() {
    let Hosts { dialer, acceptor, listener } = hosts([8; 16]);
    thread::scope(|scope| {
        scope.spawn(|| assert!(acceptor.accept(listener.accept().unwrap().0).is_err()));
        let error = dialer.connect(0).unwrap_err();
        assert!(matches!(error, Error::Refused(Answer::OtherMigration)), "{error}");
    });
}

#[test]
fn another_certificate_is_refused_and_both_ends_know_why() {
    let [source, destination, other] = [(); 3].map(|()| Credential::generate().unwrap());
    let options = TcpOptions::default();
    for (pinned_by_source, pinned_by_destination) in [(&other, &source), (&destination, &other)] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addresses = vec![listener.local_addr().unwrap()];
        let dialer =
            Dialer::new(&source, pinned_by_source.fingerprint(), MIGRATION, addresses, options.clone())
                .unwrap();
        let acceptor =
            Acceptor::new(&destination, pinned_by_destination.fingerprint(), MIGRATION, options.clone())
                .unwrap();
        thread::scope(|scope| {
            let accepting = scope.spawn(|| acceptor.accept(listener.accept().unwrap().0).err().unwrap());
            let error = dialer.connect(0).unwrap_err();
            assert!(matches!(error, Error::Tls { .. }), "{error}");
            let error = accepting.join().unwrap();
            assert!(matches!(error, Error::Tls { .. }), "{error}");
        });
    }
}

#[test]
fn a_refusal_by_the_destination_reaches_the_source() {
    let Hosts { dialer, acceptor, listener } = hosts(MIGRATION);
    thread::scope(|scope| {
        scope.spawn(|| {
            let incoming =
                acceptor.accept(listener.accept().unwrap().0).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(incoming.channel(), 256);
            incoming.refuse(Answer::QemuUnreachable);
        });
        let error = dialer.connect(256).unwrap_err();
        assert!(matches!(error, Error::Refused(Answer::QemuUnreachable)), "{error}");
    });
}

#[test]
fn a_channel_number_beyond_the_limit_is_refused() {
    let Hosts { dialer, acceptor, listener } = hosts(MIGRATION);
    thread::scope(|scope| {
        scope.spawn(|| assert!(acceptor.accept(listener.accept().unwrap().0).is_err()));
        let error = dialer.connect(limosa_transport::CHANNELS_MAX).unwrap_err();
        assert!(matches!(error, Error::Refused(Answer::NoSuchChannel)), "{error}");
    });
}

#[test]
fn bytes_that_are_not_tls_are_refused() {
    for rubbish in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], b"QEVM\0\0\0\x03", b"\x16\x03\x01\xff\xff\x01"]
    {
        let Hosts { acceptor, listener, .. } = hosts(MIGRATION);
        let mut tcp = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        tcp.write_all(rubbish).unwrap();
        tcp.shutdown(Shutdown::Write).unwrap();
        let error = acceptor.accept(listener.accept().unwrap().0).err().expect("rubbish was taken");
        assert!(matches!(error, Error::Tls { .. } | Error::Lost { .. }), "{error}");
    }
}

#[test]
fn without_a_reachable_address_the_error_names_each() {
    let [source, destination] = [(); 2].map(|()| Credential::generate().unwrap());
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let dialer =
        Dialer::new(&source, destination.fingerprint(), MIGRATION, vec![closed], TcpOptions::default())
            .unwrap();
    let error = dialer.connect(0).unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains(&closed.to_string()), "{error}");
}
