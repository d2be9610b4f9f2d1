//! Benchmarks: what Limosa costs, side by side in one run with what it is built on.
//!
//! A benchmark prints its table and writes `target/bench/NAME.jsonl`, one [`Figure`] a line. It judges nothing and
//! never fails on a figure: only when something could not be measured.

mod by_agents;
mod by_qmp;
mod credentials;
mod gauge;
pub mod migrate;

use std::fs;
use std::path::{Path, PathBuf};

pub(crate) use by_agents::{ByAgents, Moved};
use clap::Subcommand;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::names::LabName;

/// The benchmarks.
#[derive(Debug, Clone, Subcommand)]
pub enum Benchmark {
    /// One guest moved by QMP alone, with and without QEMU's own TLS, and by Limosa.
    Migrate(migrate::Options),
}

/// Runs a benchmark in a lab of its own, of this name.
///
/// # Errors
/// When something could not be measured.
pub fn run(lab: &LabName, benchmark: &Benchmark) -> Result<()> {
    match benchmark {
        Benchmark::Migrate(options) => migrate::run(lab, options),
    }
}

/// One measured value.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    /// What was measured, from the general to the special: `migrate/1Gbit/limosa/total`.
    pub figure: String,
    /// The median of the runs.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// How many runs there were.
    pub runs: usize,
    /// What it is a ratio or a difference to.
    pub against: Option<&'static str>,
}

/// Writes the figures of a benchmark to `target/bench/NAME.jsonl`, in place of those of the run before. Gives the
/// file's path.
///
/// # Errors
/// When it cannot be written.
pub fn write_figures(name: &str, figures: &[Figure]) -> Result<PathBuf> {
    let folder = target_folder().join("bench");
    fs::create_dir_all(&folder).map_err(Error::path("create", &folder))?;
    let path = folder.join(format!("{name}.jsonl"));
    let mut text = String::new();
    for figure in figures {
        let line = serde_json::to_string(figure).map_err(std::io::Error::from);
        text.push_str(&line.map_err(Error::path("write", &path))?);
        text.push('\n');
    }
    fs::write(&path, text).map_err(Error::path("write", &path))?;
    Ok(path)
}

/// The folder of what is built and measured: `CARGO_TARGET_DIR`, or `target` of the workspace.
pub(crate) fn target_folder() -> PathBuf {
    let told = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
    told.unwrap_or_else(|| workspace.expect("this crate lies two folders below the workspace").join("target"))
}

/// How a program was built, by the folder in which cargo puts it: `release`, or `debug` for the profile `dev`.
pub(crate) fn profile_of(program: &Path) -> String {
    let mut folders = program.iter().map(|part| part.to_string_lossy().into_owned());
    let profile = folders.find(|part| part == "target").and_then(|_| folders.next());
    profile.unwrap_or_else(|| "unknown".to_owned())
}

/// The middle one; the mean of the two middle ones where there is none. 0 of nothing.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_not_moved_by_one_run_that_stalled() {
        assert_eq!(median(&[1.0, 900.0, 2.0]), 2.0);
        assert_eq!(median(&[1.0, 2.0, 3.0, 900.0]), 2.5);
        assert_eq!(median(&[]), 0.0);
    }

    #[test]
    fn a_programs_profile_is_read_from_where_cargo_puts_it() {
        assert_eq!(profile_of(Path::new("/x/target/release/limosa")), "release");
        assert_eq!(profile_of(Path::new("target/debug/examples/limosa")), "debug");
        assert_eq!(profile_of(Path::new("/usr/bin/limosa")), "unknown");
    }

    #[test]
    fn a_figure_is_one_line_with_the_keys_that_readers_expect() {
        let figure =
            Figure { figure: "migrate/x".into(), value: 1.5, unit: "ms", runs: 5, against: Some("qemu") };
        let line = serde_json::to_string(&figure).unwrap();
        assert_eq!(line, r#"{"figure":"migrate/x","value":1.5,"unit":"ms","runs":5,"against":"qemu"}"#);
    }
}
