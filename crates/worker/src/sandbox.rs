//! What a worker gives up once it has its orders and before it reads a byte from a peer.
//!
//! | what | how | if the kernel cannot |
//! |---|---|---|
//! | rights by exec, capabilities | `no_new_privs`, empty capability sets | refused |
//! | core files, descriptors, memory | `RLIMIT_CORE` 0, `RLIMIT_NOFILE`, `RLIMIT_AS`; not dumpable | refused |
//! | files, other ports, signals | Landlock: no file, TCP connects to the destination's ports alone | told in [`Sandbox`] |
//! | system calls | seccomp, a list of what is allowed | refused |
//!
//! A system call that is not on the list kills the process; the kernel's audit log has its number (`type=1326`).
//! Opening a file or asking about a path is answered with `EACCES` and `clone3` with `ENOSYS` (its flags cannot be examined, and the C
//! library then uses `clone`), as libraries probe for both.

use std::collections::BTreeMap;
use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, NetPort, PathBeneath, PathFd, RestrictSelfAttr, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, clear_ambient_capability_set, set_capabilities};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use serde::{Deserialize, Serialize};

use crate::Error;

/// Descriptors that a worker may hold: two for each of 257 channels, three for each of 64 handshakes, and some. So
/// it never runs out of them, whoever connects.
const DESCRIPTORS_MAX: u64 = 1024;

/// What a worker may still do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Policy {
    /// Connect by TCP to these ports, and nothing by name.
    Source {
        /// The destination's ports.
        ports: Vec<u16>,
    },
    /// Connect to this one Unix socket, and to no address.
    Destination {
        /// QEMU's socket.
        qemu_socket: PathBuf,
    },
}

/// What the process has given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// How much of the Landlock rules the kernel enforces. The rest always holds.
    pub landlock: Landlock,
}

/// How much of the Landlock rules holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Landlock {
    /// Every rule.
    Full,
    /// Those that this kernel knows.
    Partial,
    /// None: the kernel has no Landlock, or it is off.
    None,
}

/// Gives up everything that `policy` does not name, for good. Call this while the process has one thread:
/// capabilities are given up by the calling thread and by those that it starts later, the rest by all.
///
/// # Errors
/// [`Error::Sandbox`] if a part fails that must hold. What was given up until then stays given up.
pub fn enter(policy: &Policy, memory_bytes: u64) -> Result<Sandbox, Error> {
    if std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() > 1) {
        tracing::warn!("other threads are running and keep their capabilities");
    }
    limit_resources(memory_bytes)?;
    rustix::thread::set_no_new_privs(true).map_err(failed("set no_new_privs"))?;
    let landlock = restrict_files_and_ports(policy).map_err(|error| sandbox("apply Landlock", &error))?;
    clear_ambient_capability_set().map_err(failed("clear the ambient capabilities"))?;
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
        .map_err(failed("drop the capabilities"))?;
    for program in filters(policy).map_err(|error| sandbox("build the system call filter", &error))? {
        seccompiler::apply_filter_all_threads(&program)
            .map_err(|error| sandbox("apply the system call filter", &error))?;
    }
    Ok(Sandbox { landlock })
}

fn sandbox(during: &'static str, error: &dyn std::fmt::Display) -> Error {
    Error::Sandbox { during, reason: error.to_string() }
}

fn failed(during: &'static str) -> impl FnOnce(rustix::io::Errno) -> Error {
    move |errno| sandbox(during, &errno)
}

fn limit_resources(memory_bytes: u64) -> Result<(), Error> {
    let set = |resource, limit| {
        // Lower than asked for is fine, and cannot be raised.
        let held = rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX);
        let limit = Some(held.min(limit));
        setrlimit(resource, Rlimit { current: limit, maximum: limit })
    };
    set(Resource::Core, 0).map_err(failed("forbid core files"))?;
    set(Resource::Nofile, DESCRIPTORS_MAX).map_err(failed("limit the descriptors"))?;
    set(Resource::As, memory_bytes).map_err(failed("limit the memory"))?;
    // Nobody but root may look into a process that holds a key.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(failed("forbid dumps"))
}

fn restrict_files_and_ports(policy: &Policy) -> Result<Landlock, RulesetError> {
    let ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V9))?
        .handle_access(AccessNet::from_all(ABI::V4))?
        .scope(Scope::from_all(ABI::V6))?
        .create()?;
    let ruleset = match policy {
        Policy::Source { ports } => ruleset.add_rules(
            ports.iter().map(|port| Ok::<_, RulesetError>(NetPort::new(*port, AccessNet::ConnectTcp))),
        )?,
        // The socket itself may not be there yet.
        Policy::Destination { qemu_socket } => match qemu_socket.parent().map(PathFd::new) {
            Some(Ok(directory)) => ruleset.add_rule(PathBeneath::new(directory, AccessFs::ResolveUnix))?,
            Some(Err(_)) | None => ruleset,
        },
    };
    Ok(match ruleset.all_threads(true)?.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced => Landlock::Full,
        RulesetStatus::PartiallyEnforced => Landlock::Partial,
        RulesetStatus::NotEnforced => Landlock::None,
    })
}

