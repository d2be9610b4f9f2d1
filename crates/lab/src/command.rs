//! Running the programs that the lab uses, each by its argument vector.

use std::ffi::OsStr;
use std::process::{Command, Stdio};

use crate::error::{Error, Result, shortened};

/// Runs a program to its end and gives what it printed.
pub(crate) fn run<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> Result<String> {
    output(Command::new(program).args(arguments).stdin(Stdio::null()))
}

/// Runs a prepared command, its input included, to its end and gives what it printed.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let described = describe(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(Error::io(format!("start `{described}` (is it installed?)")))?;
    if !output.status.success() {
        return Err(Error::Command {
            command: described,
            status: output.status.to_string(),
            stderr: shortened(&String::from_utf8_lossy(&output.stderr)),
        });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `ip` inside a namespace.
pub(crate) fn ip(namespace: &str, arguments: &[&str]) -> Result<()> {
    run("ip", &[&["-n", namespace], arguments].concat()).map(drop)
}

/// `tc` inside a namespace.
pub(crate) fn tc(namespace: &str, arguments: &[&str]) -> Result<()> {
    run("tc", &[&["-n", namespace], arguments].concat()).map(drop)
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}
