//! A QEMU monitor that plays a recorded transcript.
//!
//! A transcript is written as in QEMU's own documents, an action a line:
//!
//! ```text
//! # a comment
//! -> {"execute": "stop"}              the client must send this (its id aside)
//! <- {"event": "STOP"}                the monitor sends this
//! <- {"return": {}}                   and this, with the id of the oldest command not yet answered
//! <- {"return": {}, "id": 7}          or with the id written here (the first command after the handshake has 1)
//! <! {"retur                          sent as it stands
//! == close                            closes the connection
//! ```
//!
//! At the end of the transcript the monitor waits for the client to close. What differs from the transcript is
//! the error of [`FakeQemu::finish`].

use std::collections::VecDeque;
use std::io;
use std::path::Path;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

/// How every transcript of a connection that comes about begins.
pub const HANDSHAKE: &str = concat!(
    r#"<- {"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "Debian"}, "capabilities": ["oob"]}}"#,
    "\n",
    r#"-> {"execute": "qmp_capabilities"}"#,
    "\n",
    r#"<- {"return": {}}"#,
    "\n",
);

/// A monitor at work.
#[derive(Debug)]
pub struct FakeQemu {
    play: JoinHandle<Result<(), String>>,
}

impl FakeQemu {
    /// Serves one client on a socket at `path`, as a QEMU would.
    ///
    /// # Errors
    /// If no socket can be made there.
    pub fn listen(path: &Path, transcript: impl Into<String>) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        let transcript = transcript.into();
        let play = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.map_err(|error| error.to_string())?;
            play(stream, &transcript).await
        });
        Ok(Self { play })
    }

    /// Serves the client at the other end of the socket.
    pub fn over(stream: UnixStream, transcript: impl Into<String>) -> Self {
        let transcript = transcript.into();
        Self { play: tokio::spawn(async move { play(stream, &transcript).await }) }
    }

    /// Waits until the transcript was played and the client has closed.
    ///
    /// # Errors
    /// How the client differed from the transcript.
    pub async fn finish(self) -> Result<(), String> {
        self.play.await.map_err(|error| error.to_string())?
    }
}

async fn play(stream: UnixStream, transcript: &str) -> Result<(), String> {
    let failed = |error: io::Error| error.to_string();
    let mut stream = BufReader::new(stream);
    let mut unanswered = VecDeque::new();
    for action in transcript.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        let (mark, text) = action.split_at_checked(2).ok_or_else(|| format!("no action: {action}"))?;
        match mark {
            "->" => {
                let mut line = String::new();
                stream.read_line(&mut line).await.map_err(failed)?;
                let mut sent = json(&line)?;
                let id = sent.as_object_mut().and_then(|fields| fields.remove("id"));
                unanswered.push_back(id.ok_or_else(|| format!("a command without an id: {line}"))?);
                let expected = json(text)?;
                if sent != expected {
                    return Err(format!("the client sent {sent} where {expected} was expected"));
                }
            }
            "<-" => {
                let mut message = json(text)?;
                let is_reply = message.get("return").or(message.get("error")).is_some();
                if is_reply && message.get("id").is_none() {
                    message["id"] = unanswered.pop_front().ok_or("a reply to no command")?;
                } else if is_reply {
                    unanswered.retain(|id| *id != message["id"]);
                }
                stream.write_all(format!("{message}\r\n").as_bytes()).await.map_err(failed)?;
            }
            "<!" => stream.write_all(format!("{}\n", text.trim()).as_bytes()).await.map_err(failed)?,
            "==" if text.trim() == "close" => return Ok(()),
            _ => return Err(format!("no action: {action}")),
        }
    }
    let mut rest = String::new();
    match stream.read_to_string(&mut rest).await {
        Ok(_) if rest.is_empty() => Ok(()),
        Ok(_) => Err(format!("the client sent more than the transcript: {rest}")),
        // Something was under way to the client when it closed.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

fn json(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("{error}: {text:?}"))
}
