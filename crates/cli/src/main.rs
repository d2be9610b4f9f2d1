//! The one binary of Limosa: every user command, `limosa server`, `limosa agent` and `limosa worker`.

use std::env;
use std::io;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use limosa_cli::args::Cli;
use limosa_cli::error::CliError;
use limosa_cli::output::Output;
use limosa_cli::{command, exit};

fn main() -> ExitCode {
    // A worker is started by its agent, with descriptors and nothing else: no threads, no runtime, no settings.
    if env::args_os().nth(1).is_some_and(|word| word == "worker") {
        let done = limosa_worker::main(env::args_os().skip(2)).context("the worker ended");
        return end(done, Output::default());
    }
    let cli = Cli::parse();
    let output = Output::new(cli.output);
    end(run(cli), output)
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("no threads to run on")?;
    let done = runtime.block_on(command::run(cli));
    // A thread that waits for the terminal is not waited for.
    runtime.shutdown_background();
    Ok(done?)
}

fn end(done: anyhow::Result<()>, output: Output) -> ExitCode {
    let Err(error) = done else {
        return ExitCode::from(exit::SUCCESS);
    };
    match error.downcast_ref::<CliError>() {
        // Whoever read the output has seen enough of it.
        Some(CliError::Stream { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::from(exit::SUCCESS)
        }
        Some(error) => {
            output.fail(error);
            ExitCode::from(error.exit_code())
        }
        None => {
            eprintln!("error: {error:#}");
            ExitCode::from(exit::LOCAL)
        }
    }
}
