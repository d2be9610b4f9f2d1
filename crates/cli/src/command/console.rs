//! `limosa vm console`: a VM's serial port on this terminal, or its screen for VNC clients.

use std::io::{self, IsTerminal as _};
use std::net::SocketAddr;

use limosa_api::client::ConsoleKind;
use limosa_api::http::UpgradedStream;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy, copy_bidirectional, split};
use tokio::net::TcpListener;

use crate::cluster::Cluster;
use crate::error::CliError;
use crate::output::Output;

/// Ctrl-], as in telnet: it ends the attachment and does not reach the guest.
const DETACH: u8 = 0x1d;

fn broken(source: io::Error) -> CliError {
    CliError::Stream { doing: "keep up the console", source }
}

/// Joins the terminal and the VM's serial port until either end is through, or Ctrl-] is typed.
pub(super) async fn serial(vm: &str, stream: UpgradedStream) -> Result<(), CliError> {
    let raw = if io::stdin().is_terminal() {
        eprintln!("attached to {vm}; Ctrl-] detaches");
        Some(RawTerminal::enter().map_err(broken)?)
    } else {
        None
    };
    let (mut reader, mut writer) = split(stream);
    let mut stdout = tokio::io::stdout();
    let ended = tokio::select! {
        ended = copy(&mut reader, &mut stdout) => ended.map(drop),
        ended = type_into(&mut writer, raw.is_some()) => ended,
    };
    drop(raw);
    eprintln!("detached from {vm}");
    ended.map_err(broken)
}

async fn type_into(writer: &mut (impl tokio::io::AsyncWrite + Unpin), detachable: bool) -> io::Result<()> {
    let mut stdin = tokio::io::stdin();
    let mut typed = [0; 1024];
    loop {
        let length = stdin.read(&mut typed).await?;
        let typed = &typed[..length];
        let end = typed.iter().position(|byte| detachable && *byte == DETACH);
        writer.write_all(&typed[..end.unwrap_or(length)]).await?;
        writer.flush().await?;
        if end.is_some() {
            return Ok(());
        }
        if length == 0 {
            // A script has said everything; what the guest answers is still wanted.
            return std::future::pending().await;
        }
    }
}

/// Makes the VM's screen reachable at a local address until Ctrl-C. Each client gets a connection of its own.
pub(super) async fn vnc(
    cluster: &Cluster,
    vm: &str,
    listen: SocketAddr,
    output: Output,
) -> Result<(), CliError> {
    let cannot = |source| CliError::Stream { doing: "listen for VNC clients", source };
    let listener = TcpListener::bind(listen).await.map_err(cannot)?;
    let address = listener.local_addr().map_err(cannot)?;
    output
        .show(&address, |address| format!("The screen of {vm} is at vnc://{address}; Ctrl-C ends that."))?;
    loop {
        let (mut client, _) = tokio::select! {
            accepted = listener.accept() => accepted.map_err(cannot)?,
            _ = tokio::signal::ctrl_c() => return Ok(()),
        };
        let mut screen = cluster.console(vm, ConsoleKind::Vnc).await?;
        // A client that goes away ends its own connection and nothing else.
        tokio::spawn(async move { copy_bidirectional(&mut client, &mut screen).await });
    }
}

/// The terminal without echo, lines and signals, until dropped.
struct RawTerminal(Termios);

impl RawTerminal {
    fn enter() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}
