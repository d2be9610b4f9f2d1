//! A lab as a whole: brought up, found again, taken down.
//!
//! What is in `/run/limosa-lab/NAME` is there to find things by: `lab.json` (how many hosts), `processes/` (one
//! record each), `logs/`, `hosts/` (directories for what runs on them). [`Lab::down`] trusts it only as far as
//! it goes: it also takes every process that lives in one of the lab's namespaces, and every namespace with the
//! lab's name.

use std::fs::{self, File};
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::names::{HOSTS_LIMIT, LabName, PREFIX, Room};
use crate::namespace::Namespace;
use crate::process::{self, Process, ProcessRecord};
use crate::topology;

/// Records longer than this are rubbish.
const RECORD_LIMIT_BYTES: u64 = 64 * 1024;

/// How often a namespace is searched for processes before it is removed with whatever is still in it.
const KILL_ROUNDS_LIMIT: usize = 100;

/// What a lab is made of.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its name: several labs stand side by side under different names.
    pub name: LabName,
    /// How many hosts it has, at least one.
    pub hosts: u8,
    /// Where labs keep their state: `/run/limosa-lab`, or `LIMOSA_LAB_STATE`.
    pub state_root: PathBuf,
}

impl Config {
    /// A lab of this name and size, with its state in the usual place.
    pub fn new(name: LabName, hosts: u8) -> Self {
        Self { name, hosts, state_root: default_state_root() }
    }
}

/// Where labs keep their state unless told otherwise.
pub fn default_state_root() -> PathBuf {
    std::env::var_os("LIMOSA_LAB_STATE").map_or_else(|| Path::new("/run").join(PREFIX), PathBuf::from)
}

/// A lab that is up. Dropping it leaves it up: see [`LabGuard`].
#[derive(Debug)]
pub struct Lab {
    name: LabName,
    hosts: u8,
    directory: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    hosts: u8,
}

impl Lab {
    /// Brings a lab up; what is left of an earlier one of that name is taken away first.
    ///
    /// # Errors
    /// When it cannot be built (it takes root). What was made by then is removed by the next `up` or `down`.
    pub fn up(config: &Config) -> Result<Self> {
        if !(1..=HOSTS_LIMIT).contains(&config.hosts) {
            return Err(Error::invalid("number of hosts", &config.hosts.to_string(), "1 to 99 are expected"));
        }
        let lock = lock(&config.state_root)?;
        remove_everything(&config.name, &config.state_root)?;
        let directory = config.state_root.join(config.name.as_str());
        for folder in ["processes", "logs", "hosts"] {
            let folder = directory.join(folder);
            fs::create_dir_all(&folder).map_err(Error::path("create", &folder))?;
        }
        topology::build(&config.name, config.hosts, &lock)?;
        // Last: a lab that has this file is whole.
        save(&directory.join("lab.json"), &Saved { hosts: config.hosts })?;
        Ok(Self { name: config.name.clone(), hosts: config.hosts, directory })
    }

    /// Brings a lab up that goes down again when the guard is dropped; for tests.
    ///
    /// # Errors
    /// As [`Self::up`].
    pub fn up_until_dropped(config: &Config) -> Result<LabGuard> {
        Self::up(config).map(|lab| LabGuard { lab: Some(lab) })
    }

    /// Finds a lab that is up.
    ///
    /// # Errors
    /// [`Error::NotUp`] if there is none of that name, or not a whole one.
    pub fn open(name: &LabName, state_root: &Path) -> Result<Self> {
        let directory = state_root.join(name.as_str());
        let file = directory.join("lab.json");
        if !file.exists() || !Namespace::named(name.namespace(Room::Switch)).exists() {
            return Err(Error::NotUp { name: name.to_string() });
        }
        let saved: Saved = load(&file)?;
        Ok(Self { name: name.clone(), hosts: saved.hosts, directory })
    }

    /// Takes the lab away: its processes, namespaces and files.
    ///
    /// # Errors
    /// As [`Self::remove`].
    pub fn down(self) -> Result<()> {
        Self::remove(&self.name, self.directory.parent().unwrap_or(&self.directory))
    }

    /// Takes the lab of this name away, whole or in pieces, whoever made it. There need be none.
    ///
    /// # Errors
    /// When something resists; another call goes on from there.
    pub fn remove(name: &LabName, state_root: &Path) -> Result<()> {
        let _lock = lock(state_root)?;
        remove_everything(name, state_root)
    }

    /// Its name.
    pub fn name(&self) -> &LabName {
        &self.name
    }

    /// Its hosts, in order.
    pub fn hosts(&self) -> impl Iterator<Item = Room> + use<> {
        (1..=self.hosts).map(Room::Host)
    }

    /// All its rooms, the switch first.
    pub fn rooms(&self) -> impl Iterator<Item = Room> + use<> {
        topology::rooms(self.hosts)
    }

    /// The namespace of a room.
    ///
    /// # Errors
    /// [`Error::NoSuchRoom`] for a host that the lab does not have.
    pub fn namespace(&self, room: Room) -> Result<Namespace> {
        if matches!(room, Room::Host(number) if !(1..=self.hosts).contains(&number)) {
            return Err(Error::NoSuchRoom {
                name: self.name.to_string(),
                room: room.to_string(),
                hosts: self.hosts,
            });
        }
        Ok(Namespace::named(self.name.namespace(room)))
    }

