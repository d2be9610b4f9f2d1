//! The command line, as types.

mod cluster;
mod host;
mod migrate;
mod vm;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use cluster::{ClusterCommand, DatastoreCommand, EventsArgs, NetworkCommand, TaskCommand, TokenCommand};
pub use host::{HostCommand, JoinArgs};
pub use migrate::{MigrateArgs, MigrationFlags};
pub use vm::{ConsoleArgs, CreateArgs, ResolveArgs, SetArgs, VmCommand, Wait};

use crate::exit;

/// Limosa moves virtual machines between Linux hosts while they run.
#[derive(Debug, Parser)]
#[command(name = "limosa", version, after_long_help = exit::table(), disable_help_subcommand = true)]
pub struct Cli {
    /// How to reach the server.
    #[command(flatten)]
    pub connection: ConnectionArgs,
    /// How to print.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    pub output: Format,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How to reach the server. What is not given comes from `~/.config/limosa/config.toml`.
#[derive(Debug, Clone, Default, Args)]
pub struct ConnectionArgs {
    /// The server, as HOST or HOST:PORT
    #[arg(long, global = true, env = "LIMOSA_SERVER", value_name = "ADDRESS", help_heading = "Connection")]
    pub server: Option<String>,
    /// The API token
    #[arg(
        long,
        global = true,
        env = "LIMOSA_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true,
        help_heading = "Connection"
    )]
    pub token: Option<String>,
    /// The certificate of the cluster's authority: its PEM file, or its SHA-256 fingerprint
    #[arg(
        long,
        global = true,
        env = "LIMOSA_CA",
        value_name = "FILE|FINGERPRINT",
        help_heading = "Connection"
    )]
    pub ca: Option<String>,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs: the API's own objects, one document, or one a line where there is no end.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create, run, change and look at VMs
    #[command(subcommand)]
    Vm(VmCommand),
    /// Move VMs to other hosts while they run
    Migrate(MigrateArgs),
    /// Look after hosts
    #[command(subcommand)]
    Host(HostCommand),
    /// Look after the places where disks live
    #[command(subcommand)]
    Datastore(DatastoreCommand),
    /// Look after what NICs attach to
    #[command(subcommand)]
    Network(NetworkCommand),
    /// Follow and cancel what takes time
    #[command(subcommand)]
    Task(TaskCommand),
    /// Show what has happened
    Events(EventsArgs),
    /// Look at the cluster as a whole
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Make tokens with which hosts join
    #[command(subcommand)]
    Token(TokenCommand),
    /// Remember server, token and authority in ~/.config/limosa/config.toml
    Login,
    /// Write a bundle for a bug report: the cluster's state, tasks and events, without secrets
    Report {
        /// The file to write
        #[arg(default_value = "limosa-report.tar", value_name = "FILE")]
        file: PathBuf,
    },
    /// Run the server, or make a new cluster
    Server(ServerArgs),
    /// Run a host's agent
    Agent {
        /// The agent's settings
        #[arg(long, default_value = "/etc/limosa/agent.toml", value_name = "FILE")]
        config: PathBuf,
        /// Stop the guests of this host, whose agent has stopped, and end: for the host's shutdown
        #[arg(long)]
        stop_guests: bool,
        /// How the log looks.
        #[command(flatten)]
        log: LogArgs,
    },
    /// Run a lab of several hosts on this machine, each in a network namespace
    #[command(disable_help_flag = true)]
    Lab {
        /// What `limosa-lab` takes
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
        arguments: Vec<OsString>,
    },
    /// Print the JSON schema of VM specs, or the description of the API
    Schema {
        /// Which one
        #[arg(value_enum)]
        of: SchemaOf,
    },
    /// Print completions for a shell
    Completions {
        /// Which one
        shell: clap_complete::Shell,
    },
    /// Write the man pages
    Man {
        /// The folder to write them to
        folder: PathBuf,
    },
    /// Explain a command, or the exit codes (`exit-codes`)
    Help {
        /// The command, or `exit-codes`
        topic: Vec<String>,
    },
}

/// The server's command line.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct ServerArgs {
    /// Something other than to run it.
    #[command(subcommand)]
    pub command: Option<ServerCommand>,
    /// The server's settings
    #[arg(long, default_value = SERVER_CONFIG, value_name = "FILE")]
    pub config: PathBuf,
    /// How the log looks.
    #[command(flatten)]
    pub log: LogArgs,
}

const SERVER_CONFIG: &str = "/etc/limosa/server.toml";

/// What a server does beside running.
#[derive(Debug, Subcommand)]
pub enum ServerCommand {
    /// Make a new cluster: its authority, its store, its administrator's token
    Init {
        /// The server's settings
        #[arg(long, default_value = SERVER_CONFIG, value_name = "FILE")]
        config: PathBuf,
    },
}

/// How a daemon's log looks. It goes to the standard error stream.
#[derive(Debug, Clone, Args)]
pub struct LogArgs {
    /// What is logged, as in `info` or `limosa_agent=debug,info`
    #[arg(long, env = "LIMOSA_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,
    /// How
    #[arg(long, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    pub log_format: Format,
}

/// What has a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SchemaOf {
    /// A VM's spec
    Vm,
    /// The REST API, as OpenAPI 3.1
    Api,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_and_option_explains_itself() {
        fn check(command: &clap::Command, path: &str) {
            assert!(command.get_about().is_some(), "{path} does not say what it does");
            for argument in command.get_arguments() {
                assert!(
                    argument.get_help().is_some(),
                    "{path} {} does not say what it does",
                    argument.get_id()
                );
            }
            for inner in command.get_subcommands() {
                check(inner, &format!("{path} {}", inner.get_name()));
            }
        }
        check(&Cli::command(), "limosa");
    }

    #[test]
    fn quantities_are_read_with_their_units() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' '));
        let Command::Migrate(migrate) =
            parse("limosa migrate a b --to h2 --max-downtime 200ms --deadline 10m --bandwidth 200Mbit")
                .unwrap()
                .command
        else {
            panic!("another command")
        };
        assert_eq!(migrate.vms, ["a", "b"]);
        let options = migrate.flags.options();
        assert_eq!(options.downtime_limit_ms, limosa_model::Millis::new(200));
        assert_eq!(options.deadline_ms, Some(limosa_model::Millis::new(600_000)));
        assert_eq!(options.bandwidth, Some("200Mbit".parse().unwrap()));
        for bad in [
            "limosa migrate a",
            "limosa migrate --to h2",
            "limosa migrate a --to h2 --best",
            "limosa migrate a --best --max-downtime 200",
            "limosa vm stop a --timeout 5s --force",
        ] {
            assert!(parse(bad).is_err(), "{bad} was taken");
        }
    }
}
