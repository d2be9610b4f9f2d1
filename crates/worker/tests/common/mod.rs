//! Workers as the agent starts them: processes of their own, with inherited descriptors, in their sandbox.
//!
//! The process is this test binary itself, told to run nothing but [`the_worker_itself`].

#![allow(dead_code, reason = "each test binary uses a part")]

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use limosa_model::MigrationId;
use limosa_transport::{Fingerprint, TcpOptions};
use limosa_worker::control::{Event, Message, Reply, Request, Role, Start, Status, encode};

const ARGUMENTS: &str = "LIMOSA_TEST_WORKER_ARGUMENTS";

#[test]
#[ignore = "the process that the other tests start"]
fn the_worker_itself() {
    let arguments = std::env::var(ARGUMENTS).expect("only the other tests start this");
    limosa_worker::main(arguments.split(' ').map(Into::into)).unwrap();
}

/// A worker that runs, and an agent's connection to it.
pub(crate) struct Worker {
    child: Child,
    control_socket: PathBuf,
    pub(crate) agent: Agent,
    pub(crate) fingerprint: Fingerprint,
}

impl Worker {
    /// A worker that takes its stream from `listen`.
    pub(crate) fn start(directory: &Path, name: &str, listen: OwnedFd) -> Self {
        Self::start_with(directory, name, listen, "")
    }

    pub(crate) fn start_with(directory: &Path, name: &str, listen: OwnedFd, more: &str) -> Self {
        let control_socket = directory.join(format!("{name}.control"));
        let control = UnixListener::bind(&control_socket).unwrap();
        for descriptor in [control.as_raw_fd(), listen.as_raw_fd()] {
            // SAFETY: both are open and ours; the flag only lets them pass to the child.
            assert_eq!(unsafe { libc::fcntl(descriptor, libc::F_SETFD, 0) }, 0);
        }
        let arguments =
            format!("--control-fd {} --listen-fd {}{more}", control.as_raw_fd(), listen.as_raw_fd());
        // In each test binary this module has the same name.
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "common::the_worker_itself", "--nocapture", "--test-threads=1"])
            .env(ARGUMENTS, arguments)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        drop((control, listen));
        let mut agent = Agent::connect(&control_socket);
        let Reply::Hello { fingerprint, .. } = agent.ask(&Request::Hello {}) else { panic!("no hello") };
        Self { child, control_socket, agent, fingerprint }
    }

    /// Another agent's connection, which ends the first.
    pub(crate) fn reconnect(&mut self) {
        self.agent = Agent::connect(&self.control_socket);
    }

    pub(crate) fn orders(&mut self, orders: Start) -> limosa_worker::control::Sandbox {
        match self.agent.ask(&Request::Start(orders)) {
            Reply::Started(sandbox) => sandbox,
            other => panic!("not started: {other:?}"),
        }
    }

    pub(crate) fn watch(&mut self) {
        assert!(matches!(self.agent.ask(&Request::Watch {}), Reply::Watching(_)));
    }

    pub(crate) fn status(&mut self) -> Status {
        match self.agent.ask(&Request::Status {}) {
            Reply::Status(status) => status,
            other => panic!("no status: {other:?}"),
        }
    }

    /// Asks until the status is the wanted one, which it soon must be.
    pub(crate) fn status_when(&mut self, wanted: impl Fn(&Status) -> bool) -> Status {
        let mut asked = (0..200_000).map(|_| self.status());
        asked.find(wanted).expect("the wanted status never came")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for the process to end by itself.
    pub(crate) fn end(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An agent's end of the control socket.
pub(crate) struct Agent {
    lines: BufReader<UnixStream>,
    events: std::collections::VecDeque<Event>,
}

impl Agent {
    fn connect(socket: &Path) -> Self {
        Self::of(UnixStream::connect(socket).unwrap())
    }

    /// An agent that speaks over this connection.
    pub(crate) fn of(stream: UnixStream) -> Self {
        Self { lines: BufReader::new(stream), events: Default::default() }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.lines.get_mut().write_all(bytes).unwrap();
    }

    /// The next line, or nothing at the connection's end.
    pub(crate) fn next(&mut self) -> Option<Message> {
        let mut line = String::new();
        match self.lines.read_line(&mut line) {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(serde_json::from_str(&line).unwrap()),
        }
    }

    pub(crate) fn ask(&mut self, request: &Request) -> Reply {
        self.send(&encode(request));
        self.reply()
    }

    pub(crate) fn reply(&mut self) -> Reply {
        loop {
            match self.next().expect("the worker has hung up") {
                Message::Reply(reply) => return reply,
                Message::Event(event) => self.events.push_back(event),
            }
        }
    }

    /// Reads events until one is wanted, and returns that.
    pub(crate) fn event(&mut self, wanted: impl Fn(&Event) -> bool) -> Event {
        loop {
            let event = self.events.pop_front().unwrap_or_else(|| match self.next() {
                Some(Message::Event(event)) => event,
                other => panic!("no event: {other:?}"),
            });
            if wanted(&event) {
                return event;
            }
        }
    }
}

/// The two workers of a migration, started and told of each other.
pub(crate) struct Pair {
    pub(crate) source: Worker,
    pub(crate) destination: Worker,
    /// Where the source's QEMU connects.
    pub(crate) source_socket: PathBuf,
    /// Where the destination's QEMU listens.
    pub(crate) destination_socket: PathBuf,
    /// Where the destination's worker listens.
    pub(crate) address: SocketAddr,
    pub(crate) directory: tempfile::TempDir,
}

/// How a pair may differ from a good one.
pub(crate) struct Wrong {
    pub(crate) migration: bool,
    pub(crate) fingerprint: bool,
}

pub(crate) fn pair() -> Pair {
    pair_with(&Wrong { migration: false, fingerprint: false })
}

pub(crate) fn pair_with(wrong: &Wrong) -> Pair {
    let directory = tempfile::tempdir().unwrap();
    let source_socket = directory.path().join("source.qemu");
    let destination_socket = directory.path().join("destination.qemu");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut source =
        Worker::start(directory.path(), "source", UnixListener::bind(&source_socket).unwrap().into());
    let mut destination = Worker::start(directory.path(), "destination", listener.into());

    let migration = MigrationId::new();
    destination.orders(Start::Destination {
        migration: if wrong.migration { MigrationId::new() } else { migration },
        peer: if wrong.fingerprint { destination.fingerprint } else { source.fingerprint },
        qemu_socket: destination_socket.clone(),
        tcp: TcpOptions::default(),
    });
    source.orders(Start::Source {
        migration,
        peer: destination.fingerprint,
        addresses: vec![address],
        tcp: TcpOptions::default(),
    });
    assert_eq!((source.status().role, destination.status().role), (Role::Source, Role::Destination));
    source.watch();
    destination.watch();
    Pair { source, destination, source_socket, destination_socket, address, directory }
}
