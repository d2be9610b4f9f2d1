//! The client against recorded and invented conversations.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails by panicking")]

use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use limosa_qemu::commands::migration::{Capability, MigrationParameters, MigrationStatus};
use limosa_qemu::commands::run::RunState;
use limosa_qemu::testing::{FakeQemu, HANDSHAKE};
use limosa_qemu::{Error, Event, EventsError, Loss, Qmp};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::net::UnixStream;

const TIMEOUT: Duration = Duration::from_secs(5);

async fn connect(script: &str) -> (Qmp, FakeQemu) {
    let (ours, its) = UnixStream::pair().unwrap();
    let fake = FakeQemu::over(its, format!("{HANDSHAKE}{script}"));
    (Qmp::over(ours, "fake", TIMEOUT).await.unwrap(), fake)
}

async fn failed_handshake(script: &str) -> Error {
    let (ours, its) = UnixStream::pair().unwrap();
    let _fake = FakeQemu::over(its, script);
    Qmp::over(ours, "fake", TIMEOUT).await.unwrap_err()
}

#[tokio::test]
async fn a_connection_begins_with_the_greeting_and_ends_with_the_last_handle() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp");
    let fake = FakeQemu::listen(&path, HANDSHAKE).unwrap();
    let qmp = Qmp::connect(&path, TIMEOUT).await.unwrap();
    assert_eq!(qmp.greeting().version.to_string(), "10.0.2");
    let clone = qmp.clone();
    let mut events = qmp.subscribe();
    drop(qmp);
    assert!(clone.loss().is_none());
    drop(clone);
    fake.finish().await.unwrap();
    assert_eq!(events.next().await, Err(EventsError::Closed));
}

#[tokio::test]
async fn nobody_listening_is_an_error_that_names_the_socket() {
    let directory = tempfile::tempdir().unwrap();
    let error = Qmp::connect(&directory.path().join("qmp"), TIMEOUT).await.unwrap_err();
    assert!(matches!(error, Error::Connect { .. }) && error.to_string().contains("/qmp"), "{error}");
}

#[tokio::test]
async fn replies_reach_their_callers_in_whatever_order_they_come() {
    let (qmp, fake) = connect(
        r#"
        -> {"execute": "query-status"}
        -> {"execute": "query-kvm"}
        -> {"execute": "query-migrate"}
        <- {"event": "RESUME", "timestamp": {"seconds": 1, "microseconds": 2}}
        <- {"return": {"status": "active", "ram": {"transferred": 5, "total": 7, "mbps": 1.5}}, "id": 3}
        <- {"event": "FROM_THE_FUTURE", "data": {"x": 1}}
        <- {"return": {"status": "colo-of-tomorrow", "running": true, "more": 1}, "id": 1}
        <- {"error": {"class": "GenericError", "desc": "no"}, "id": 2}
        "#,
    )
    .await;
    let mut events = qmp.subscribe();
    let (status, kvm, migration) = tokio::join!(qmp.query_status(), qmp.query_kvm(), qmp.query_migrate());
    assert_eq!(status.unwrap().status, RunState::Other("colo-of-tomorrow".into()));
    assert_eq!(kvm.unwrap_err().to_string(), "QEMU refused query-kvm: no (GenericError)");
    let migration = migration.unwrap();
    assert_eq!(migration.status, MigrationStatus::Active);
    assert_eq!(migration.ram.unwrap().transferred_bytes, 5);
    assert_eq!(events.next().await.unwrap().event, Event::Resume);
    assert!(
        matches!(events.next().await.unwrap().event, Event::Other { name, .. } if name == "FROM_THE_FUTURE")
    );
    drop(qmp);
    fake.finish().await.unwrap();
}

