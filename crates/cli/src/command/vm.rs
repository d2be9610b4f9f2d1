//! `limosa vm …`

use limosa_api::client::ConsoleKind;
use limosa_api::rest::{CreateVm, ResolveVm, SetVm, StartVm, StopVm};
use limosa_model::spec::NicSpec;

use super::{confirm, console, name, pair, see_through, spec};
use crate::args::{SetArgs, VmCommand};
use crate::cluster::Cluster;
use crate::error::CliError;
use crate::output::Output;
use crate::render;

pub(super) async fn run(cluster: &Cluster, command: VmCommand, output: Output) -> Result<(), CliError> {
    let (task, wait) = match command {
        VmCommand::List => return output.show(&cluster.vms().await?, |vms| render::vms(&vms.items)),
        VmCommand::Show { vm } => return output.show(&cluster.vm(&vm).await?, render::vm),
        VmCommand::Set(args) => {
            let changed = cluster.set_vm(&args.vm, &changes(&args)?).await?;
            return output.show(&changed, render::vm);
        }
        VmCommand::Resolve(args) => {
            let question = format!(
                "If host {} still runs {}, its disks will be destroyed: two copies of it would write to them. \
                 Is the host gone for good?",
                args.host_lost, args.vm
            );
            confirm(&question, &args.host_lost, args.yes)?;
            let request = ResolveVm { host_lost: args.host_lost, confirmed: true };
            return output.show(&cluster.resolve_vm(&args.vm, &request).await?, render::vm);
        }
        VmCommand::Console(args) if args.vnc => {
            return console::vnc(cluster, &args.vm, args.listen, output).await;
        }
        VmCommand::Console(args) => {
            let stream = cluster.console(&args.vm, ConsoleKind::Serial).await?;
            return console::serial(&args.vm, stream).await;
        }

        VmCommand::Create(args) => {
            let spec = spec::read(&args.file, &args.sets)?;
            let request = CreateVm { spec, start: args.start, host: args.on };
            (cluster.create_vm(&request).await?, args.wait)
        }
        VmCommand::Start { vm, on, wait } => (cluster.start_vm(&vm, &StartVm { host: on }).await?, wait),
        VmCommand::Stop { vm, force: true, wait, .. } | VmCommand::Kill { vm, wait } => {
            (cluster.vm_verb(&vm, "kill").await?, wait)
        }
        VmCommand::Stop { vm, timeout, wait, .. } => {
            (cluster.stop_vm(&vm, "stop", &StopVm { timeout_ms: timeout }).await?, wait)
        }
        VmCommand::Reboot { vm, timeout, wait } => {
            (cluster.stop_vm(&vm, "reboot", &StopVm { timeout_ms: timeout }).await?, wait)
        }
        VmCommand::Pause { vm, wait } => (cluster.vm_verb(&vm, "pause").await?, wait),
        VmCommand::Resume { vm, wait } => (cluster.vm_verb(&vm, "resume").await?, wait),
        VmCommand::Delete { vm, yes, wait } => {
            confirm(&format!("This removes {vm} and all its disks."), &vm, yes)?;
            (cluster.delete_vm(&vm).await?, wait)
        }
    };
    see_through(cluster, task, wait.no_wait, output).await
}

fn changes(args: &SetArgs) -> Result<SetVm, CliError> {
    let nics = args.nics.iter().map(|text| nic(text)).collect::<Result<Vec<_>, _>>()?;
    let mut labels = std::collections::BTreeMap::new();
    for label in &args.labels {
        let (key, value) = pair(label)?;
        labels.insert(key.to_owned(), Some(value.to_owned()));
    }
    labels.extend(args.unlabels.iter().map(|key| (key.clone(), None)));
    let changes = SetVm {
        name: args.name.clone(),
        cpus: args.cpus,
        memory: args.memory,
        nics: (args.no_nics || !nics.is_empty()).then_some(nics),
        policy: None,
        labels,
    };
    if changes == SetVm::default() {
        return Err(CliError::invalid("nothing to change was given", "see `limosa help vm set`"));
    }
    Ok(changes)
}

fn nic(text: &str) -> Result<NicSpec, CliError> {
    let (network, mac) = match text.split_once(',') {
        Some((network, mac)) => (network, Some(mac)),
        None => (text, None),
    };
    let mac = mac.map(str::parse).transpose();
    let mac = mac.map_err(|error: limosa_model::id::InvalidId| CliError::invalid(error.to_string(), ""))?;
    Ok(NicSpec { network: name(network)?, mac, addresses: Vec::new() })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    fn parse(line: &str) -> Result<SetVm, CliError> {
        match Cli::try_parse_from(line.split(' ')).unwrap().command {
            Command::Vm(VmCommand::Set(args)) => changes(&args),
            _ => panic!("another command"),
        }
    }

    #[test]
    fn only_what_is_named_changes() {
        let set = parse("limosa vm set web --cpus 4 --label tier=front --unlabel old").unwrap();
        assert_eq!((set.cpus, set.memory, set.nics), (Some(4), None, None));
        assert_eq!(set.labels["tier"].as_deref(), Some("front"));
        assert_eq!(set.labels["old"], None);

        let set = parse("limosa vm set web --nic lan --nic dmz,52:54:00:00:00:01").unwrap();
        let nics = set.nics.unwrap();
        assert_eq!((nics[0].mac, nics[1].network.as_str()), (None, "dmz"));
        assert_eq!(parse("limosa vm set web --no-nics").unwrap().nics, Some(vec![]));
    }

    #[test]
    fn a_change_that_is_none_or_malformed_is_an_error() {
        for bad in ["limosa vm set web", "limosa vm set web --label x", "limosa vm set web --nic lan,1"] {
            assert!(matches!(parse(bad), Err(CliError::Invalid { .. })), "{bad} was taken");
        }
    }
}
