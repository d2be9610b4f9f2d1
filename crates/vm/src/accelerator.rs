//! Which accelerator a host's VMs get: decided by the CPU and by a trial, never by the presence of `/dev/kvm`.
//!
//! Where a CPU has no virtualisation of its own, the device may be there all the same (nested hosts, containers), and
//! QEMU starts with it, only to crawl or to abort.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use limosa_model::host::Accelerator;
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::timeout;

/// How long firmware may take to its first word. It takes some tens of milliseconds.
const TRIAL_LIMIT: Duration = Duration::from_secs(3);
/// What SeaBIOS says first on its debug port.
const FIRST_WORD: &[u8] = b"SeaBIOS";

/// The accelerator for this host's VMs, and why.
pub async fn accelerator(qemu: &Path) -> (Accelerator, String) {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let Some(flag) = virtualisation_flag(&cpuinfo) else {
        return (Accelerator::Tcg, "the CPU has neither vmx nor svm".into());
    };
    if let Err(e) = OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        return (Accelerator::Tcg, format!("the CPU has {flag}, but /dev/kvm cannot be used: {e}"));
    }
    match firmware_speaks(qemu, "kvm").await {
        Ok(()) => (Accelerator::Kvm, format!("the CPU has {flag}, and a trial VM ran")),
        Err(why) => (Accelerator::Tcg, format!("the CPU has {flag}, but a trial VM did not run: {why}")),
    }
}

fn virtualisation_flag(cpuinfo: &str) -> Option<&'static str> {
    let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags")?.split_once(':'))?.1;
    ["vmx", "svm"].into_iter().find(|wanted| flags.split_whitespace().any(|flag| flag == *wanted))
}

/// Starts a small machine, and waits for its firmware to speak.
async fn firmware_speaks(qemu: &Path, accelerator: &str) -> Result<(), String> {
    let mut trial = Command::new(qemu)
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-machine", "pc", "-m", "16"])
        .args(["-accel", accelerator])
        .args(["-chardev", "stdio,id=words,signal=off", "-device", "isa-debugcon,iobase=0x402,chardev=words"])
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| format!("{} does not start: {e}", qemu.display()))?;
    let mut words = trial.stdout.take().expect("it was asked for");
    let listen = async {
        let mut heard: Vec<u8> = Vec::new();
        while !heard.windows(FIRST_WORD.len()).any(|window| window == FIRST_WORD) {
            let mut chunk = [0; 256];
            match words.read(&mut chunk).await {
                Ok(0) => return Err("it ended".to_owned()),
                Ok(count) if heard.len() < 4096 => heard.extend(&chunk[..count]),
                Ok(_) => return Err("its firmware says something else than expected".to_owned()),
                Err(e) => return Err(e.to_string()),
            }
        }
        Ok(())
    };
    let heard = timeout(TRIAL_LIMIT, listen)
        .await
        .unwrap_or_else(|_| Err(format!("its firmware said nothing in {} s", TRIAL_LIMIT.as_secs())));
    if let Err(e) = trial.kill().await {
        tracing::debug!(error = %e, "the trial VM could not be ended");
    }
    heard
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtualisation_is_a_flag_of_its_own() {
        let cpuinfo =
            |flags: &str| format!("processor\t: 0\nmodel name\t: vmx\nflags\t\t: {flags}\nbugs\t\t: svm\n");
        assert_eq!(virtualisation_flag(&cpuinfo("fpu vmx sse")), Some("vmx"));
        assert_eq!(virtualisation_flag(&cpuinfo("fpu svm")), Some("svm"));
        assert_eq!(virtualisation_flag(&cpuinfo("fpu svm_lock xvmx")), None);
        assert_eq!(virtualisation_flag(""), None);
    }

    #[tokio::test]
    async fn a_trial_tells_a_machine_that_runs_from_one_that_does_not() {
        let qemu = Path::new("/usr/bin/qemu-system-x86_64");
        if !qemu.exists() {
            assert!(std::env::var_os("CI").is_none(), "this test needs QEMU, and CI must run it");
            eprintln!("SKIPPED: {} is not installed", qemu.display());
            return;
        }
        assert_eq!(firmware_speaks(qemu, "tcg").await, Ok(()));
        assert_eq!(firmware_speaks(qemu, "no-such-accelerator").await, Err("it ended".into()));
        assert!(firmware_speaks(Path::new("/nonexistent"), "tcg").await.is_err());
    }
}
