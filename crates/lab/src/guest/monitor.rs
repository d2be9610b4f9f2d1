//! One QMP command to a plain QEMU: all that the lab needs of QMP.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::error::{Error, Result};

const ANSWER_LIMIT: Duration = Duration::from_secs(30);
const LINE_LIMIT: u64 = 1024 * 1024;
/// Events that may come before an answer.
const EVENTS_LIMIT: usize = 1000;

/// Runs a command without arguments, such as `system_powerdown`, on a connection of its own.
///
/// # Errors
/// When QEMU does not answer, or refuses.
pub fn qmp_execute(socket: &Path, command: &str) -> Result<Value> {
    let talking = || Error::path("talk QMP to", socket);
    let stream = UnixStream::connect(socket).map_err(talking())?;
    stream.set_read_timeout(Some(ANSWER_LIMIT)).map_err(talking())?;
    let mut reader = BufReader::new(stream);
    receive(&mut reader, socket)?;
    execute(&mut reader, socket, "qmp_capabilities")?;
    execute(&mut reader, socket, command)
}

fn execute(reader: &mut BufReader<UnixStream>, socket: &Path, command: &str) -> Result<Value> {
    let line = format!("{}\n", json!({ "execute": command }));
    reader.get_mut().write_all(line.as_bytes()).map_err(Error::path("talk QMP to", socket))?;
    answer(reader, socket)
}

/// The next answer, past the events before it.
fn answer(reader: &mut BufReader<UnixStream>, socket: &Path) -> Result<Value> {
    for _ in 0..EVENTS_LIMIT {
        let mut message = receive(reader, socket)?;
        if let Some(refusal) = message.get("error") {
            return Err(Error::answer("QEMU", &refusal.to_string(), "it refuses the command"));
        }
        if let Some(answer) = message.get_mut("return") {
            return Ok(answer.take());
        }
    }
    Err(Error::answer("QEMU", "", "nothing but events"))
}

fn receive(reader: &mut BufReader<UnixStream>, socket: &Path) -> Result<Value> {
    let mut line = String::new();
    reader.by_ref().take(LINE_LIMIT).read_line(&mut line).map_err(Error::path("talk QMP to", socket))?;
    serde_json::from_str(&line).map_err(|error| Error::answer("QEMU", &line, error))
}
