//! `limosa host …`

use std::path::Path;

use jiff::Timestamp;
use limosa_agent::Config;
use limosa_api::rest::{DeclareLost, EvacuateHost};
use limosa_model::FailureKind;
use limosa_vm::{HostCheck, QemuUser, Verdict, check_host};
use serde::Serialize;

use super::{accepted, confirm, join, see_through};
use crate::args::HostCommand;
use crate::cluster::Cluster;
use crate::error::CliError;
use crate::exit;
use crate::output::Output;
use crate::render;

pub(super) async fn run(
    open: impl FnOnce() -> Result<Cluster, CliError>,
    command: HostCommand,
    output: Output,
) -> Result<(), CliError> {
    // These two are about this machine and need no server of ours.
    let command = match command {
        HostCommand::Check { config } => return check(&config, output).await,
        HostCommand::Join(args) => return join::run(args, output).await,
        command => command,
    };
    let cluster = open()?;
    let now = Timestamp::now();
    let changed = match command {
        HostCommand::Check { .. } | HostCommand::Join(_) => return Ok(()),
        HostCommand::List => {
            return output.show(&cluster.hosts().await?, |hosts| render::hosts(&hosts.items, now));
        }
        HostCommand::Evacuate { host, watch, flags } => {
            let task = cluster.evacuate(&host, &EvacuateHost { options: flags.options() }).await?;
            if watch {
                return see_through(&cluster, task, false, output).await;
            }
            return output.show(&task, accepted);
        }
        HostCommand::Remove { host } => {
            cluster.remove_host(&host).await?;
            return output.say(&format!("{host} is no host of the cluster any more"));
        }
        HostCommand::Show { host } => cluster.host(&host).await?,
        HostCommand::Cordon { host } => cluster.host_verb(&host, "cordon").await?,
        HostCommand::Uncordon { host } => cluster.host_verb(&host, "uncordon").await?,
        HostCommand::Readmit { host } => cluster.host_verb(&host, "readmit").await?,
        HostCommand::DeclareLost { host, yes } => {
            let question = format!(
                "If {host} still runs VMs, their disks will be destroyed: second copies would write to them. \
                 Is it gone for good?"
            );
            confirm(&question, &host, yes)?;
            cluster.declare_lost(&host, &DeclareLost { confirmed: true }).await?
        }
    };
    output.show(&changed, |host| render::host(host, now))
}

/// One check, for programs.
#[derive(Serialize)]
struct CheckLine<'a> {
    name: &'a str,
    verdict: &'static str,
    found: &'a str,
    remedy: &'a str,
}

impl<'a> From<&'a HostCheck> for CheckLine<'a> {
    fn from(check: &'a HostCheck) -> Self {
        let verdict = match check.verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "warning",
            Verdict::Missing => "missing",
        };
        Self { name: check.name, verdict, found: &check.found, remedy: check.remedy }
    }
}

async fn check(config: &Path, output: Output) -> Result<(), CliError> {
    let text = if config.exists() {
        std::fs::read_to_string(config).map_err(|source| CliError::File {
            doing: "read",
            path: config.to_owned(),
            source,
        })?
    } else {
        // Nothing but the defaults matters here.
        "name = \"this\"\nlisten = \"127.0.0.1:7601\"".into()
    };
    let config: Config = limosa_model::toml_spec::from_toml(&text).map_err(|error| {
        CliError::invalid(format!("{}: {error}", config.display()), "correct the agent's settings")
    })?;
    let user = QemuUser { uid: config.vm_user.uid, gid: config.vm_user.gid };
    let checks = check_host(&config.qemu, user).await;
    let lines: Vec<_> = checks.iter().map(CheckLine::from).collect();
    output.show(&lines, |_| render::checks(&checks))?;
    if checks.iter().any(|check| check.verdict == Verdict::Missing) {
        return Err(CliError::Told { code: exit::code(FailureKind::Resource) });
    }
    Ok(())
}
