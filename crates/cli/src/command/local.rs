//! What needs no server: help, completions, man pages, schemas, the lab.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process;

use clap::CommandFactory as _;
use limosa_model::VmSpec;

use crate::args::{Cli, Format, SchemaOf};
use crate::error::CliError;
use crate::exit;
use crate::output::Output;

/// What `limosa help TOPIC` says.
///
/// # Errors
/// [`CliError::Invalid`] if there is no such command.
pub fn help(topic: &[String]) -> Result<String, CliError> {
    if topic == ["exit-codes"] {
        return Ok(exit::table());
    }
    let mut command = Cli::command();
    command.build();
    for word in topic {
        command = command.find_subcommand(word).cloned().ok_or_else(|| {
            CliError::invalid(format!("there is no command {}", topic.join(" ")), "`limosa help` lists all")
        })?;
    }
    Ok(command.render_long_help().to_string())
}

pub(super) fn completions(shell: clap_complete::Shell) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "limosa", &mut script);
    Output::new(Format::Text).say(&String::from_utf8_lossy(&script))
}

pub(super) fn man(folder: &Path, output: Output) -> Result<(), CliError> {
    let file = |source| CliError::File { doing: "write the man pages to", path: folder.to_owned(), source };
    fs::create_dir_all(folder).map_err(file)?;
    clap_mangen::generate_to(Cli::command(), folder).map_err(file)?;
    output.say(&format!("the man pages are in {}", folder.display()))
}

pub(super) fn schema(of: SchemaOf) -> Result<(), CliError> {
    let schema = match of {
        SchemaOf::Vm => schemars::schema_for!(VmSpec).to_value(),
        SchemaOf::Api => limosa_server::openapi(),
    };
    Output::new(Format::Json).show(&schema, |_| String::new())
}

/// Becomes `limosa-lab`, which lies beside this program.
pub(super) fn lab(arguments: &[OsString]) -> Result<(), CliError> {
    let own =
        std::env::current_exe().map_err(|source| CliError::Stream { doing: "find this program", source })?;
    let lab = own.with_file_name("limosa-lab");
    let source = process::Command::new(&lab).args(arguments).exec();
    if source.kind() == io::ErrorKind::NotFound {
        return Err(CliError::invalid(
            format!("the lab is not installed: there is no {}", lab.display()),
            "build it from the sources, with `make demo`, or use `limosa-lab` where it is",
        ));
    }
    Err(CliError::File { doing: "run", path: lab, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_finds_commands_at_any_depth_and_the_exit_codes() {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert!(help(&words("vm stop")).unwrap().contains("--timeout <TIME>"));
        assert!(help(&words("")).unwrap().contains("migrate"));
        assert!(help(&words("exit-codes")).unwrap().contains("25  not-converging"));
        assert!(help(&words("vm fly")).is_err());
    }

    #[test]
    fn every_command_has_a_man_page() {
        let folder = tempfile::tempdir().unwrap();
        man(folder.path(), Output::new(Format::Json)).unwrap();
        for page in ["limosa.1", "limosa-migrate.1", "limosa-vm-create.1", "limosa-host-join.1"] {
            assert!(folder.path().join(page).exists(), "{page} is missing");
        }
        let page = fs::read_to_string(folder.path().join("limosa.1")).unwrap();
        assert!(page.contains("not\\-converging"), "the exit codes are missing");
    }

    #[test]
    fn the_schema_of_a_spec_knows_its_keys() {
        let schema = serde_json::to_value(schemars::schema_for!(VmSpec)).unwrap();
        assert!(schema["properties"]["memory"].is_object(), "{schema}");
        assert_eq!(schema["additionalProperties"], false);
    }
}
