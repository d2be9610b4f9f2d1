//! The guest that proves its own memory: PID 1 of a small Linux that runs nothing else.
//!
//! It fills memory with pages that say where and when they were written, keeps rewriting them, and checks
//! every one of them for ever; it does the same with blocks of a disk, watches its clocks for jumps, echoes
//! TCP on port 7, and answers questions about all of it on port 9000 (see [`control`]). A virtual machine
//! monitor that loses, misplaces or revives a single page under it is found out.
//!
//! Everything is set on the kernel's command line (see [`settings`]). Each step of the boot is one line of
//! JSON on the console. What cannot be set up is said there and left out; only memory that cannot be had is
//! fatal, and ends in a power-off.

mod clock;
mod control;
mod disk;
mod echo;
mod memory;
mod modules;
mod network;
mod power;
mod settings;
mod stamp;
mod sys;

use std::fs;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use settings::Settings;

fn main() {
    if std::process::id() != 1 {
        eprintln!("limosa-lab-guest is the init of a lab guest and must be PID 1; start it with a kernel");
        return;
    }
    if let Err(error) = boot() {
        console("failed", &format!("\"error\":{}", json_string(&error.to_string())));
    }
    // PID 1 must not return: the kernel would panic.
    power::off();
}

/// Brings everything up, then waits for a reason to power off.
fn boot() -> io::Result<()> {
    for (kind, place) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        fs::create_dir_all(place)?;
        sys::mount(kind, place)?;
    }
    let settings = Settings::parse(&fs::read_to_string("/proc/cmdline")?);
    modules::load_all();
    if let Err(error) = network::configure(&settings) {
        console("network-failed", &format!("\"error\":{}", json_string(&error.to_string())));
    }

    let seed = random_seed()?;
    let clock = clock::watch()?;
    let memory = memory::start(&settings, seed)?;
    let disk = if settings.disk { disk::start(&settings, seed) } else { None };
    let guest = Arc::new(control::Guest { boot_id: boot_id()?, memory, disk, clock });

    echo::serve()?;
    control::serve(guest)?;
    console("ready", &format!("\"uptime_ms\":{}", sys::monotonic_ns() / 1_000_000));
    power::wait_for_button()
}

/// Writes one line, `limosa-guest {"event":…}`, to the console.
pub(crate) fn console(event: &str, fields: &str) {
    let comma = if fields.is_empty() { "" } else { "," };
    // A console that is gone is no reason to stop.
    let _ = writeln!(io::stdout(), "limosa-guest {{\"event\":{}{comma}{fields}}}", json_string(event));
}

/// The text as a JSON string, quotes included.
pub(crate) fn json_string(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            control if control.is_control() => quoted.push_str(&format!("\\u{:04x}", u32::from(control))),
            plain => quoted.push(plain),
        }
    }
    quoted.push('"');
    quoted
}

/// Locks, whatever happened to another holder: what is guarded here is plain counters.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a named thread with a stack of its own small size: the guest has little memory to spare.
pub(crate) fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).stack_size(128 * 1024).spawn(body).map(drop)
}

/// The kernel makes one at each boot: it tells this run of the guest from every other.
fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

fn random_seed() -> io::Result<u64> {
    let id = boot_id()?;
    let digits: String = id.chars().filter(char::is_ascii_hexdigit).take(16).collect();
    u64::from_str_radix(&digits, 16).map_err(|error| io::Error::other(format!("boot id `{id}`: {error}")))
}

#[cfg(test)]
mod tests {
    use super::json_string;

    #[test]
    fn json_strings_escape_quotes_backslashes_and_control_characters() {
        assert_eq!(json_string("a\"b\\c\n"), "\"a\\\"b\\\\c\\u000a\"");
    }
}
