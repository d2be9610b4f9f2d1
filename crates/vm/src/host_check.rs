//! What a host can do, and what is missing: the answer to `limosa host check`.

use std::fs;
use std::io;
use std::path::Path;

use limosa_model::host::Accelerator;
use rustix::process::{Resource, geteuid, getrlimit};
use rustix::system::uname;
use serde::Serialize;

use crate::host_facts::{ask, parse_version, pinned_machine_types};
use crate::{QemuUser, accelerator, cgroup, memory};

/// The kernel from which on guest memory can be tracked from outside QEMU.
const TRACKING_KERNEL: (u32, u32) = (6, 7);
/// Descriptors that an agent with some hundred VMs needs.
const DESCRIPTORS_WANTED: u64 = 8192;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Limosa works, and something is worse than it could be.
    Warn,
    /// Limosa does not work without it.
    Missing,
}

/// One thing that a host needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HostCheck {
    /// What it is.
    pub name: &'static str,
    /// How it came out.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it; empty where nothing is to be done.
    pub remedy: &'static str,
}

/// Looks at everything that Limosa needs of a host. `user` is whom QEMU is to run as.
pub async fn check_host(qemu: &Path, user: QemuUser) -> Vec<HostCheck> {
    let mut checks = vec![qemu_version(qemu).await, machine_types(qemu).await, virtualisation(qemu).await];
    checks.extend([
        tun(),
        memfd(),
        cgroups(),
        kernel(),
        userfaultfd(),
        shared_huge_pages(),
        descriptors(),
        unprivileged_user(user),
    ]);
    checks
}

fn check(name: &'static str, verdict: Verdict, found: impl Into<String>, remedy: &'static str) -> HostCheck {
    let remedy = if verdict == Verdict::Ok { "" } else { remedy };
    HostCheck { name, verdict, found: found.into(), remedy }
}

async fn qemu_version(qemu: &Path) -> HostCheck {
    let remedy =
        "install QEMU 10 (Debian 12: qemu-system-x86 from bookworm-backports); 7.2 is the oldest that works";
    match ask(qemu, &["--version"]).await {
        Ok(answer) => match parse_version(&answer) {
            Some(version) if version < (7, 2) => check("QEMU", Verdict::Missing, first_line(&answer), remedy),
            Some(version) if version < (10, 0) => check("QEMU", Verdict::Warn, first_line(&answer), remedy),
            Some(_) => check("QEMU", Verdict::Ok, first_line(&answer), remedy),
            None => check("QEMU", Verdict::Missing, format!("not a QEMU: {}", first_line(&answer)), remedy),
        },
        Err(e) => check("QEMU", Verdict::Missing, format!("{}: {e}", qemu.display()), remedy),
    }
}

async fn machine_types(qemu: &Path) -> HostCheck {
    let remedy = "install a QEMU for x86-64 with the q35 machine";
    let answer = ask(qemu, &["-machine", "help"]).await;
    let types = answer.map(|answer| pinned_machine_types(&answer)).unwrap_or_default();
    match types.iter().find(|name| name.starts_with("pc-q35-")) {
        Some(newest) => check("machine types", Verdict::Ok, format!("up to {newest}"), remedy),
        None => check("machine types", Verdict::Missing, "no versioned q35", remedy),
    }
}

async fn virtualisation(qemu: &Path) -> HostCheck {
    let (chosen, reason) = accelerator::accelerator(qemu).await;
    match chosen {
        Accelerator::Kvm => check("KVM", Verdict::Ok, reason, ""),
        Accelerator::Tcg => check(
            "KVM",
            Verdict::Warn,
            format!("{reason}; guests are translated (tcg), which is slow"),
            "turn virtualisation on in the host's firmware, or use a host whose CPU has it",
        ),
    }
}

fn tun() -> HostCheck {
    let remedy = "load the kernel module tun, and run the agent as root";
    match fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => check("taps", Verdict::Ok, "/dev/net/tun", remedy),
        Err(e) => check("taps", Verdict::Missing, format!("/dev/net/tun: {e}"), remedy),
    }
}

fn memfd() -> HostCheck {
    match memory::create(limosa_model::ByteSize::mib(2)) {
        Ok(_) => check("guest memory", Verdict::Ok, "memfd with seals", ""),
        Err(e) => check("guest memory", Verdict::Missing, format!("memfd: {e}"), "use Linux 6.1 or later"),
    }
}

