//! A process that outlives whoever watches it.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process, pidfd_open, pidfd_send_signal, waitid,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::log;

/// How often the log of a process is looked at.
const LOG_INTERVAL: Duration = Duration::from_secs(30);

/// A QEMU, running or ended. Clones are the same process: it is held by descriptor, so that its number cannot come to
/// mean another one.
#[derive(Debug, Clone)]
pub struct Process {
    pid: u32,
    pidfd: Arc<OwnedFd>,
    exit: watch::Receiver<Option<Exit>>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// With this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// Somehow: it was started by an earlier agent, and the system tells only a parent.
    Unknown,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Unknown => f.write_str("exit code not known"),
        }
    }
}

/// Takes hold of a process by its number.
pub(crate) fn hold(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// Ends a child that cannot be held or watched, as when this process is out of descriptors, and buries it. Its number
/// is its own until then.
pub(crate) fn end_child(pid: u32) {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    let _ = kill_process(pid, Signal::KILL);
    let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED);
}

/// Whether a process that is held still runs; a zombie does not.
pub(crate) fn is_alive(pidfd: impl AsFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut polled = [PollFd::new(&pidfd, PollFlags::IN)];
    matches!(poll(&mut polled, Some(&at_once)), Ok(0))
}

impl Process {
    /// Watches a process, keeps its log small, and buries it when it ends if it is a child of ours.
    pub(crate) fn watch(pid: u32, pidfd: OwnedFd, log: PathBuf) -> io::Result<Self> {
        // SAFETY: an `OwnedFd` gives the same descriptor each time, and keeps it open until it is dropped.
        let watched = unsafe { AsyncFd::register_with_interest(pidfd.try_clone()?, Interest::READABLE) }?;
        let (ended, exit) = watch::channel(None);
        tokio::spawn(async move {
            let mut intervals = tokio::time::interval(LOG_INTERVAL);
            loop {
                tokio::select! {
                    _ = watched.readable() => break,
                    _ = intervals.tick() => {
                        if let Err(e) = log::bound(&log) {
                            tracing::debug!(log = %log.display(), error = %e, "a log could not be kept small");
                        }
                    }
                }
            }
            let _ = ended.send(Some(bury(watched.get_ref())));
        });
        Ok(Self { pid, pidfd: Arc::new(pidfd), exit })
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it runs still.
    pub fn is_alive(&self) -> bool {
        is_alive(&*self.pidfd)
    }

    /// Waits until it has ended: until its memory, image locks and taps are gone.
    pub async fn exited(&self) -> Exit {
        let mut exit = self.exit.clone();
        let ended = exit.wait_for(Option::is_some).await;
        ended.ok().and_then(|exit| *exit).unwrap_or(Exit::Unknown)
    }

    /// Ends it by force and waits until it has ended. May be repeated. A process that waits for storage which does
    /// not answer ends only when that does.
    ///
    /// # Errors
    /// When the system does not allow it.
    pub async fn kill(&self) -> io::Result<Exit> {
        match pidfd_send_signal(&*self.pidfd, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => Ok(self.exited().await),
            Err(e) => Err(e.into()),
        }
    }
}

fn bury(pidfd: &OwnedFd) -> Exit {
    match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
        Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Exit::Code(code),
            (None, Some(signal)) => Exit::Signal(signal),
            (None, None) => Exit::Unknown,
        },
        _ => Exit::Unknown,
    }
}
