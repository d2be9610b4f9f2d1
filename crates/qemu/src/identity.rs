//! By what an agent recognises its QEMUs after a restart, or after the loss of its journal.
//!
//! VM id, epoch and, for a QEMU that was started to receive one, the migration stand on the command line as the
//! name of a character device that leads nowhere: `-chardev null,id=limosa.VM.EPOCH[.MIGRATION]`. The guest
//! sees nothing of it, it is no part of the VM's state, every QEMU takes it, `/proc/PID/cmdline` shows it to
//! whoever may see the process, and QMP tells it as well ([`Qmp::query_identity`](crate::Qmp::query_identity)).
//!
//! It is always the first option, and it is looked for there only: no name or path that a user chose can pass
//! for it. A process can rewrite its own command line, so it is a claim, to be believed of processes that are
//! known to be ours (their cgroup, user and monitor socket).

use crate::Error;

const PREFIX: &str = "limosa.";
const OPTION: &str = "-chardev";
const DEVICE: &str = "null,id=";
/// The longest id of a VM or a migration: several times a UUID.
const ID_LIMIT_BYTES: usize = 128;

/// Which VM a QEMU is, and by which right.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The VM's id.
    pub vm: String,
    /// The epoch under which this QEMU was started.
    pub epoch: u64,
    /// The migration that it was started to receive.
    pub migration: Option<String>,
}

impl Identity {
    /// The first two arguments behind the binary.
    pub(crate) fn arguments(&self) -> Result<[String; 2], Error> {
        for (what, id) in [("VM id", Some(&self.vm)), ("migration id", self.migration.as_ref())] {
            if let Some(id) = id.filter(|id| !is_id(id)) {
                return Err(Error::invalid(what, id, "1 to 128 letters, digits, '-' and '_' are expected"));
            }
        }
        let mut label = format!("{PREFIX}{}.{}", self.vm, self.epoch);
        if let Some(migration) = &self.migration {
            label = format!("{label}.{migration}");
        }
        Ok([OPTION.to_owned(), format!("{DEVICE}{label}")])
    }

    /// Reads the name of the character device.
    pub(crate) fn from_label(label: &str) -> Option<Self> {
        let mut parts = label.strip_prefix(PREFIX)?.split('.');
        let vm = parts.next().filter(|id| is_id(id))?.to_owned();
        let digits = parts.next()?;
        let epoch = digits.parse::<u64>().ok().filter(|epoch| epoch.to_string() == digits)?;
        let migration = parts.next().map(|id| is_id(id).then(|| id.to_owned()));
        if migration == Some(None) || parts.next().is_some() {
            return None;
        }
        Some(Self { vm, epoch, migration: migration.flatten() })
    }
}

/// Reads what `/proc/PID/cmdline` holds: arguments that each end in a zero byte. `None`: not a QEMU of Limosa's.
pub fn parse_identity(cmdline: &[u8]) -> Option<Identity> {
    let mut arguments = cmdline.split(|byte| *byte == 0).skip(1);
    if arguments.next()? != OPTION.as_bytes() {
        return None;
    }
    Identity::from_label(std::str::from_utf8(arguments.next()?).ok()?.strip_prefix(DEVICE)?)
}

fn is_id(id: &str) -> bool {
    (1..=ID_LIMIT_BYTES).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cmdline(arguments: &[&str]) -> Vec<u8> {
        arguments.iter().flat_map(|argument| [argument.as_bytes(), b"\0"].concat()).collect()
    }

    #[test]
    fn an_identity_comes_back_from_the_command_line() {
        for migration in [None, Some("0190f3c2-3c8e-7bbb-8e5f-111111111111".to_owned())] {
            let identity = Identity { vm: "0190f3c2-3c8e-7aaa".into(), epoch: u64::MAX, migration };
            let [option, value] = identity.arguments().unwrap();
            assert_eq!(parse_identity(&cmdline(&["qemu", &option, &value, "-S"])), Some(identity));
        }
    }

    proptest::proptest! {
        #[test]
        fn whatever_is_taken_comes_back_and_nothing_panics(vm: String, epoch: u64, migration: Option<String>) {
            let identity = Identity { vm, epoch, migration };
            if let Ok([option, value]) = identity.arguments() {
                assert_eq!(parse_identity(&cmdline(&["qemu", &option, &value])), Some(identity));
            }
        }

        #[test]
        fn whatever_is_read_would_be_written_so(label in "limosa(\\.[a-z0-9_.-]{0,4}){0,4}") {
            if let Some(identity) = Identity::from_label(&label) {
                assert_eq!(identity.arguments().unwrap()[1], format!("{DEVICE}{label}"));
            }
        }
    }

    #[test]
    fn what_would_not_come_back_is_refused() {
        let long = "x".repeat(129);
        for vm in ["", "a.b", "a,b", "a b", "ä", &long] {
            let identity = Identity { vm: vm.into(), epoch: 1, migration: None };
            assert!(matches!(identity.arguments(), Err(Error::Invalid { .. })), "{vm:?}");
        }
    }

    #[test]
    fn only_the_first_option_counts() {
        let device = "null,id=limosa.web.1";
        assert!(parse_identity(&cmdline(&["qemu", "-chardev", device])).is_some());
        assert_eq!(parse_identity(&cmdline(&["qemu", "-S", "-chardev", device])), None);
        assert_eq!(parse_identity(&cmdline(&["qemu", "-name", "-chardev", device])), None);
    }

    #[test]
    fn rubbish_is_nobody() {
        for device in
            ["", "null,id=limosa", "null,id=limosa.web", "null,id=limosa.web.x", "null,id=limosa..1"]
        {
            assert_eq!(parse_identity(&cmdline(&["qemu", "-chardev", device])), None, "{device}");
        }
        for device in [
            "null,id=limosa.web.+1",
            "null,id=limosa.web.01",
            "null,id=limosa.web.1.",
            "null,id=limosa.w.1.m.x",
        ] {
            assert_eq!(parse_identity(&cmdline(&["qemu", "-chardev", device])), None, "{device}");
        }
        for bytes in [&b""[..], b"\0", b"\0\0\0", b"qemu", b"qemu\0-chardev", b"qemu\0-chardev\0\xff\0"] {
            assert_eq!(parse_identity(bytes), None);
        }
    }
}
