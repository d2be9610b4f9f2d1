//! Takes the lab down after the demo, however that ended: with success, with an error, by Ctrl-C, by a panic.
//!
//! The demo runs in a process of its own, which is killed before the lab is taken away, so that nothing is made
//! while things are removed.

use std::process::{ExitStatus, Stdio};

use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

use super::say;
use crate::error::{Error, Result};
use crate::lab::{Config, Lab};

/// How a demo ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It showed what it had to show.
    Success,
    /// It did not; it has said why.
    Failure,
    /// Somebody asked for its end.
    Interrupted,
}

/// Runs the demo as a process of its own, by these arguments of the same program. The lab is left up only after a
/// success, and only if it is to be kept.
///
/// # Errors
/// When the process cannot be started, or the lab cannot be taken down.
pub fn supervise(config: &Config, arguments: &[&str], keep: bool) -> Result<End> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let end = runtime.map_err(Error::io("start a runtime"))?.block_on(run(arguments))?;
    if end == End::Success && keep {
        return Ok(end);
    }
    if end == End::Interrupted {
        say("\nInterrupted: taking the lab down.");
    }
    Lab::remove(&config.name, &config.state_root)?;
    Ok(end)
}

async fn run(arguments: &[&str]) -> Result<End> {
    let program = std::env::current_exe().map_err(Error::io("find the own program"))?;
    let hear = |kind| signal(kind).map_err(Error::io("hear signals"));
    let mut asked =
        (hear(SignalKind::interrupt())?, hear(SignalKind::terminate())?, hear(SignalKind::hangup())?);
    // In a group of its own: Ctrl-C is for this process, which knows what to do about it.
    let mut demo = Command::new(program);
    demo.args(arguments).stdin(Stdio::null()).process_group(0).kill_on_drop(true);
    let mut demo = demo.spawn().map_err(Error::io("start the demo"))?;
    let ended: std::io::Result<ExitStatus> = tokio::select! {
        ended = demo.wait() => ended,
        _ = asked.0.recv() => return stop(demo).await,
        _ = asked.1.recv() => return stop(demo).await,
        _ = asked.2.recv() => return stop(demo).await,
    };
    let status = ended.map_err(Error::io("wait for the demo"))?;
    Ok(if status.success() { End::Success } else { End::Failure })
}

async fn stop(mut demo: tokio::process::Child) -> Result<End> {
    demo.kill().await.map_err(Error::io("end the demo"))?;
    Ok(End::Interrupted)
}
