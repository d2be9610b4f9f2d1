//! Does what the command line says.

mod bundle;
mod console;
mod daemon;
mod host;
mod inventory;
mod join;
mod local;
mod migrate;
mod spec;
mod task;
mod vm;

use std::io::{BufRead as _, IsTerminal as _, Write as _, stderr, stdin};

use limosa_api::rest::{Task, TaskResult, TaskState};
use limosa_model::{Failure, FailureKind};

use crate::args::{Cli, Command};
use crate::cluster::Cluster;
use crate::connection;
use crate::error::CliError;
use crate::output::Output;
use crate::render;
use crate::watch::{Show, follow};

pub use local::help;

/// Does what the command line says.
///
/// # Errors
/// [`CliError`]; its exit code is the command's.
pub async fn run(cli: Cli) -> Result<(), CliError> {
    let output = Output::new(cli.output);
    let open = || connection::open(&cli.connection);
    match cli.command {
        Command::Vm(command) => vm::run(&open()?, command, output).await,
        Command::Migrate(args) => migrate::run(&open()?, args, output).await,
        Command::Host(command) => host::run(open, command, output).await,
        Command::Datastore(command) => inventory::datastore(&open()?, command, output).await,
        Command::Network(command) => inventory::network(&open()?, command, output).await,
        Command::Cluster(command) => inventory::cluster(&open()?, command, output).await,
        Command::Token(command) => inventory::token(&open()?, command, output).await,
        Command::Task(command) => task::run(&open()?, command, output).await,
        Command::Events(args) => task::events(&open()?, args, output).await,
        Command::Report { file } => bundle::write(&open()?, &file, output).await,
        Command::Login => {
            let path = connection::login(&cli.connection).await?;
            output.say(&format!("remembered in {}", path.display()))
        }
        Command::Server(args) => daemon::server(args, output).await,
        Command::Agent { config, stop_guests: true, log } => daemon::stop_guests(&config, &log).await,
        Command::Agent { config, stop_guests: false, log } => daemon::agent(&config, &log).await,
        Command::Lab { arguments } => local::lab(&arguments),
        Command::Schema { of } => local::schema(of),
        Command::Completions { shell } => local::completions(shell),
        Command::Man { folder } => local::man(&folder, output),
        Command::Help { topic } => output.say(&help(&topic)?),
    }
}

/// Waits for a task, unless it should not, and shows how it ended.
async fn see_through(cluster: &Cluster, task: Task, no_wait: bool, output: Output) -> Result<(), CliError> {
    if no_wait {
        return output.show(&task, accepted);
    }
    let show = if output.is_json() { Show::Nobody } else { Show::People };
    for ended in follow(cluster, vec![task], show).await? {
        if output.is_json() {
            output.show(&ended, render::task)?;
        }
        succeeded(&ended)?;
        output.say(&format!("{}: done", render::progress(&ended).doing))?;
    }
    Ok(())
}

/// What is said of a task that nobody waits for.
fn accepted(task: &Task) -> String {
    let doing = render::progress(task).doing;
    format!("{doing}: task {id}; follow it with `limosa task watch {id}`", id = task.id)
}

/// Whether a task that has ended did what was asked.
fn succeeded(task: &Task) -> Result<(), CliError> {
    let fallback = match task.state {
        TaskState::Queued | TaskState::Running | TaskState::Succeeded => return Ok(()),
        TaskState::Failed => Failure::new(FailureKind::Invalid, "it failed", "look at `limosa events`"),
        TaskState::Cancelled => Failure::new(FailureKind::Cancelled, "a user cancelled it", "nothing"),
    };
    let outcome = match &task.result {
        Some(TaskResult::Migrated(report)) => Some(report.outcome),
        _ => None,
    };
    let failure = task.failure.clone().unwrap_or(fallback);
    Err(CliError::Failed { doing: render::progress(task).doing, failure, outcome })
}

/// Asks the user to type `word`, unless `sure`.
fn confirm(question: &str, word: &str, sure: bool) -> Result<(), CliError> {
    if sure {
        return Ok(());
    }
    if !stdin().is_terminal() {
        return Err(CliError::invalid(question, "if you are sure, say so with `--yes`"));
    }
    let broken = |source| CliError::Stream { doing: "ask", source };
    write!(stderr(), "{question}\nType {word} if you are sure: ").map_err(broken)?;
    let mut answer = String::new();
    stdin().lock().read_line(&mut answer).map_err(broken)?;
    if answer.trim() == word {
        Ok(())
    } else {
        Err(CliError::invalid("that was something else: nothing was done", ""))
    }
}

/// Splits `KEY=VALUE`.
fn pair(text: &str) -> Result<(&str, &str), CliError> {
    text.split_once('=')
        .filter(|(key, _)| !key.is_empty())
        .ok_or_else(|| CliError::invalid(format!("{text:?} has no key and value"), "write it as KEY=VALUE"))
}

/// Reads a name.
fn name(text: &str) -> Result<limosa_model::Name, CliError> {
    text.parse().map_err(|error: limosa_model::id::InvalidId| CliError::invalid(error.to_string(), ""))
}
