//! Hosts.

use jiff::Timestamp;
use limosa_api::rest::{Host, HostState};
use limosa_model::host::Accelerator;
use limosa_vm::{HostCheck, Verdict};

use super::{ago, facts, or_dash, table};

/// All hosts, a line each.
pub fn hosts(hosts: &[Host], now: Timestamp) -> String {
    table(
        ["NAME", "STATE", "VMS", "MEMORY", "CPUS", "QEMU", "HEARD OF"],
        hosts.iter().map(|host| {
            [
                host.name.to_string(),
                state(host),
                host.vms.to_string(),
                memory(host),
                cpus(host),
                or_dash(host.facts.as_ref().map(|facts| &facts.qemu_version)),
                heard_of(host, now),
            ]
        }),
    )
}

/// One host, all of it.
pub fn host(host: &Host, now: Timestamp) -> String {
    let facts_of =
        |get: fn(&limosa_model::HostFacts) -> String| host.facts.as_ref().map(get).unwrap_or_default();
    let strays =
        host.strays.iter().map(|stray| format!("{} ({}), epoch {}", stray.name, stray.vm, stray.epoch));
    facts([
        ("name", host.name.to_string()),
        ("id", host.id.to_string()),
        ("state", state(host)),
        ("why", host.reason.clone().unwrap_or_default()),
        ("evacuation", host.evacuation.map(|task| task.to_string()).unwrap_or_default()),
        ("vms", host.vms.to_string()),
        ("memory", memory(host)),
        ("cpus", cpus(host)),
        ("cpu", facts_of(|facts| facts.cpu_model.clone())),
        (
            "accelerator",
            facts_of(|facts| match facts.accelerator {
                Accelerator::Kvm => "kvm".into(),
                Accelerator::Tcg => "tcg: guests are translated, which is slow".into(),
            }),
        ),
        ("qemu", facts_of(|facts| facts.qemu_version.clone())),
        ("kernel", facts_of(|facts| facts.kernel.clone())),
        ("limosa", facts_of(|facts| facts.limosa_version.clone())),
        ("agent at", or_dash(host.address)),
        ("migrates at", or_dash(host.migration_address.map(|address| address.ip()))),
        ("heard of", heard_of(host, now)),
        ("strays", strays.collect::<Vec<_>>().join("\n")),
    ])
}

/// What `limosa host check` found.
pub fn checks(checks: &[HostCheck]) -> String {
    let mut text = table(
        ["CHECK", "", "FOUND"],
        checks.iter().map(|check| [check.name.to_owned(), verdict(check).to_owned(), check.found.clone()]),
    );
    for check in checks.iter().filter(|check| check.verdict != Verdict::Ok) {
        text += &format!("\n{}: {}\n", check.name, check.remedy);
    }
    let worst = checks.iter().map(|check| check.verdict).max();
    text += match worst {
        Some(Verdict::Missing) => "\nThis machine cannot be a host as it is.\n",
        Some(Verdict::Warn) => "\nThis machine can be a host; something could be better.\n",
        Some(Verdict::Ok) | None => "\nThis machine can be a host.\n",
    };
    text
}

fn verdict(check: &HostCheck) -> &'static str {
    match check.verdict {
        Verdict::Ok => "ok",
        Verdict::Warn => "warning",
        Verdict::Missing => "MISSING",
    }
}

fn state(host: &Host) -> String {
    let state = match host.state {
        HostState::Joined => "joined",
        HostState::Online => "online",
        HostState::Offline => "offline",
        HostState::Quarantined => "quarantined",
        HostState::Lost => "lost",
    };
    match (host.cordoned, host.evacuation) {
        (_, Some(_)) => format!("{state}, evacuating"),
        (true, None) => format!("{state}, cordoned"),
        (false, None) => state.into(),
    }
}

fn memory(host: &Host) -> String {
    format!("{} of {}", host.taken.memory.human(), host.capacity.memory.human())
}

