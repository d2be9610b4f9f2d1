//! What the kernel's command line sets. Unknown words are the kernel's and are passed over; a value that
//! cannot be read leaves the default in place and is named on the console.
//!
//! | word | default | meaning |
//! |---|---|---|
//! | `limosa.ip=10.77.0.50/24` | none | address of `eth0` |
//! | `limosa.mac=52:54:00:…` | as found | MAC address of `eth0` |
//! | `limosa.fill_mib=` | 64 | memory that is stamped |
//! | `limosa.dirty_mib_s=` | 8 | how fast it is rewritten |
//! | `limosa.verify_mib_s=` | 64 | how fast it is checked |
//! | `limosa.disk=1` | 0 | stamp `/dev/vda` too |
//! | `limosa.disk_mib=` | 16 | how much of it |
//! | `limosa.disk_writes_s=` | 40 | how often |

use std::net::Ipv4Addr;

use crate::console;
use crate::json_string;

/// Never more than this is stamped, whatever was asked: 64 GiB.
const FILL_LIMIT_MIB: u64 = 64 * 1024;

/// What was asked for on the kernel's command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) ip: Option<(Ipv4Addr, u8)>,
    pub(crate) mac: Option<[u8; 6]>,
    pub(crate) fill_mib: u64,
    pub(crate) dirty_mib_s: u64,
    pub(crate) verify_mib_s: u64,
    pub(crate) disk: bool,
    pub(crate) disk_mib: u64,
    pub(crate) disk_writes_s: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            ip: None,
            mac: None,
            fill_mib: 64,
            dirty_mib_s: 8,
            verify_mib_s: 64,
            disk: false,
            disk_mib: 16,
            disk_writes_s: 40,
        }
    }
}

impl Settings {
    pub(crate) fn parse(command_line: &str) -> Self {
        let mut settings = Self::default();
        for word in command_line.split_ascii_whitespace() {
            let Some((key, value)) = word.strip_prefix("limosa.").and_then(|word| word.split_once('='))
            else {
                continue;
            };
            if settings.set(key, value).is_none() {
                console("setting-ignored", &format!("\"setting\":{}", json_string(word)));
            }
        }
        settings
    }

    fn set(&mut self, key: &str, value: &str) -> Option<()> {
        match key {
            "ip" => self.ip = Some(address(value)?),
            "mac" => self.mac = Some(mac(value)?),
            "fill_mib" => {
                self.fill_mib = value.parse().ok().filter(|mib| (1..=FILL_LIMIT_MIB).contains(mib))?
            }
            "dirty_mib_s" => self.dirty_mib_s = value.parse().ok()?,
            "verify_mib_s" => self.verify_mib_s = value.parse().ok()?,
            "disk" => self.disk = value == "1",
            "disk_mib" => self.disk_mib = value.parse().ok().filter(|mib| (1..=1024).contains(mib))?,
            "disk_writes_s" => self.disk_writes_s = value.parse().ok().filter(|rate| *rate <= 10_000)?,
            _ => return None,
        }
        Some(())
    }
}

fn address(text: &str) -> Option<(Ipv4Addr, u8)> {
    let (ip, prefix) = text.split_once('/')?;
    Some((ip.parse().ok()?, prefix.parse().ok().filter(|bits| (1..=32).contains(bits))?))
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let mut octets = [0; 6];
    let mut parts = text.split(':');
    for octet in &mut octets {
        *octet = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(octets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_read_and_the_kernels_words_are_passed_over() {
        let line = "console=ttyS0 quiet limosa.ip=10.77.0.50/24 limosa.mac=52:54:00:00:00:01 limosa.fill_mib=128 \
                    limosa.dirty_mib_s=50 limosa.verify_mib_s=9 limosa.disk=1 limosa.disk_mib=32 limosa.disk_writes_s=5";
        assert_eq!(
            Settings::parse(line),
            Settings {
                ip: Some((Ipv4Addr::new(10, 77, 0, 50), 24)),
                mac: Some([0x52, 0x54, 0, 0, 0, 1]),
                fill_mib: 128,
                dirty_mib_s: 50,
                verify_mib_s: 9,
                disk: true,
                disk_mib: 32,
                disk_writes_s: 5,
            }
        );
    }

    #[test]
    fn rubbish_leaves_the_defaults() {
        let line = "limosa.ip=10.77.0.50 limosa.ip=10.77.0.300/24 limosa.ip=1.2.3.4/33 limosa.mac=52:54:00 \
                    limosa.fill_mib=-1 limosa.fill_mib=0 limosa.disk_mib=99999999999999999999 limosa. limosa.x=y";
        assert_eq!(Settings::parse(line), Settings::default());
    }
}
