//! What a process in the sandbox can still do. Each attempt is a process of its own: this binary, told to run
//! nothing but [`the_process_in_the_sandbox`].

#![allow(clippy::unwrap_used, reason = "a helper that panics fails its test")]

use std::fs::File;
use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use limosa_worker::sandbox::{Landlock, Policy, enter};

const ATTEMPT: &str = "LIMOSA_TEST_ATTEMPT";
const ALLOWED_PORT: &str = "LIMOSA_TEST_ALLOWED_PORT";

/// What is tried, and what must come of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Denied,
    Killed,
    Done,
}

#[test]
#[ignore = "the process that the other tests start"]
fn the_process_in_the_sandbox() {
    let attempt = std::env::var(ATTEMPT).expect("only the other tests start this");
    let port: u16 = std::env::var(ALLOWED_PORT).unwrap().parse().unwrap();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("qemu");
    let _listener = UnixListener::bind(&socket).unwrap();
    let policy = if attempt.starts_with("destination") {
        Policy::Destination { qemu_socket: socket.clone() }
    } else {
        Policy::Source { ports: vec![port] }
    };
    let sandbox = enter(&policy, 8 << 30).unwrap();

    let denied = match attempt.as_str() {
        "read a file" => File::open("/etc/passwd").map(drop),
        "write a file" => File::options().append(true).open("/etc/passwd").map(drop),
        "connect to the destination" => TcpStream::connect(("127.0.0.1", port)).map(drop),
        "connect elsewhere" if sandbox.landlock == Landlock::None => Err(ErrorKind::PermissionDenied.into()),
        "connect elsewhere" => TcpStream::connect(other.local_addr().unwrap()).map(drop),
        "destination connects to QEMU" => UnixStream::connect(&socket).map(drop),
        "destination connects by TCP" => TcpStream::connect(("127.0.0.1", port)).map(drop),
        "start a thread" => std::thread::spawn(|| vec![1_u8; 10 << 20].len())
            .join()
            .map(drop)
            .map_err(|_| ErrorKind::Other.into()),
        "run a program" => Err(std::os::unix::process::CommandExt::exec(&mut Command::new("/bin/true"))),
        "start a process" => Command::new("/bin/true").status().map(drop),
        "make memory executable" => {
            use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
            let protection = ProtFlags::READ | ProtFlags::WRITE | ProtFlags::EXEC;
            // SAFETY: the kernel picks an address where nothing is, and nothing uses the mapping.
            let mapped = unsafe { mmap_anonymous(std::ptr::null_mut(), 4096, protection, MapFlags::PRIVATE) };
            mapped.map(drop).map_err(Into::into)
        }
        "look into its parent" => {
            let parent = rustix::process::getppid();
            parent
                .map(|parent| rustix::process::test_kill_process(parent).unwrap())
                .ok_or(ErrorKind::Other.into())
        }
        other => panic!("no such attempt: {other}"),
    };
    if let Err(error) = denied {
        panic!("denied: {error}");
    }
}

fn attempt(what: &str) -> Outcome {
    let destination = TcpListener::bind("127.0.0.1:0").unwrap();
    let status: ExitStatus = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "the_process_in_the_sandbox", "--nocapture", "--test-threads=1"])
        .env(ATTEMPT, what)
        .env(ALLOWED_PORT, destination.local_addr().unwrap().port().to_string())
        .env("RUST_BACKTRACE", "0")
        .stdout(Stdio::null())
        .status()
        .unwrap();
    match status.signal() {
        Some(libc::SIGSYS) => Outcome::Killed,
        Some(signal) => panic!("{what}: signal {signal}"),
        None if status.success() => Outcome::Done,
        None => Outcome::Denied,
    }
}

#[test]
fn files_are_denied() {
    assert!(Path::new("/etc/passwd").exists());
    assert_eq!(attempt("read a file"), Outcome::Denied);
    assert_eq!(attempt("write a file"), Outcome::Denied);
}

#[test]
fn programs_processes_and_code_kill() {
    assert_eq!(attempt("run a program"), Outcome::Killed);
    assert_ne!(attempt("start a process"), Outcome::Done);
    assert_eq!(attempt("make memory executable"), Outcome::Killed);
    assert_eq!(attempt("look into its parent"), Outcome::Killed);
}

#[test]
fn each_end_connects_to_its_neighbour_and_to_nothing_else() {
    assert_eq!(attempt("connect to the destination"), Outcome::Done);
    assert_eq!(attempt("connect elsewhere"), Outcome::Denied);
    assert_eq!(attempt("destination connects to QEMU"), Outcome::Done);
    assert_eq!(attempt("destination connects by TCP"), Outcome::Killed);
}

#[test]
fn what_a_worker_needs_still_works() {
    assert_eq!(attempt("start a thread"), Outcome::Done);
}
