//! A process of the lab: started detached, found again by pid and start time, signalled through a pidfd.
//!
//! A pid alone may be another process by now; the pid together with the time at which it started may not.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::names::Room;

/// How long a killed process may take to go.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// What the lab remembers of a process that it started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRecord {
    /// Its process id.
    pub pid: i32,
    /// When it started, in clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub start_time_ticks: u64,
    /// Where it runs.
    pub room: Room,
    /// What it is called in the lab.
    pub label: String,
    /// Where its standard output and error go.
    pub log: PathBuf,
}

/// A process of the lab. Dropping it does nothing to the process.
#[derive(Debug)]
pub struct Process {
    record: ProcessRecord,
    pidfd: OwnedFd,
}

impl Process {
    /// Finds the process of a record; none if it has ended.
    ///
    /// # Errors
    /// When the system refuses to say.
    pub fn find(record: ProcessRecord) -> Result<Option<Self>> {
        let Some(pidfd) = open_pidfd(record.pid)? else { return Ok(None) };
        // Read after the pidfd was opened: if it fits, the pidfd is of this process.
        Ok((start_time_ticks(record.pid) == Some(record.start_time_ticks)).then_some(Self { record, pidfd }))
    }

    /// What the lab remembers of it.
    pub fn record(&self) -> &ProcessRecord {
        &self.record
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.record.pid
    }

    /// Where its standard output and error go.
    pub fn log(&self) -> &Path {
        &self.record.log
    }

    /// Whether it still runs (or stands still: a stopped process is alive, a zombie is not).
    ///
    /// # Errors
    /// When the system refuses to say.
    pub fn is_alive(&self) -> Result<bool> {
        Ok(!self.exited_within(Duration::ZERO)?)
    }

    /// Ends it at once, with SIGKILL, and waits until it is gone.
    ///
    /// # Errors
    /// When it does not go.
    pub fn kill(&self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.wait_exit(KILL_LIMIT)
    }