fn cgroups() -> HostCheck {
    let remedy = "boot with cgroup v2 alone (systemd.unified_cgroup_hierarchy=1)";
    match cgroup::mount() {
        Ok((path, controllers)) => check(
            "cgroup v2",
            Verdict::Ok,
            format!("{} ({})", path.display(), controllers.join(", ")),
            remedy,
        ),
        Err(why) => check("cgroup v2", Verdict::Warn, format!("{why}; VMs share the agent's cgroup"), remedy),
    }
}

fn kernel() -> HostCheck {
    let name = uname();
    let release = name.release().to_string_lossy();
    let remedy = "use Linux 6.7 or later; until then migrations use QEMU's own stream";
    let verdict = match parse_version(&release) {
        Some(version) if version >= TRACKING_KERNEL => Verdict::Ok,
        _ => Verdict::Warn,
    };
    check("kernel", verdict, release, remedy)
}

fn userfaultfd() -> HostCheck {
    let remedy = "use a kernel with CONFIG_USERFAULTFD, and run the agent as root";
    match fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd") {
        Ok(_) => check("userfaultfd", Verdict::Ok, "in the kernel", remedy),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            check("userfaultfd", Verdict::Warn, "not in the kernel", remedy)
        }
        Err(e) => check("userfaultfd", Verdict::Warn, e.to_string(), remedy),
    }
}

fn shared_huge_pages() -> HostCheck {
    const SETTING: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
    let remedy = "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled";
    let text = fs::read_to_string(SETTING).unwrap_or_default();
    match chosen(&text) {
        Some(setting @ ("always" | "advise" | "within_size" | "force")) => {
            check("huge pages for guest memory", Verdict::Ok, setting, remedy)
        }
        Some(setting) => check(
            "huge pages for guest memory",
            Verdict::Warn,
            format!("{setting}: guests are slower under KVM"),
            remedy,
        ),
        None => check("huge pages for guest memory", Verdict::Warn, "not in the kernel", remedy),
    }
}

fn descriptors() -> HostCheck {
    let remedy = "raise the limit of open files for the agent (LimitNOFILE=) to 8192 or more";
    match getrlimit(Resource::Nofile).maximum {
        Some(limit) if limit < DESCRIPTORS_WANTED => {
            check("open files", Verdict::Warn, limit.to_string(), remedy)
        }
        Some(limit) => check("open files", Verdict::Ok, limit.to_string(), remedy),
        None => check("open files", Verdict::Ok, "unlimited", remedy),
    }
}

fn unprivileged_user(user: QemuUser) -> HostCheck {
    let remedy =
        "create a system user for QEMU, name it in the agent's configuration, and run the agent as root";
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let QemuUser { uid, .. } = user;
    let found = match user_name(&users, uid) {
        Some(name) => format!("{name} ({uid})"),
        None => format!("{uid}, which has no name"),
    };
    let verdict = match uid {
        0 => Verdict::Missing,
        _ if !geteuid().is_root() && geteuid().as_raw() != uid => Verdict::Missing,
        _ if user_name(&users, uid).is_none() => Verdict::Warn,
        _ => Verdict::Ok,
    };
    check("user of QEMU", verdict, found, remedy)
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(120).collect()
}

/// The word in brackets, as in `always [never] advise`.
fn chosen(setting: &str) -> Option<&str> {
    setting.split_once('[')?.1.split_once(']').map(|(word, _)| word)
}

fn user_name(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_and_users_are_read_or_absent() {
        assert_eq!(chosen("always within_size advise [never] deny force\n"), Some("never"));
        assert_eq!(chosen("always [never"), None);
        let passwd = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/usr/sbin/nologin\nbroken\n";
        assert_eq!(user_name(passwd, 65534), Some("nobody"));
        assert_eq!(user_name(passwd, 7), None);
    }

    #[tokio::test]
    async fn a_host_without_qemu_is_told_how_to_get_it() {
        let user = QemuUser { uid: 0, gid: 0 };
        let checks = check_host(Path::new("/nonexistent"), user).await;
        let missing: Vec<_> =
            checks.iter().filter(|check| check.verdict == Verdict::Missing).map(|check| check.name).collect();
        assert_eq!(missing, ["QEMU", "machine types", "user of QEMU"]);
        assert!(checks.iter().all(|check| (check.verdict == Verdict::Ok) == check.remedy.is_empty()));
    }
}