fn cpus(host: &Host) -> String {
    format!("{} of {}", host.taken.cpus, host.capacity.cpus)
}

fn heard_of(host: &Host, now: Timestamp) -> String {
    host.last_report.map_or_else(|| "never".into(), |then| ago(now, then))
}

#[cfg(test)]
mod tests {
    use limosa_api::rest::Stray;
    use limosa_model::{ByteSize, Capacity, Epoch, HostFacts, HostId, VmId};

    use super::*;

    fn now() -> Timestamp {
        "2030-01-01T00:01:00Z".parse().unwrap()
    }

    fn example() -> Host {
        let capacity = Capacity { memory: ByteSize::mib(16 << 10), cpus: 8 };
        Host {
            id: HostId::from_u128(1),
            name: "h1".parse().unwrap(),
            state: HostState::Online,
            cordoned: false,
            reason: None,
            facts: Some(HostFacts {
                limosa_version: "0.1.0".into(),
                kernel: "6.12.0".into(),
                qemu_version: "10.0.2".into(),
                machine_types: vec![],
                accelerator: Accelerator::Tcg,
                cpu_model: "Example CPU".into(),
                cpu_flags: vec![],
                capacity,
            }),
            capacity,
            taken: Capacity { memory: ByteSize::mib(1536), cpus: 2 },
            address: Some("10.0.0.1:7601".parse().unwrap()),
            migration_address: None,
            last_report: Some("2030-01-01T00:00:58Z".parse().unwrap()),
            vms: 2,
            strays: vec![],
            evacuation: None,
        }
    }

    #[test]
    fn a_list_of_hosts_has_a_line_for_each() {
        let cordoned = Host { cordoned: true, state: HostState::Offline, ..example() };
        let joined = Host { state: HostState::Joined, facts: None, last_report: None, vms: 0, ..example() };
        assert_eq!(
            hosts(&[example(), cordoned, joined], now()),
            "NAME  STATE              VMS  MEMORY               CPUS    QEMU    HEARD OF\n\
             h1    online             2    1.5 GiB of 16.0 GiB  2 of 8  10.0.2  2 s ago\n\
             h1    offline, cordoned  2    1.5 GiB of 16.0 GiB  2 of 8  10.0.2  2 s ago\n\
             h1    joined             0    1.5 GiB of 16.0 GiB  2 of 8  -       never\n"
        );
    }

    #[test]
    fn one_host_is_shown_with_the_vms_that_nobody_knows() {
        let stray = Stray { vm: VmId::from_u128(9), name: "web".parse().unwrap(), epoch: Epoch(3) };
        assert_eq!(
            host(&Host { strays: vec![stray], ..example() }, now()),
            "\
name         h1
id           00000000-0000-0000-0000-000000000001
state        online
vms          2
memory       1.5 GiB of 16.0 GiB
cpus         2 of 8
cpu          Example CPU
accelerator  tcg: guests are translated, which is slow
qemu         10.0.2
kernel       6.12.0
limosa       0.1.0
agent at     10.0.0.1:7601
migrates at  -
heard of     2 s ago
strays       web (00000000-0000-0000-0000-000000000009), epoch 3
"
        );
    }

    #[test]
    fn what_is_missing_is_told_with_its_remedy() {
        let check =
            |name, verdict, found: &str, remedy| HostCheck { name, verdict, found: found.into(), remedy };
        let found = [
            check("QEMU", Verdict::Ok, "10.0.2", ""),
            check("taps", Verdict::Missing, "no /dev/net/tun", "load the kernel module tun"),
        ];
        assert_eq!(
            checks(&found),
            "CHECK           FOUND\n\
             QEMU   ok       10.0.2\n\
             taps   MISSING  no /dev/net/tun\n\
             \n\
             taps: load the kernel module tun\n\
             \n\
             This machine cannot be a host as it is.\n"
        );
    }
}
