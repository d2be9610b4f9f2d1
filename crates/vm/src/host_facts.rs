//! What a host is: its kernel, QEMU, CPU and capacity, for the server to place VMs by.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use limosa_model::{ByteSize, Capacity, HostFacts};
use rustix::system::uname;
use tokio::process::Command;
use tokio::time::timeout;

use crate::{VmError, accelerator};

/// How long QEMU may take to tell of itself.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// What QEMU and the host need beside the guests' memory.
const RESERVED: ByteSize = ByteSize::mib(512);

/// Gathers the facts about this host. Its capacity is all memory but a reserve, and all CPUs; where that is not what
/// VMs may have, the caller sets another.
///
/// # Errors
/// [`VmError::System`] when there is no QEMU to ask.
pub async fn host_facts(qemu: &Path, limosa_version: &str) -> Result<HostFacts, VmError> {
    let failed = |e| VmError::system(format!("ask {} what it is", qemu.display()), e);
    let version = ask(qemu, &["--version"]).await.map_err(failed)?;
    let machines = ask(qemu, &["-machine", "help"]).await.map_err(failed)?;
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let (accelerator, _) = accelerator::accelerator(qemu).await;
    Ok(HostFacts {
        limosa_version: limosa_version.to_owned(),
        kernel: uname().release().to_string_lossy().into_owned(),
        qemu_version: full_version(&version).unwrap_or_default(),
        machine_types: pinned_machine_types(&machines),
        accelerator,
        cpu_model: cpu_fact(&cpuinfo, "model name").unwrap_or_default().to_owned(),
        cpu_flags: sorted_words(cpu_fact(&cpuinfo, "flags").unwrap_or_default()),
        capacity: capacity(&fs::read_to_string("/proc/meminfo").unwrap_or_default()),
    })
}

/// What a program prints, with a limit on its time.
pub(crate) async fn ask(program: &Path, arguments: &[&str]) -> io::Result<String> {
    let output = Command::new(program).args(arguments).env_clear().kill_on_drop(true).output();
    let Output { status, stdout, .. } =
        timeout(ANSWER_LIMIT, output).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    if !status.success() {
        return Err(io::Error::other(status.to_string()));
    }
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}

/// The first `MAJOR.MINOR` in a text.
pub(crate) fn parse_version(text: &str) -> Option<(u32, u32)> {
    text.split(|c: char| !c.is_ascii_digit() && c != '.').find_map(|word| {
        let mut numbers = word.split('.').map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    })
}

/// The pinned machine types in the answer to `-machine help`, each chipset's newest first.
pub(crate) fn pinned_machine_types(machines: &str) -> Vec<String> {
    let names = machines.lines().filter_map(|line| line.split_whitespace().next());
    let mut types: Vec<_> = names
        .filter_map(|name| {
            let chipset = ["pc-q35-", "pc-i440fx-"].into_iter().find(|chipset| name.starts_with(chipset))?;
            Some((chipset, parse_version(&name[chipset.len()..])?, name.to_owned()))
        })
        .collect();
    types.sort_unstable_by(|one, other| other.cmp(one));
    types.into_iter().map(|(_, _, name)| name).collect()
}

/// `MAJOR.MINOR.MICRO` in `QEMU emulator version 10.0.2 (Debian …)`.
fn full_version(answer: &str) -> Option<String> {
    let version = answer.split_once("version ")?.1.split_whitespace().next()?;
    parse_version(version).map(|_| version.to_owned())
}

fn cpu_fact<'a>(cpuinfo: &'a str, key: &str) -> Option<&'a str> {
    let mut facts = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    facts.find(|(name, _)| name.trim() == key).map(|(_, value)| value.trim())
}

fn sorted_words(text: &str) -> Vec<String> {
    let mut words: Vec<_> = text.split_whitespace().map(str::to_owned).collect();
    words.sort_unstable();
    words
}

fn capacity(meminfo: &str) -> Capacity {
    let total_kib = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok())
        .unwrap_or(0u64);
    let cpus =
        std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(1));
    let all = Capacity { memory: ByteSize::bytes(total_kib.saturating_mul(1024)), cpus };
    all.less(Capacity { memory: RESERVED, cpus: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_programs_print() {
        let answer = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright (c) 2003-2025";
        assert_eq!(parse_version(answer), Some((10, 0)));
        assert_eq!(full_version(answer).as_deref(), Some("10.0.2"));
        assert_eq!(parse_version("6.18.44-fc-v657"), Some((6, 18)));
        for rubbish in ["", "QEMU", "version", "version ", "...", "99999999999.1"] {
            assert_eq!(parse_version(rubbish), None, "{rubbish}");
            assert_eq!(full_version(rubbish), None, "{rubbish}");
        }
    }

    #[test]
    fn machine_types_are_ordered_by_number_and_only_pinned_ones_count() {
        let machines = "Supported machines are:\npc  alias of pc-i440fx-10.0\npc-i440fx-10.0  Standard PC\n\
                        pc-q35-9.2  Standard PC\npc-q35-10.0  Standard PC\nq35  alias\npc-q35-é\n";
        assert_eq!(pinned_machine_types(machines), ["pc-q35-10.0", "pc-q35-9.2", "pc-i440fx-10.0"]);
        assert!(pinned_machine_types("none").is_empty());
    }

    #[test]
    fn the_capacity_is_what_the_kernel_says_without_a_reserve() {
        assert_eq!(capacity("MemTotal:  1048576 kB\nMemFree: 1 kB\n").memory, ByteSize::mib(512));
        assert_eq!(capacity("MemTotal: rubbish").memory, ByteSize::bytes(0));
    }

    #[test]
    fn a_cpu_is_known_by_its_first_processor() {
        let cpuinfo = "processor\t: 0\nmodel name\t: A: CPU\nflags\t\t: sse fpu\n\nmodel name\t: B\n";
        assert_eq!(cpu_fact(cpuinfo, "model name"), Some("A: CPU"));
        assert_eq!(sorted_words(cpu_fact(cpuinfo, "flags").unwrap()), ["fpu", "sse"]);
        assert_eq!(cpu_fact("", "flags"), None);
    }
}
