//! Reaching the monitor of a QEMU that is starting, or that has been running for long.

use std::io;
use std::time::Duration;

use limosa_model::VmId;
use limosa_qemu::Qmp;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::{Exit, Process, RuntimeDir, VmError};

/// How long a QEMU may take from its start to its greeting.
pub(crate) const START_LIMIT: Duration = Duration::from_secs(30);
/// How long one that has been running may take to greet.
pub(crate) const ADOPT_LIMIT: Duration = Duration::from_secs(2);
/// How long a command may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(10);
/// Between two looks for a socket. Binding and listening are two steps, and no event tells of the second.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// How long a QEMU that has dropped its connection may take to end.
const END_LIMIT: Duration = Duration::from_secs(2);
/// How much of a log an error repeats.
const LOG_EXCERPT_BYTES: u64 = 2000;

/// Connects to a QEMU's monitor, and makes sure that it is that QEMU's. Waits for one that has not made it yet.
pub(crate) async fn connect(
    vm: VmId,
    process: &Process,
    dir: &RuntimeDir,
    limit: Duration,
) -> Result<Qmp, VmError> {
    let deadline = Instant::now() + limit;
    let connected = async {
        let path = dir.qmp_socket();
        let stream = loop {
            match UnixStream::connect(&path).await {
                Ok(stream) => break stream,
                Err(e) if is_not_yet(&e) => sleep(LOOK_INTERVAL).await,
                Err(e) => {
                    return Err(VmError::system(format!("connect to QEMU's monitor {}", path.display()), e));
                }
            }
        };
        check_peer(&stream, process, dir)?;
        Qmp::over(stream, &path.display().to_string(), limit)
            .await
            .map(|qmp| qmp.with_timeout(COMMAND_LIMIT))
            .map_err(|source| VmError::Qemu { vm, source })
    };
    let unresponsive =
        || VmError::Unresponsive { vm, what: "answer on its monitor", limit_ms: limit.as_millis() as u64 };
    let connected = async { timeout_at(deadline, connected).await.unwrap_or_else(|_| Err(unresponsive())) };
    tokio::select! {
        exit = process.exited() => Err(exited(vm, exit, dir)),
        connected = connected => match connected {
            // The handshake has the same limit as all of it, and may be the first to notice.
            Err(VmError::Qemu { source: limosa_qemu::Error::NoGreeting { .. }, .. }) => Err(unresponsive()),
            Err(VmError::Qemu { source, .. }) if source.is_connection_lost() => {
                Err(lost(vm, source, process, dir).await)
            }
            connected => connected,
        },
    }
}

/// The error for a command that failed: why QEMU ended, if it did.
pub(crate) async fn lost(
    vm: VmId,
    source: limosa_qemu::Error,
    process: &Process,
    dir: &RuntimeDir,
) -> VmError {
    if source.is_connection_lost()
        && let Ok(exit) = timeout(END_LIMIT, process.exited()).await
    {
        return exited(vm, exit, dir);
    }
    VmError::Qemu { vm, source }
}

fn exited(vm: VmId, exit: Exit, dir: &RuntimeDir) -> VmError {
    VmError::QemuExited { vm, exit, log: dir.log_tail(LOG_EXCERPT_BYTES) }
}

/// Whether a QEMU that starts, or that is busy with another client's end, may still come to listen.
fn is_not_yet(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, NotFound, WouldBlock};
    matches!(error.kind(), ConnectionRefused | NotFound | WouldBlock)
}

/// QEMU's user owns the directory: a QEMU that a guest has taken over could put any other socket in the place of its
/// own, and have the agent talk to that.
fn check_peer(stream: &UnixStream, process: &Process, dir: &RuntimeDir) -> Result<(), VmError> {
    let peer = stream
        .peer_cred()
        .map_err(|e| VmError::system(format!("ask who listens on {}", dir.qmp_socket().display()), e))?;
    let expected = process.pid();
    if peer.pid().and_then(|pid| u32::try_from(pid).ok()) == Some(expected) {
        return Ok(());
    }
    let found = peer.pid().map_or_else(|| "unknown".to_owned(), |pid| pid.to_string());
    Err(VmError::WrongPeer { path: dir.qmp_socket(), expected, found })
}
