//! Two worker processes over loopback, with stand-ins for the two QEMUs.

#![allow(clippy::unwrap_used, reason = "a helper that panics fails its test")]

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use common::{Pair, Worker, Wrong, pair, pair_with};
use limosa_worker::control::{Event, LINE_MAX, Reply, Request, Status, WorkerPhase, encode};

fn pattern(length: usize, seed: u32) -> Vec<u8> {
    let mut state = seed;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(next).collect()
}

/// Opens a channel from QEMU to QEMU, and proves that it stands.
fn open(pair: &Pair, incoming: &UnixListener) -> (UnixStream, UnixStream) {
    let mut source = UnixStream::connect(&pair.source_socket).unwrap();
    source.write_all(b"Q").unwrap();
    let (mut destination, _) = incoming.accept().unwrap();
    destination.read_exact(&mut [0]).unwrap();
    (source, destination)
}

#[test]
fn five_channels_carry_every_byte_both_ways_in_the_order_in_which_they_were_opened() {
    let mut pair = pair();
    let incoming = UnixListener::bind(&pair.destination_socket).unwrap();
    let sources: Vec<_> = (0..5).map(|_| UnixStream::connect(&pair.source_socket).unwrap()).collect();
    let destinations: Vec<_> = (0..5).map(|_| incoming.accept().unwrap().0).collect();

    thread::scope(|scope| {
        for (number, (source, destination)) in sources.into_iter().zip(destinations).enumerate() {
            let there = pattern(4_000_000 + number, number as u32);
            let back = pattern(2_000_000 - number, 100 + number as u32);
            for (qemu, out, expected) in [(source, there.clone(), back.clone()), (destination, back, there)] {
                let writer = qemu.try_clone().unwrap();
                scope.spawn(move || {
                    (&writer).write_all(&out).unwrap();
                    writer.shutdown(Shutdown::Write).unwrap();
                });
                scope.spawn(move || {
                    let mut received = Vec::new();
                    (&qemu).read_to_end(&mut received).unwrap();
                    assert!(received == expected, "channel {number}: the bytes differ");
                });
            }
        }
    });
    for worker in [&mut pair.source, &mut pair.destination] {
        worker.agent.event(|event| *event == Event::Ended {});
    }
    let (there, back) = (20_000_010, 9_999_990);
    let Status { phase, channels_closed, tls_connections, bytes_to_peer, bytes_from_peer, error, .. } =
        pair.source.status();
    assert_eq!((phase, error), (WorkerPhase::Ended, None));
    assert_eq!((channels_closed, tls_connections), (5, 5));
    assert_eq!((bytes_to_peer, bytes_from_peer), (there, back));
    let status = pair.destination.status();
    assert_eq!((status.bytes_to_peer, status.bytes_from_peer), (back, there));
}

#[test]
fn a_half_close_ends_one_direction_and_leaves_the_other() {
    let pair = pair();
    let incoming = UnixListener::bind(&pair.destination_socket).unwrap();
    let (source, mut destination) = open(&pair, &incoming);
    source.shutdown(Shutdown::Write).unwrap();
    assert_eq!(destination.read(&mut [0]).unwrap(), 0);
    destination.write_all(b"loaded").unwrap();
    drop(destination);
    let mut received = String::new();
    (&source).read_to_string(&mut received).unwrap();
    assert_eq!(received, "loaded");
}

#[test]
fn a_source_with_another_certificate_is_refused_by_both_ends() {
    let mut pair = pair_with(&Wrong { migration: false, fingerprint: true });
    let mut qemu = UnixStream::connect(&pair.source_socket).unwrap();
    pair.source.agent.event(|event| matches!(event, Event::Failed { .. }));
    assert_eq!(qemu.read(&mut [0]).unwrap(), 0);
    let status = pair.source.status();
    assert_eq!((status.phase, status.tls_connections), (WorkerPhase::Failed, 0));
    let status = pair.destination.status_when(|status| status.connections_refused == 1);
    assert_eq!((status.phase, status.error), (WorkerPhase::Waiting, None));
}

#[test]
fn a_source_of_another_migration_is_refused_with_the_reason() {
    let mut pair = pair_with(&Wrong { migration: true, fingerprint: false });
    let _qemu = UnixStream::connect(&pair.source_socket).unwrap();
    let event = pair.source.agent.event(|event| matches!(event, Event::Failed { .. }));
    let Event::Failed { reason } = event else { unreachable!("just matched") };
    assert!(reason.contains("another migration"), "{reason}");
}

#[test]
fn a_destination_without_its_qemu_says_so_to_the_source() {
    let mut pair = pair();
    let _qemu = UnixStream::connect(&pair.source_socket).unwrap();
    let event = pair.source.agent.event(|event| matches!(event, Event::Failed { .. }));
    let Event::Failed { reason } = event else { unreachable!("just matched") };
    assert!(reason.contains("QEMU"), "{reason}");
}