/// Three filters, the strictest answer counts: some calls get an errno, what is not on the list kills.
fn filters(policy: &Policy) -> Result<Vec<BpfProgram>, seccompiler::BackendError> {
    // A panic with a backtrace asks for the last two.
    let mut opens = vec![
        libc::SYS_openat,
        libc::SYS_openat2,
        libc::SYS_newfstatat,
        libc::SYS_statx,
        libc::SYS_readlinkat,
        libc::SYS_getcwd,
    ];
    #[cfg(target_arch = "x86_64")]
    opens.extend([libc::SYS_open, libc::SYS_stat, libc::SYS_access, libc::SYS_readlink]);
    let clone3 = vec![libc::SYS_clone3];

    let mut allowed = allowed(policy)?;
    allowed.extend(opens.iter().chain(&clone3).map(|call| (*call, Vec::new())));
    // The one that kills comes last: it would kill the next one's `seccomp`.
    Ok(vec![
        errno(opens, libc::EACCES)?,
        errno(clone3, libc::ENOSYS)?,
        compile(allowed, SeccompAction::KillProcess, SeccompAction::Allow)?,
    ])
}

fn errno(calls: Vec<i64>, errno: i32) -> Result<BpfProgram, seccompiler::BackendError> {
    let calls = calls.into_iter().map(|call| (call, Vec::new())).collect();
    compile(calls, SeccompAction::Allow, SeccompAction::Errno(errno.unsigned_abs()))
}

fn compile(
    calls: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, seccompiler::BackendError> {
    SeccompFilter::new(calls, otherwise, matched, std::env::consts::ARCH.try_into()?)?.try_into()
}

/// What a worker's threads call once it works. An empty list of rules allows every argument.
fn allowed(policy: &Policy) -> Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError> {
    let mut calls: BTreeMap<i64, Vec<SeccompRule>> = [
        // Bytes.
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_readv,
        libc::SYS_writev,
        libc::SYS_recvfrom,
        libc::SYS_sendto,
        libc::SYS_recvmsg,
        libc::SYS_sendmsg,
        libc::SYS_ppoll,
        // Sockets.
        libc::SYS_accept,
        libc::SYS_accept4,
        libc::SYS_connect,
        libc::SYS_getsockopt,
        libc::SYS_setsockopt,
        libc::SYS_getsockname,
        libc::SYS_getpeername,
        libc::SYS_shutdown,
        libc::SYS_close,
        libc::SYS_fcntl,
        // Memory.
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_brk,
        // Threads, time, chance.
        libc::SYS_futex,
        libc::SYS_set_robust_list,
        libc::SYS_rseq,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
        libc::SYS_sched_getaffinity,
        libc::SYS_sched_yield,
        libc::SYS_gettid,
        libc::SYS_getpid,
        libc::SYS_tgkill,
        libc::SYS_restart_syscall,
        libc::SYS_clock_gettime,
        libc::SYS_clock_nanosleep,
        libc::SYS_getrandom,
        libc::SYS_exit,
        libc::SYS_exit_group,
    ]
    .into_iter()
    .map(|call| (call, Vec::new()))
    .collect();
    #[cfg(target_arch = "x86_64")]
    calls.insert(libc::SYS_poll, Vec::new());

    let families: &[i32] = match policy {
        Policy::Source { .. } => &[libc::AF_INET, libc::AF_INET6],
        Policy::Destination { .. } => &[libc::AF_UNIX],
    };
    let families = families.iter().map(|family| only(0, SeccompCmpOp::Eq, *family as u64));
    calls.insert(libc::SYS_socket, families.collect::<Result<_, _>>()?);
    // No memory that is written becomes code.
    let not_executable = || only(2, SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64), 0);
    calls.insert(libc::SYS_mmap, vec![not_executable()?]);
    calls.insert(libc::SYS_mprotect, vec![not_executable()?]);
    let thread = libc::CLONE_THREAD as u64;
    calls.insert(libc::SYS_clone, vec![only(0, SeccompCmpOp::MaskedEq(thread), thread)?]);
    calls.insert(libc::SYS_ioctl, vec![only(1, SeccompCmpOp::Eq, libc::FIONBIO)?]);
    calls.insert(libc::SYS_prctl, vec![only(0, SeccompCmpOp::Eq, libc::PR_SET_NAME as u64)?]);
    Ok(calls)
}

/// A rule for one argument, compared in its lower 32 bits.
fn only(argument: u8, op: SeccompCmpOp, value: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(argument, SeccompCmpArgLen::Dword, op, value)?])
}
