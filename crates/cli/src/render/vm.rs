//! VMs.

use limosa_api::rest::{DesiredPower, Vm};
use limosa_model::PowerState;

use super::{facts, or_dash, table};

/// All VMs, a line each.
pub fn vms(vms: &[Vm]) -> String {
    table(
        ["NAME", "STATE", "HOST", "CPUS", "MEMORY", "ADDRESSES"],
        vms.iter().map(|vm| {
            [
                vm.name.to_string(),
                state(vm),
                or_dash(vm.host.as_ref()),
                vm.spec.cpus.to_string(),
                vm.spec.memory.human(),
                addresses(vm),
            ]
        }),
    )
}

/// One VM, all of it.
pub fn vm(vm: &Vm) -> String {
    let spec = &vm.spec;
    let disks = spec.disks.iter().map(|disk| {
        let size = disk.size.map_or_else(|| "the template's size".to_owned(), |size| size.human());
        let read_only = if disk.read_only { ", read-only" } else { "" };
        format!("{}: {size}, {} on {}{read_only}", disk.name, disk.format.name(), disk.datastore)
    });
    let nics = spec.nics.iter().map(|nic| match nic.mac {
        Some(mac) => format!("{mac} on {}", nic.network),
        None => format!("on {}", nic.network),
    });
    let labels = spec.labels.iter().map(|(key, value)| format!("{key}={value}"));
    facts([
        ("name", vm.name.to_string()),
        ("id", vm.id.to_string()),
        ("state", state(vm)),
        ("why", vm.reason.clone().unwrap_or_default()),
        ("should be", desired(vm).to_owned()),
        ("host", or_dash(vm.host.as_ref())),
        ("epoch", or_dash(vm.epoch)),
        ("migration", vm.migration.map(|id| id.to_string()).unwrap_or_default()),
        ("task", vm.task.map(|id| id.to_string()).unwrap_or_default()),
        ("cpus", spec.cpus.to_string()),
        ("memory", spec.memory.human()),
        ("machine", spec.machine.machine_type.clone().unwrap_or_else(|| "chosen at the first start".into())),
        ("cpu model", spec.machine.cpu_model.clone()),
        ("disks", lines(disks)),
        ("nics", lines(nics)),
        ("addresses", addresses(vm)),
        ("labels", lines(labels)),
        ("next start", vm.pending.join(", ")),
        ("made", vm.created.to_string()),
    ])
}

fn lines(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join("\n")
}

fn addresses(vm: &Vm) -> String {
    vm.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn desired(vm: &Vm) -> &'static str {
    match vm.desired {
        DesiredPower::Running => "running",
        DesiredPower::Stopped => "stopped",
    }
}

/// What a VM does, in one word; two while it moves.
fn state(vm: &Vm) -> String {
    if vm.in_doubt {
        return "in-doubt".into();
    }
    let power = match vm.power {
        None if vm.host.is_none() => "stopped",
        None => "unknown",
        Some(PowerState::Stopped) => "stopped",
        Some(PowerState::Running) => "running",
        Some(PowerState::Paused) => "paused",
        Some(PowerState::IoError) => "io-error",
        Some(PowerState::Crashed) => "crashed",
        Some(PowerState::Suspended) => "suspended",
    };
    if vm.migration.is_some() { format!("{power}, migrating") } else { power.into() }
}

#[cfg(test)]
mod tests {
    use limosa_model::toml_spec::from_toml;
    use limosa_model::{Epoch, MigrationId, VmId};

    use super::*;

    fn example() -> Vm {
        let spec = "name = \"web\"\ncpus = 2\nmemory = \"1GiB\"\nlabels = { tier = \"front\" }\n\
                    [[disks]]\nname = \"root\"\ndatastore = \"fast\"\nsize = \"10GiB\"\n\
                    [[nics]]\nnetwork = \"lan\"\nmac = \"52:54:00:12:34:56\"\naddresses = [\"10.0.0.7\"]\n";
        Vm {
            id: VmId::from_u128(1),
            name: "web".parse().unwrap(),
            spec: from_toml(spec).unwrap(),
            desired: DesiredPower::Running,
            host: Some("h1".parse().unwrap()),
            epoch: Some(Epoch(7)),
            power: Some(PowerState::Running),
            reason: None,
            in_doubt: false,
            migration: None,
            task: None,
            pending: vec!["memory".into()],
            addresses: vec!["10.0.0.7".parse().unwrap()],
            created: "2030-01-01T00:00:00Z".parse().unwrap(),
        }
    }

    #[test]
    fn a_list_of_vms_has_a_line_for_each() {
        let moving = Vm { migration: Some(MigrationId::from_u128(2)), ..example() };
        let doubtful = Vm { in_doubt: true, power: Some(PowerState::Paused), ..example() };
        let never_started = Vm { power: None, host: None, addresses: vec![], ..example() };
        let unheard = Vm { power: None, ..example() };
        assert_eq!(
            vms(&[example(), moving, doubtful, never_started, unheard]),
            "NAME  STATE               HOST  CPUS  MEMORY   ADDRESSES\n\
             web   running             h1    2     1.0 GiB  10.0.0.7\n\
             web   running, migrating  h1    2     1.0 GiB  10.0.0.7\n\
             web   in-doubt            h1    2     1.0 GiB  10.0.0.7\n\
             web   stopped             -     2     1.0 GiB\n\
             web   unknown             h1    2     1.0 GiB  10.0.0.7\n"
        );
    }

    #[test]
    fn one_vm_is_shown_with_what_it_should_be_and_what_it_is() {
        assert_eq!(
            vm(&example()),
            "\
name        web
id          00000000-0000-0000-0000-000000000001
state       running
should be   running
host        h1
epoch       7
cpus        2
memory      1.0 GiB
machine     chosen at the first start
cpu model   default
disks       root: 10.0 GiB, qcow2 on fast
nics        52:54:00:12:34:56 on lan
addresses   10.0.0.7
labels      tier=front
next start  memory
made        2030-01-01T00:00:00Z
"
        );
    }
}
