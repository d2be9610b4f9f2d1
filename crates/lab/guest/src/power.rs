//! How the guest ends: the power button (ACPI, seen as a key of an input device), or a command.

use std::fs::{self, File};
use std::io::{self, Read};

use crate::{console, json_string, network, sys};

/// `struct input_event`: a time of two words, a type and a code of 16 bits, a value of 32.
const EVENT_BYTES: usize = 24;
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;

/// Powers the machine off. Returns only if the kernel refuses.
pub(crate) fn off() {
    console("poweroff", "");
    network::take_down();
    sys::reboot(libc::RB_POWER_OFF);
}

/// Restarts the machine.
pub(crate) fn reboot() {
    console("reboot", "");
    network::take_down();
    sys::reboot(libc::RB_AUTOBOOT);
}

/// Makes the kernel panic, as a fault of its own would.
pub(crate) fn panic() -> io::Result<()> {
    console("panic", "");
    fs::write("/proc/sysrq-trigger", "c")
}

/// Waits until the power button is pressed. Without a button it waits for ever: commands still end the guest.
pub(crate) fn wait_for_button() -> io::Result<()> {
    let mut devices = Vec::new();
    for entry in fs::read_dir("/dev/input").into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("event") {
            devices.push(File::open(entry.path())?);
        }
    }
    if devices.is_empty() {
        console(
            "no-power-button",
            &format!("\"hint\":{}", json_string("modules button and evdev are needed")),
        );
    }
    loop {
        let readable = sys::poll_readable(&devices)?;
        for (device, _) in devices.iter_mut().zip(readable).filter(|(_, ready)| *ready) {
            let mut event = [0; EVENT_BYTES];
            device.read_exact(&mut event)?;
            if is_power_press(&event) {
                console("power-button", "");
                return Ok(());
            }
        }
    }
}

fn is_power_press(event: &[u8; EVENT_BYTES]) -> bool {
    let short = |at: usize| u16::from_ne_bytes([event[at], event[at + 1]]);
    short(16) == EV_KEY && short(18) == KEY_POWER && event[20..] == 1_i32.to_ne_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: u16, code: u16, value: i32) -> [u8; EVENT_BYTES] {
        let mut event = [0; EVENT_BYTES];
        event[16..18].copy_from_slice(&kind.to_ne_bytes());
        event[18..20].copy_from_slice(&code.to_ne_bytes());
        event[20..].copy_from_slice(&value.to_ne_bytes());
        event
    }

    #[test]
    fn only_a_press_of_the_power_key_counts() {
        assert!(is_power_press(&event(EV_KEY, KEY_POWER, 1)));
        assert!(!is_power_press(&event(EV_KEY, KEY_POWER, 0)), "a release");
        assert!(!is_power_press(&event(EV_KEY, 30, 1)), "another key");
        assert!(!is_power_press(&event(0, 0, 0)), "a synchronisation event");
    }
}
