//! Two real QEMUs, one migration between them, through two worker processes.

#![allow(clippy::unwrap_used, reason = "a helper that panics fails its test")]

mod common;

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::pair;
use limosa_worker::control::{Event, WorkerPhase};
use serde_json::{Value, json};

const QEMU: &str = "qemu-system-x86_64";

/// One QEMU without a guest: its firmware runs, and that is memory enough.
struct Qemu {
    child: Child,
    qmp: BufReader<UnixStream>,
    events: VecDeque<Value>,
}

impl Qemu {
    fn start(directory: &Path, name: &str, more: &[&str]) -> Self {
        // QEMU connects to us: so nothing has to wait for its socket to appear.
        let socket = directory.join(format!("{name}.qmp"));
        let listener = UnixListener::bind(&socket).unwrap();
        let child = Command::new(QEMU)
            .args(["-M", "q35", "-nodefaults", "-display", "none", "-accel", "tcg", "-m", "64"])
            .args(["-qmp", &format!("unix:{}", socket.display())])
            .args(more)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let (qmp, _) = listener.accept().unwrap();
        let mut qemu = Self { child, qmp: BufReader::new(qmp), events: VecDeque::new() };
        assert!(qemu.line()["QMP"].is_object());
        qemu.run("qmp_capabilities", json!({}));
        qemu
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        assert!(self.qmp.read_line(&mut line).unwrap() > 0, "QEMU is gone");
        serde_json::from_str(&line).unwrap()
    }

    fn run(&mut self, command: &str, arguments: Value) -> Value {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.qmp.get_mut().write_all(line.as_bytes()).unwrap();
        loop {
            let mut answer = self.line();
            if answer["event"].is_string() {
                self.events.push_back(answer);
            } else {
                assert!(answer["error"].is_null(), "{command}: {answer}");
                return answer["return"].take();
            }
        }
    }

    fn prepare(&mut self) {
        let on =
            ["events", "multifd", "return-path"].map(|name| json!({ "capability": name, "state": true }));
        self.run("migrate-set-capabilities", json!({ "capabilities": on }));
        self.run("migrate-set-parameters", json!({ "multifd-channels": 2 }));
    }

    /// Reads events until the migration is over, and returns how it ended.
    fn outcome(&mut self) -> String {
        loop {
            let event = self.events.pop_front().unwrap_or_else(|| self.line());
            let status = event["data"]["status"].as_str().unwrap_or_default();
            if event["event"] == "MIGRATION" && ["completed", "failed"].contains(&status) {
                return status.to_owned();
            }
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn qemu_migrates_through_two_workers_with_multifd_and_a_return_path() {
    if Command::new(QEMU).arg("--version").stdout(Stdio::null()).status().is_err() {
        assert!(std::env::var_os("CI").is_none(), "{QEMU} is missing");
        eprintln!("SKIPPED: {QEMU} is not installed (Debian: apt install qemu-system-x86)");
        return;
    }
    let mut pair = pair();
    let mut source = Qemu::start(pair.directory.path(), "source", &[]);
    let mut destination = Qemu::start(pair.directory.path(), "destination", &["-incoming", "defer"]);
    source.prepare();
    destination.prepare();
    destination
        .run("migrate-incoming", json!({ "uri": format!("unix:{}", pair.destination_socket.display()) }));
    source.run("migrate", json!({ "uri": format!("unix:{}", pair.source_socket.display()) }));

    assert_eq!((source.outcome(), destination.outcome()), ("completed".into(), "completed".into()));
    let sent = source.run("query-migrate", json!({}));
    for worker in [&mut pair.source, &mut pair.destination] {
        worker.agent.event(|event| *event == Event::Ended {});
    }
    let (there, back) = (pair.source.status(), pair.destination.status());
    assert_eq!((there.phase, there.error), (WorkerPhase::Ended, None));
    assert_eq!((back.phase, back.error), (WorkerPhase::Ended, None));
    assert_eq!((there.tls_connections, back.tls_connections), (3, 3));
    assert_eq!((there.bytes_to_peer, there.bytes_from_peer), (back.bytes_from_peer, back.bytes_to_peer));
    // All that QEMU says it has sent went through here, and the return path is not empty.
    let ram = &sent["ram"];
    assert!(
        there.bytes_to_peer >= ram["transferred"].as_u64().unwrap() / 2,
        "{ram} and {}",
        there.bytes_to_peer
    );
    assert!(there.bytes_from_peer > 0);
}
