//! The processes of the hosts: found, stopped, let go on and killed.

use limosa_lab::wait;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::common::LIMIT;
use crate::stage::Stage;

/// A process of one of the hosts, by what its command line has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Agent,
    Worker,
    Qemu,
}

impl Stage<'_> {
    /// The process of this kind on a host, if there is one.
    pub(crate) fn process(&self, n: usize, part: Part) -> Option<i32> {
        let wanted = match part {
            Part::Agent => " agent ",
            Part::Worker => " worker ",
            Part::Qemu => "qemu-system",
        };
        let all = self.lab.processes_in(Self::room(n)).unwrap();
        all.into_iter().find(|(_, line)| line.contains(wanted)).map(|(pid, _)| pid)
    }

    pub(crate) fn send(&self, pid: i32, signal: Signal) {
        // A process that has gone in the meantime needs no signal.
        let _ = kill_process(Pid::from_raw(pid).unwrap(), signal);
    }

    pub(crate) fn freeze(&mut self, n: usize, part: Part) {
        let pid = self.process(n, part).unwrap_or_else(|| panic!("{part:?} on host {n}"));
        self.send(pid, Signal::STOP);
        // A thread that is in the kernel stops when it comes out: only then does nothing go on.
        wait::until("a process to stand still", LIMIT, || Ok(stands_still(pid).then_some(()))).unwrap();
        self.stopped.push(pid);
    }

    pub(crate) fn thaw(&mut self, n: usize, part: Part) {
        if let Some(pid) = self.process(n, part) {
            self.send(pid, Signal::CONT);
            self.stopped.retain(|stopped| *stopped != pid);
        }
    }

    pub(crate) fn kill(&mut self, n: usize, part: Part) {
        let pid = self.process(n, part).unwrap_or_else(|| panic!("{part:?} on host {n}"));
        // By this it is gone with all its threads, and what it had open is closed.
        let held = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap();
        self.send(pid, Signal::KILL);
        self.stopped.retain(|stopped| *stopped != pid);
        let limit = Timespec::try_from(LIMIT).unwrap();
        let gone = poll(&mut [PollFd::new(&held, PollFlags::IN)], Some(&limit)).unwrap();
        assert_eq!(gone, 1, "{part:?} on host {n} does not die");
    }
}

/// Whether every thread of a process is stopped.
fn stands_still(pid: i32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    threads.flatten().all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        // The state follows the name, which is in parentheses. A thread that has gone has no state.
        stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with('T'))
    })
}