    /// Where the lab keeps its own state; gone after [`Self::down`].
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A directory for what runs in a room (a daemon's state, a guest's sockets); gone after [`Self::down`].
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn room_directory(&self, room: Room) -> Result<PathBuf> {
        self.namespace(room)?;
        let directory = self.directory.join("hosts").join(room.to_string());
        fs::create_dir_all(&directory).map_err(Error::path("create", &directory))?;
        Ok(directory)
    }

    /// The processes that live in a room, whoever started them, with their command lines.
    ///
    /// # Errors
    /// [`Error::NoSuchRoom`]; when the list of processes cannot be read.
    pub fn processes_in(&self, room: Room) -> Result<Vec<(i32, String)>> {
        let mut found = Vec::new();
        for pid in self.namespace(room)?.processes()? {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<_> = line.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
            // A zombie has no command line any more.
            if !line.is_empty() {
                found.push((pid, words.join(" ").trim_end().to_owned()));
            }
        }
        Ok(found)
    }

    /// Starts a command in a room, detached, without input, its output in a log. It outlives the caller; `/sys`
    /// shows it the room's interfaces, as on a host of its own.
    ///
    /// # Errors
    /// When it cannot be started or recorded.
    pub fn spawn(&self, room: Room, label: &str, command: Command) -> Result<Process> {
        self.spawn_with_input(room, label, process::without_input(command))
    }

    /// Like [`Self::spawn`], with the standard input that the command says.
    pub(crate) fn spawn_with_input(&self, room: Room, label: &str, command: Command) -> Result<Process> {
        let valid = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if label.is_empty() || label.len() > 64 || !label.chars().all(valid) {
            return Err(Error::invalid("label of a process", label, "letters, digits, - and _ are expected"));
        }
        let log = self.directory.join("logs").join(format!("{room}-{label}.log"));
        let process =
            self.namespace(room)?.run_as_host(|| process::spawn_detached(command, room, label, &log))?;
        // If this is not reached, the process is still found: it lives in the room's namespace.
        let name = format!("{}-{}.json", process.pid(), process.record().start_time_ticks);
        save(&self.directory.join("processes").join(name), process.record())?;
        Ok(process)
    }

    /// The processes that were started in the lab and still run.
    ///
    /// # Errors
    /// When a record cannot be read.
    pub fn processes(&self) -> Result<Vec<Process>> {
        recorded(&self.directory)
    }
}

/// A lab that goes down when this is dropped, also in a test that fails.
#[derive(Debug)]
pub struct LabGuard {
    /// None only while this is dropped.
    lab: Option<Lab>,
}

impl Deref for LabGuard {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        self.lab.as_ref().expect("it is taken out only when this is dropped")
    }
}

impl Drop for LabGuard {
    fn drop(&mut self) {
        let Some(lab) = self.lab.take() else { return };
        let name = lab.name.clone();
        if let Err(error) = lab.down() {
            eprintln!("limosa-lab: the lab `{name}` is not wholly down: {}", error.with_cause());
        }
    }
}

/// Processes first, so that nothing is made while things are removed; then namespaces, then files.
fn remove_everything(name: &LabName, state_root: &Path) -> Result<()> {
    let directory = state_root.join(name.as_str());
    for process in recorded(&directory)? {
        process.kill()?;
    }
    for (_, namespace) in topology::existing(name) {
        // A process that was being killed may have started another meanwhile.
        for _ in 0..KILL_ROUNDS_LIMIT {
            let pids = namespace.processes()?;
            if pids.is_empty() {
                break;
            }
            process::kill_all(&pids)?;
        }
    }
    topology::remove(name)?;
    match fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::path("remove", &directory)(error))
        }
        _ => Ok(()),
    }
}

/// The recorded processes that still run. A record that cannot be read was being written when its writer was
/// killed; its process lives in one of the namespaces.
fn recorded(directory: &Path) -> Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory.join("processes")).into_iter().flatten().flatten() {
        if let Ok(record) = load::<ProcessRecord>(&entry.path()) {
            found.extend(Process::find(record)?);
        }
    }
    Ok(found)
}

/// One lab is built or removed at a time: a lock on the directory of them all, held until dropped.
fn lock(state_root: &Path) -> Result<File> {
    fs::create_dir_all(state_root).map_err(Error::path("create", state_root))?;
    let directory = File::open(state_root).map_err(Error::path("open", state_root))?;
    rustix::fs::flock(&directory, FlockOperation::LockExclusive).map_err(Error::path("lock", state_root))?;
    Ok(directory)
}

fn save<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let text = serde_json::to_vec(value).map_err(io::Error::from).map_err(Error::path("write", path))?;
    let half = path.with_extension("half");
    fs::write(&half, text).and_then(|()| fs::rename(&half, path)).map_err(Error::path("write", path))
}

fn load<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T> {
    let length = fs::metadata(path).map_err(Error::path("read", path))?.len();
    if length > RECORD_LIMIT_BYTES {
        return Err(Error::path("read", path)(io::Error::from(io::ErrorKind::FileTooLarge)));
    }
    let text = fs::read(path).map_err(Error::path("read", path))?;
    serde_json::from_slice(&text).map_err(io::Error::from).map_err(Error::path("read", path))
}