    /// Asks it to end, with SIGTERM.
    ///
    /// # Errors
    /// When it may not be signalled.
    pub fn terminate(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// Makes it stand still, with SIGSTOP.
    ///
    /// # Errors
    /// When it may not be signalled.
    pub fn stop(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on after [`Self::stop`].
    ///
    /// # Errors
    /// When it may not be signalled.
    pub fn cont(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// [`Error::TimedOut`] when it has not by then.
    pub fn wait_exit(&self, limit: Duration) -> Result<()> {
        if self.exited_within(limit)? {
            return Ok(());
        }
        Err(Error::TimedOut {
            what: format!("the end of {} (pid {})", self.record.label, self.record.pid),
            limit,
        })
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(Error::io(self.doing("signal"))(error)),
        }
    }

    fn exited_within(&self, limit: Duration) -> Result<bool> {
        let exited = pidfd_exited_within(&self.pidfd, limit).map_err(Error::io(self.doing("wait for")))?;
        if exited {
            // Reaps it if it is a child of this very process, which nobody else waits for; else its parent does.
            let _ = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
        }
        Ok(exited)
    }

    fn doing(&self, verb: &str) -> String {
        format!("{verb} {} (pid {})", self.record.label, self.record.pid)
    }
}

/// Starts a command in the calling thread's namespaces, detached: in a session of its own, its output in a log.
/// Its standard input is what the command says.
pub(crate) fn spawn_detached(mut command: Command, room: Room, label: &str, log: &Path) -> Result<Process> {
    let output =
        File::options().create(true).append(true).open(log).map_err(Error::path("open the log", log))?;
    let errors = output.try_clone().map_err(Error::path("open the log", log))?;
    command.stdout(output).stderr(errors);
    set_session(&mut command);
    let program = command.get_program().to_string_lossy().into_owned();
    let child = command.spawn().map_err(Error::io(format!("start {label} (`{program}`)")))?;
    let pid = child.id() as i32;
    let ended = || Error::io(format!("start {label} (pid {pid})"))(io::Error::from(io::ErrorKind::NotFound));
    // The child is not reaped before this handle is dropped, so the pid is its own.
    let pidfd = open_pidfd(pid)?.ok_or_else(ended)?;
    let start_time_ticks = start_time_ticks(pid).ok_or_else(ended)?;
    let record =
        ProcessRecord { pid, start_time_ticks, room, label: label.to_owned(), log: log.to_path_buf() };
    Ok(Process { record, pidfd })
}

/// Has the child start a session of its own: no terminal, no signal meant for the caller's group reaches it.
fn set_session(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: between fork and exec the closure makes one system call and touches no memory.
    unsafe { command.pre_exec(|| rustix::process::setsid().map(drop).map_err(io::Error::from)) };
}

/// Ends every one of these processes, whoever started them, and waits until they have ended.
pub(crate) fn kill_all(pids: &[i32]) -> Result<()> {
    let mut killed = Vec::new();
    for &pid in pids {
        if let Some(pidfd) = open_pidfd(pid)? {
            match pidfd_send_signal(&pidfd, Signal::KILL) {
                Ok(()) | Err(Errno::SRCH) => killed.push((pid, pidfd)),
                Err(error) => return Err(Error::io(format!("kill the process {pid}"))(error)),
            }
        }
    }
    for (pid, pidfd) in killed {
        // Not reaped here: it may be somebody's child.
        if !pidfd_exited_within(&pidfd, KILL_LIMIT)
            .map_err(Error::io(format!("wait for the process {pid}")))?
        {
            return Err(Error::TimedOut { what: format!("the end of the process {pid}"), limit: KILL_LIMIT });
        }
    }
    Ok(())
}

/// No standard input: what most daemons want.
pub(crate) fn without_input(mut command: Command) -> Command {
    command.stdin(Stdio::null());
    command
}

fn pidfd_exited_within(pidfd: &OwnedFd, limit: Duration) -> std::result::Result<bool, Errno> {
    let timeout = Timespec::try_from(limit).map_err(|_| Errno::INVAL)?;
    let mut polled = [PollFd::new(pidfd, PollFlags::IN)];
    Ok(rustix::io::retry_on_intr(|| poll(&mut polled, Some(&timeout)))? > 0)
}

fn open_pidfd(pid: i32) -> Result<Option<OwnedFd>> {
    let Some(valid) = Pid::from_raw(pid) else { return Ok(None) };
    match pidfd_open(valid, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Some(pidfd)),
        Err(Errno::SRCH | Errno::INVAL) => Ok(None),
        Err(error) => Err(Error::io(format!("open the process {pid}"))(error)),
    }
}

/// When a process started, in clock ticks since boot.
fn start_time_ticks(pid: i32) -> Option<u64> {
    parse_start_time(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The 22nd field of a line of `/proc/PID/stat`; the second, the name, may itself hold spaces and brackets.
fn parse_start_time(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_found_behind_any_process_name() {
        let line = "7 (a) b (c)) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 10 11\n";
        assert_eq!(parse_start_time(line), Some(98765));
        for rubbish in ["", "7 (a", "7 (a) S 1", "7 (a) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 x 10"] {
            assert_eq!(parse_start_time(rubbish), None, "{rubbish:?}");
        }
    }

    fn sleeper(folder: &Path) -> Process {
        let mut command = Command::new("sleep");
        command.arg("600");
        spawn_detached(without_input(command), Room::Client, "sleeper", &folder.join("log")).unwrap()
    }

    #[test]
    fn a_record_finds_its_process_until_that_has_ended() {
        let folder = tempfile::tempdir().unwrap();
        let process = sleeper(folder.path());
        let record = process.record().clone();
        assert!(Process::find(record.clone()).unwrap().unwrap().is_alive().unwrap());
        process.stop().unwrap();
        assert!(process.is_alive().unwrap(), "a stopped process is alive");
        process.kill().unwrap();
        assert!(!process.is_alive().unwrap());
        assert!(Process::find(record).unwrap().is_none());
    }

    #[test]
    fn a_reused_pid_is_not_taken_for_the_recorded_process() {
        let folder = tempfile::tempdir().unwrap();
        let process = sleeper(folder.path());
        let earlier = ProcessRecord { start_time_ticks: 1, ..process.record().clone() };
        assert!(Process::find(earlier).unwrap().is_none());
        process.kill().unwrap();
    }
}
