//! One network namespace: made, entered by a thread or a process, searched for processes, removed.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    fsconfig_create, fsmount, fsopen, mount_change, move_mount, open_tree,
};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::command::{output, run};
use crate::error::{Error, Result};

/// Where `ip netns` keeps the namespaces that have names.
const FOLDER: &str = "/run/netns";

/// A named network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    pub(crate) fn named(name: String) -> Self {
        Self { name }
    }

    /// Its name, as `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it, as `setns(2)` takes it.
    pub fn path(&self) -> PathBuf {
        Path::new(FOLDER).join(&self.name)
    }

    /// Runs a closure inside the namespace, on a thread of its own. Sockets that it opens stay in the namespace
    /// wherever they are used later.
    ///
    /// # Errors
    /// When the namespace is not there or may not be entered.
    pub fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> Result<T> {
        let namespace = self.open()?;
        let enter_and_run = || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok::<T, Errno>(body())
        };
        let joined = thread::scope(|scope| scope.spawn(enter_and_run).join());
        match joined {
            Ok(result) => result.map_err(Error::io(format!("enter the namespace {}", self.name))),
            // The closure's panic (a failed assertion, in tests) goes on in the caller's thread.
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Like [`Self::run`], with `/sys` showing this namespace's interfaces too, as on a host of its own; for
    /// starting processes. Control groups stay where they are.
    pub(crate) fn run_as_host<T: Send>(&self, body: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.run(|| {
            show_own_interfaces()
                .map_err(Error::io(format!("mount /sys for the namespace {}", self.name)))?;
            body()
        })?
    }

    /// Moves the whole process, and so everything that it starts, into the namespace. `/sys` shows the namespace's
    /// interfaces from then on, as on a host of its own; control groups stay where they are.
    ///
    /// # Errors
    /// [`Error::TooManyThreads`] unless the process has a single thread: the others would stay outside.
    pub fn enter_process(&self) -> Result<()> {
        let threads =
            fs::read_dir("/proc/self/task").map_err(Error::path("read", "/proc/self/task"))?.count();
        if threads != 1 {
            return Err(Error::TooManyThreads { threads });
        }
        let entered = move_into_link_name_space(self.open()?.as_fd(), Some(LinkNameSpaceType::Network));
        entered.map_err(Error::io(format!("enter the namespace {}", self.name)))?;
        show_own_interfaces().map_err(Error::io(format!("mount /sys for the namespace {}", self.name)))
    }

    /// Makes it. The program that does has the lock as its input, so that it is held until that program has
    /// ended, even if this one is killed: nobody cleans up while a namespace is still being made.
    pub(crate) fn create(&self, lock: &File) -> Result<()> {
        let lock = lock.try_clone().map_err(Error::io("hand on the lock"))?;
        output(Command::new("ip").args(["netns", "add", &self.name]).stdin(lock)).map(drop)
    }

    pub(crate) fn remove(&self) -> Result<()> {
        run("ip", &["netns", "delete", &self.name]).map(drop)
    }

    pub(crate) fn exists(&self) -> bool {
        self.path().exists()
    }

    /// The processes that live in the namespace, whoever started them; never the caller.
    pub(crate) fn processes(&self) -> Result<Vec<i32>> {
        let Ok(own) = fs::metadata(self.path()) else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").map_err(Error::path("read", "/proc"))?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            // A process that is gone by now, or is a zombie, has no namespace.
            let Ok(its) = fs::metadata(entry.path().join("ns/net")) else { continue };
            if (its.dev(), its.ino()) == (own.dev(), own.ino()) && pid as u32 != std::process::id() {
                found.push(pid);
            }
        }
        Ok(found)
    }

    fn open(&self) -> Result<File> {
        File::open(self.path()).map_err(Error::path("open the namespace", self.path()))
    }
}

/// The names of all namespaces there are.
pub(crate) fn all_names() -> Vec<String> {
    let entries = fs::read_dir(FOLDER).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Gives the calling thread mounts of its own and in them a `/sys` of its own network namespace; a sysfs shows
/// the interfaces of the namespace in which it was mounted.
fn show_own_interfaces() -> std::result::Result<(), Errno> {
    // SAFETY: only the table of mounts (and, with it, the working directory) is unshared, never descriptors.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_RECURSIVE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let groups = open_tree(CWD, "/sys/fs/cgroup", flags);
    let sysfs = fsopen("sysfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(sysfs.as_fd())?;
    let sysfs = fsmount(sysfs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    let from_descriptor = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(sysfs.as_fd(), "", CWD, "/sys", from_descriptor)?;
    match groups {
        Ok(groups) => move_mount(groups.as_fd(), "", CWD, "/sys/fs/cgroup", from_descriptor),
        // A machine without control groups has none to keep.
        Err(Errno::NOENT | Errno::INVAL) => Ok(()),
        Err(error) => Err(error),
    }
}
