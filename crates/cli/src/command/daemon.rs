//! `limosa server` and `limosa agent`: the daemons, until they are told to end.

use std::path::Path;

use limosa_agent::Config;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::args::{Format, LogArgs, ServerArgs, ServerCommand};
use crate::error::CliError;
use crate::output::Output;

pub(super) async fn agent(config: &Path, log: &LogArgs) -> Result<(), CliError> {
    start_log(log)?;
    let config = Config::read(config).map_err(ended("agent"))?;
    limosa_agent::run(config, asked_to_end()?).await.map_err(ended("agent"))
}

/// Stops the guests of a host whose agent has stopped.
pub(super) async fn stop_guests(config: &Path, log: &LogArgs) -> Result<(), CliError> {
    start_log(log)?;
    let config = Config::read(config).map_err(ended("agent"))?;
    let stopped = limosa_agent::stop_guests(config).await.map_err(ended("agent"))?;
    tracing::info!(?stopped, "the guests of this host are stopped");
    Ok(())
}

pub(super) async fn server(args: ServerArgs, output: Output) -> Result<(), CliError> {
    if let Some(ServerCommand::Init { config }) = args.command {
        return init(&config, output).await;
    }
    start_log(&args.log)?;
    let config = limosa_server::Config::load(&args.config).map_err(ended("server"))?;
    limosa_server::run(config, asked_to_end()?).await.map_err(ended("server"))
}

async fn init(config: &Path, output: Output) -> Result<(), CliError> {
    let config = limosa_server::Config::load(config).map_err(ended("server"))?;
    let made = limosa_server::init(&config).await.map_err(ended("server"))?;
    let server = config.advertised();
    let told = serde_json::json!({
        "server": server,
        "admin_token_file": made.admin_token_file,
        "ca_fingerprint": made.ca_fingerprint.to_string(),
    });
    output.show(&told, |_| {
        format!(
            "The cluster {} is made. Start its server: limosa server\n\n\
             Then, to use it from here:\n\n  \
             limosa login --server {server} --ca {} --token \"$(cat {})\"",
            config.cluster,
            made.ca_fingerprint,
            made.admin_token_file.display()
        )
    })
}

fn ended<E: std::error::Error + Send + Sync + 'static>(daemon: &'static str) -> impl FnOnce(E) -> CliError {
    move |error| CliError::Daemon { daemon, source: error.into() }
}

/// Completes when somebody asks the process to end: SIGTERM, or SIGINT from a terminal.
fn asked_to_end() -> Result<impl Future<Output = ()>, CliError> {
    let hear = |kind| signal(kind).map_err(|source| CliError::Stream { doing: "hear signals", source });
    let (mut term, mut int) = (hear(SignalKind::terminate())?, hear(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    })
}

fn start_log(log: &LogArgs) -> Result<(), CliError> {
    let filter = EnvFilter::try_new(&log.log).map_err(|error| {
        CliError::invalid(format!("{:?} is no log filter: {error}", log.log), "try `info`")
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match log.log_format {
        Format::Text => builder.with_ansi(false).init(),
        Format::Json => builder.json().init(),
    }
    Ok(())
}
