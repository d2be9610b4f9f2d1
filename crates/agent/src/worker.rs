//! The agent's side of a worker: starting it so that it outlives the agent, and talking to it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use limosa_model::{Failure, FailureKind};
use limosa_worker::control::{self, Lines, Message, Reply, Request, Start, Status};
use rustix::io::{FdFlags, fcntl_setfd};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::config::Config;

/// How long a worker may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Where the files of one worker are.
#[derive(Debug, Clone)]
pub(crate) struct WorkerDir(PathBuf);

impl WorkerDir {
    pub(crate) fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// Makes the folder, for the user that QEMU and workers run as.
    pub(crate) fn create(&self, config: &Config) -> io::Result<()> {
        std::fs::create_dir_all(&self.0)?;
        std::fs::set_permissions(&self.0, PermissionsExt::from_mode(0o700))?;
        std::os::unix::fs::chown(&self.0, Some(config.vm_user.uid), Some(config.vm_user.gid))
    }

    /// The socket on which agents talk to the worker.
    pub(crate) fn control(&self) -> PathBuf {
        self.0.join("control")
    }

    /// The socket between QEMU and the worker.
    pub(crate) fn stream(&self) -> PathBuf {
        self.0.join("stream")
    }

    fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    /// Removes the folder with all that is in it. One that is gone is removed.
    pub(crate) fn remove(&self) -> io::Result<()> {
        match std::fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// A socket in the folder, listened on; whatever was there before is gone.
pub(crate) fn listen_unix(path: &Path, config: &Config) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600))?;
    std::os::unix::fs::chown(path, Some(config.vm_user.uid), Some(config.vm_user.gid))?;
    Ok(listener)
}

/// Starts a worker with these two sockets. It is detached: it stays when the agent goes.
pub(crate) fn spawn(dir: &WorkerDir, control: OwnedFd, listen: OwnedFd, config: &Config) -> io::Result<()> {
    // By this name it is found even where an upgrade has replaced the file: it is this very program.
    let program = config.program.clone().unwrap_or_else(|| "/proc/self/exe".into());
    let log = File::options().create(true).append(true).mode(0o600).open(dir.log())?;
    let mut command = Command::new(program);
    command
        .arg("worker")
        .args(["--control-fd", &control.as_raw_fd().to_string()])
        .args(["--listen-fd", &listen.as_raw_fd().to_string()])
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .process_group(0)
        .uid(config.vm_user.uid)
        .gid(config.vm_user.gid);
    let inherit = move || {
        rustix::process::setsid().map(drop).or_else(|error| match error {
            // A process group leader cannot: it is one already.
            rustix::io::Errno::PERM => Ok(()),
            other => Err(other),
        })?;
        fcntl_setfd(&control, FdFlags::empty())?;
        fcntl_setfd(&listen, FdFlags::empty())?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls only: it allocates nothing and takes no lock.
    unsafe { command.pre_exec(inherit) };
    let mut child = command.spawn()?;
    // Somebody must wait for it. It ends when its migration has, or when this agent is long gone.
    std::thread::Builder::new()
        .name("worker-wait".into())
        .stack_size(64 * 1024)
        .spawn(move || child.wait())?;
    Ok(())
}

/// A conversation with a worker.
pub(crate) struct Worker {
    stream: UnixStream,
    lines: Lines,
}

impl Worker {
    /// Connects to the worker in this folder.
    pub(crate) async fn connect(dir: &WorkerDir) -> io::Result<Self> {
        let stream = UnixStream::connect(dir.control()).await?;
        Ok(Self { stream, lines: Lines::default() })
    }

    async fn message(&mut self) -> io::Result<Message> {
        loop {
            let line = self.lines.next_line().map_err(io::Error::other)?;
            if let Some(line) = line {
                return control::decode(&line).map_err(io::Error::other);
            }
            let mut bytes = [0; 4096];
            let n = self.stream.read(&mut bytes).await?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.lines.push(&bytes[..n]);
        }
    }

    async fn ask(&mut self, request: &Request) -> io::Result<Reply> {
        let conversation = async {
            self.stream.write_all(&control::encode(request)).await?;
            loop {
                if let Message::Reply(reply) = self.message().await? {
                    return Ok(reply);
                }
            }
        };
        tokio::time::timeout(ANSWER_LIMIT, conversation)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    /// The fingerprint that the other worker has to pin.
    pub(crate) async fn fingerprint(&mut self) -> io::Result<String> {
        match self.ask(&Request::Hello {}).await? {
            Reply::Hello { fingerprint, .. } => Ok(fingerprint.to_string()),
            other => Err(io::Error::other(format!("unexpected answer {other:?}"))),
        }
    }

    /// Gives the worker its orders.
    pub(crate) async fn start(&mut self, start: Start) -> io::Result<()> {
        match self.ask(&Request::Start(start)).await? {
            Reply::Started(_) => Ok(()),
            Reply::Refused { reason } => Err(io::Error::other(reason)),
            other => Err(io::Error::other(format!("unexpected answer {other:?}"))),
        }
    }

    /// How it stands.
    pub(crate) async fn status(&mut self) -> io::Result<Status> {
        match self.ask(&Request::Status {}).await? {
            Reply::Status(status) => Ok(status),
            other => Err(io::Error::other(format!("unexpected answer {other:?}"))),
        }
    }

    /// Ends it.
    pub(crate) async fn stop(&mut self) -> io::Result<()> {
        self.ask(&Request::Stop {}).await.map(drop)
    }
}

/// Ends the worker in this folder, if there is one, and removes the folder.
pub(crate) async fn dismiss(dir: &WorkerDir) {
    if let Ok(mut worker) = Worker::connect(dir).await
        && let Err(error) = worker.stop().await
    {
        tracing::debug!(%error, "a worker did not say goodbye");
    }
    if let Err(error) = dir.remove() {
        tracing::warn!(%error, "the folder of a worker could not be removed");
    }
}

/// A worker's failure, for people.
pub(crate) fn failure(doing: &str, error: &io::Error) -> Failure {
    Failure::new(
        FailureKind::Resource,
        format!("the worker could not be {doing}: {error}"),
        "see the agent's log; try again",
    )
}