#[tokio::test]
async fn a_listener_who_falls_behind_holds_no_reply_up_and_is_told_what_it_missed() {
    let flood = "<- {\"event\": \"STOP\"}\n".repeat(2000);
    let (qmp, _fake) =
        connect(&format!("-> {{\"execute\": \"query-status\"}}\n{flood}<- {{\"return\": {{\"status\": \"paused\", \"running\": false}}}}"))
            .await;
    let mut events = qmp.subscribe();
    assert_eq!(qmp.query_status().await.unwrap().status, RunState::Paused);
    assert_eq!(events.next().await, Err(EventsError::Missed(2000 - 1024)));
    assert_eq!(events.next().await.unwrap().event, Event::Stop);
}

#[tokio::test(start_paused = true)]
async fn each_command_has_its_own_time_and_a_late_reply_harms_nobody() {
    let (qmp, fake) = connect(
        r#"
        -> {"execute": "stop"}
        -> {"execute": "cont"}
        <- {"return": {}, "id": 1}
        <- {"return": {}, "id": 2}
        "#,
    )
    .await;
    let error = qmp.with_timeout(Duration::from_millis(20)).stop().await.unwrap_err();
    assert!(matches!(error, Error::Timeout { command: "stop", after_ms: 20 }), "{error}");
    qmp.cont().await.unwrap();
    drop(qmp);
    fake.finish().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_monitor_that_does_not_greet_is_given_up() {
    let error = failed_handshake("").await;
    assert!(matches!(error, Error::NoGreeting { after_ms: 5000, .. }), "{error}");
}

#[tokio::test]
async fn what_is_not_a_qemu_is_told_so() {
    let reason = |error| match error {
        Error::ConnectionLost { loss, .. } => loss.to_string(),
        other => panic!("{other}"),
    };
    assert!(reason(failed_handshake("<! SSH-2.0-OpenSSH_9.2").await).contains("SSH-2.0"));
    assert!(reason(failed_handshake("<- {\"event\": \"STOP\"}").await).contains("no greeting"));
    assert_eq!(reason(failed_handshake("== close").await), "QEMU closed it");
}

#[tokio::test]
async fn rubbish_ends_the_connection_for_all_who_wait_and_all_who_come_later() {
    for rubbish in
        ["<! {\"retur", "<! \u{0}\u{1}", "<! {}", "<! {\"return\": {}, \"id\": 99}", "<! {\"return\": {}}"]
    {
        let script = format!("-> {{\"execute\": \"stop\"}}\n-> {{\"execute\": \"cont\"}}\n{rubbish}");
        let (qmp, _fake) = connect(&script).await;
        let mut events = qmp.subscribe();
        let (stop, cont) = tokio::join!(qmp.stop(), qmp.cont());
        for outcome in [stop, cont, qmp.quit().await] {
            let Err(Error::ConnectionLost { loss: Loss::Malformed(_), .. }) = outcome else {
                panic!("{rubbish}: {outcome:?}")
            };
        }
        assert_eq!(events.next().await, Err(EventsError::Closed));
        assert_eq!(qmp.subscribe().next().await, Err(EventsError::Closed));
    }
}

#[tokio::test]
async fn the_end_of_qemu_reaches_all_who_wait() {
    let (qmp, _fake) = connect("-> {\"execute\": \"quit\"}\n== close").await;
    let error = qmp.quit().await.unwrap_err();
    assert!(matches!(error, Error::ConnectionLost { loss: Loss::ClosedByQemu, .. }), "{error}");
}

#[tokio::test]
async fn an_answer_of_another_form_fails_its_command_only() {
    let (qmp, fake) = connect(
        r#"
        -> {"execute": "query-status"}
        <- {"return": [1]}
        -> {"execute": "cont"}
        <- {"return": {}}
        "#,
    )
    .await;
    assert!(matches!(qmp.query_status().await, Err(Error::Reply { command: "query-status", .. })));
    qmp.cont().await.unwrap();
    drop(qmp);
    fake.finish().await.unwrap();
}

#[tokio::test]
async fn all_capabilities_are_set_so_that_none_is_left_over() {
    let (qmp, fake) = connect(
        r#"
        -> {"execute": "query-migrate-capabilities"}
        <- {"return": [{"capability": "events", "state": false}, {"capability": "return-path", "state": true}, {"capability": "x-new", "state": true}]}
        -> {"execute": "migrate-set-capabilities", "arguments": {"capabilities": [{"capability": "events", "state": true}, {"capability": "return-path", "state": false}, {"capability": "x-new", "state": false}]}}
        <- {"return": {}}
        -> {"execute": "query-migrate-capabilities"}
        <- {"return": [{"capability": "events", "state": true}]}
        "#,
    )
    .await;
    qmp.migrate_set_capabilities(&[Capability::Events]).await.unwrap();
    let error = qmp.migrate_set_capabilities(&[Capability::Multifd]).await.unwrap_err();
    assert!(matches!(error, Error::NoCapability { .. }), "{error}");
    drop(qmp);
    fake.finish().await.unwrap();
}

#[tokio::test]
async fn only_the_parameters_that_are_given_are_sent() {
    let (qmp, fake) = connect(
        r#"
        -> {"execute": "migrate-set-parameters", "arguments": {"downtime-limit": 300, "cpu-throttle-increment": 5}}
        <- {"return": {}}
        -> {"execute": "migrate-continue", "arguments": {"state": "pre-switchover"}}
        <- {"return": {}}
        -> {"execute": "blockdev-set-active", "arguments": {"active": true}}
        <- {"error": {"class": "CommandNotFound", "desc": "The command blockdev-set-active has not been found"}}
        -> {"execute": "query-balloon"}
        <- {"error": {"class": "DeviceNotActive", "desc": "No balloon device has been activated"}}
        "#,
    )
    .await;
    let parameters = MigrationParameters {
        downtime_limit_ms: Some(300),
        cpu_throttle_increment_percent: Some(5),
        ..MigrationParameters::default()
    };
    qmp.migrate_set_parameters(&parameters).await.unwrap();
    qmp.migrate_continue(&MigrationStatus::PreSwitchover).await.unwrap();
    assert!(qmp.blockdev_set_active(true, None).await.unwrap_err().is_command_not_found());
    assert_eq!(qmp.query_balloon().await.unwrap(), None);
    drop(qmp);
    fake.finish().await.unwrap();
}

#[tokio::test]
async fn a_descriptor_travels_with_its_command() {
    let (ours, its) = std::os::unix::net::UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let monitor = std::thread::spawn(move || monitor_that_is_passed_a_descriptor(its));
    let qmp = Qmp::over(UnixStream::from_std(ours).unwrap(), "fake", TIMEOUT).await.unwrap();
    let (reader, mut writer) = std::io::pipe().unwrap();
    qmp.getfd("pipe", reader.as_fd()).await.unwrap();
    drop(reader);
    writer.write_all(b"x").unwrap();
    let mut byte = [0];
    File::from(monitor.join().unwrap()).read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"x");
}

/// Plays one `getfd` and gives back what was passed.
fn monitor_that_is_passed_a_descriptor(mut stream: std::os::unix::net::UnixStream) -> OwnedFd {
    let greeting = HANDSHAKE.lines().next().unwrap().trim_start_matches("<- ");
    stream.write_all(format!("{greeting}\n{{\"return\": {{}}, \"id\": 0}}\n").as_bytes()).unwrap();
    let mut handshake = String::new();
    while !handshake.ends_with('\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        handshake.push(char::from(byte[0]));
    }

    let mut bytes = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let buffers = &mut [IoSliceMut::new(&mut bytes)];
    let received = recvmsg(&stream, buffers, &mut control, RecvFlags::empty()).unwrap();
    let expected = "{\"execute\":\"getfd\",\"arguments\":{\"fdname\":\"pipe\"},\"id\":1}\n";
    assert_eq!(&bytes[..received.bytes], expected.as_bytes());
    stream.write_all(b"{\"return\": {}, \"id\": 1}\n").unwrap();
    let mut messages = control.drain();
    match messages.next().unwrap() {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next().unwrap(),
        _ => panic!("no descriptor came"),
    }
}