#[test]
fn rubbish_on_the_port_is_refused_and_the_migration_goes_on() {
    // A ClientHello that offers TLS 1.2 and nothing newer.
    let mut tls12 = b"\x16\x03\x01\x00\x2d\x01\x00\x00\x29\x03\x03".to_vec();
    tls12.extend([7; 32]);
    tls12.extend(b"\x00\x00\x02\xc0\x2f\x01\x00");

    let mut pair = pair();
    let incoming = UnixListener::bind(&pair.destination_socket).unwrap();
    let (mut source, mut destination) = open(&pair, &incoming);
    // More than may be in their handshake at once, and they stay.
    let idle: Vec<_> = (0..70).map(|_| TcpStream::connect(pair.address).unwrap()).collect();
    for rubbish in [&b"QEVM\0\0\0\x03"[..], b"GET / HTTP/1.1\r\n\r\n", &[0xff; 70_000], &tls12] {
        let mut tcp = TcpStream::connect(pair.address).unwrap();
        // The other end may hang up while this is being sent.
        let _ = tcp.write_all(rubbish);
        let mut answer = Vec::new();
        let _ = tcp.read_to_end(&mut answer);
        assert!(answer.len() < 100, "the answer is more than an alert");
    }
    source.write_all(b"on and on").unwrap();
    destination.read_exact(&mut [0; 9]).unwrap();
    open(&pair, &incoming);
    let status = pair.destination.status_when(|status| status.connections_refused >= 4);
    assert_eq!((status.phase, status.error), (WorkerPhase::Relaying, None));
    drop(idle);
}

#[test]
fn a_worker_that_is_killed_is_seen_by_the_other_as_a_loss_and_by_qemu_as_an_end() {
    let mut pair = pair();
    let incoming = UnixListener::bind(&pair.destination_socket).unwrap();
    let (_source, mut destination) = open(&pair, &incoming);
    pair.source.kill();
    assert_eq!(destination.read(&mut [0]).unwrap(), 0);
    pair.destination.agent.event(|event| matches!(event, Event::Failed { .. }));
    assert_eq!(pair.destination.status().phase, WorkerPhase::Failed);
}

#[test]
fn stop_ends_the_worker_and_is_a_loss_to_the_other_side() {
    let mut pair = pair();
    let incoming = UnixListener::bind(&pair.destination_socket).unwrap();
    let (mut source, _destination) = open(&pair, &incoming);
    assert_eq!(pair.destination.agent.ask(&Request::Stop {}), Reply::Stopping {});
    assert!(pair.destination.end().success());
    assert_eq!(source.read(&mut [0]).unwrap(), 0);
    pair.source.agent.event(|event| matches!(event, Event::Failed { .. }));
}

#[test]
fn a_new_agent_replaces_the_old_one_and_the_stream_does_not_notice() {
    let mut pair = pair();
    let incoming = UnixListener::bind(&pair.destination_socket).unwrap();
    let (mut source, mut destination) = open(&pair, &incoming);
    let before = pair.source.status();
    pair.source.reconnect();
    assert_eq!(pair.source.status(), before);
    source.write_all(b"still here").unwrap();
    destination.read_exact(&mut [0; 10]).unwrap();
}

#[test]
fn orders_are_taken_once_and_may_be_repeated() {
    let directory = tempfile::tempdir().unwrap();
    let socket = UnixListener::bind(directory.path().join("qemu")).unwrap();
    let mut worker = Worker::start(directory.path(), "source", socket.into());
    let orders = |port: u16| {
        let (migration, peer) = ("01890000-0000-7000-8000-000000000001", "ab".repeat(32));
        let line = format!(
            r#"{{"start":{{"source":{{"migration":"{migration}","peer":"{peer}","addresses":["127.0.0.1:{port}"]}}}}}}"#
        );
        serde_json::from_str::<Request>(&line).unwrap()
    };
    let first = worker.agent.ask(&orders(1));
    assert!(matches!(first, Reply::Started(_)), "{first:?}");
    assert_eq!(worker.agent.ask(&orders(1)), first);
    assert!(matches!(worker.agent.ask(&orders(2)), Reply::Refused { .. }));
}

#[test]
fn every_thread_of_a_worker_that_serves_has_given_up_its_rights() {
    let mut pair = pair();
    let incoming = UnixListener::bind(&pair.destination_socket).unwrap();
    let _channel = open(&pair, &incoming);
    for worker in [&mut pair.source, &mut pair.destination] {
        assert!(worker.status().sandbox.is_some());
        let tasks = std::fs::read_dir(format!("/proc/{}/task", worker.pid())).unwrap();
        let mut threads = 0;
        // The process's first thread is the test harness's, which only waits; `limosa worker` has no such thread.
        let harness = worker.pid().to_string();
        for task in tasks.map(Result::unwrap).filter(|task| *task.file_name() != *harness) {
            let status = std::fs::read_to_string(task.path().join("status")).unwrap();
            for line in
                ["NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t0000000000000000", "CapPrm:\t0000000000000000"]
            {
                assert!(status.contains(line), "no {line:?} in {status}");
            }
            threads += 1;
        }
        assert!(threads >= 2, "a channel has a thread of its own");
    }
}

#[test]
fn what_is_no_request_is_refused_and_an_endless_line_ends_the_connection() {
    let directory = tempfile::tempdir().unwrap();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut worker = Worker::start(directory.path(), "destination", socket.into());
    worker.agent.send(b"{\"begin\":{}}\n");
    assert!(matches!(worker.agent.reply(), Reply::Refused { .. }));
    assert_eq!(worker.status().phase, WorkerPhase::Idle);
    worker.agent.send(&vec![b' '; LINE_MAX + 1]);
    assert_eq!(worker.agent.next(), None);
    worker.reconnect();
    assert_eq!(worker.status().phase, WorkerPhase::Idle);
}

#[test]
fn a_worker_that_nobody_starts_ends_by_itself() {
    let directory = tempfile::tempdir().unwrap();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut worker =
        Worker::start_with(directory.path(), "destination", socket.into(), " --start-limit-ms 50");
    // Reconnecting to nobody: the last agent goes.
    worker.agent.send(&encode(&Request::Status {}));
    worker.agent = {
        let (stand_in, _) = UnixStream::pair().unwrap();
        common::Agent::of(stand_in)
    };
    assert!(worker.end().success());
}
