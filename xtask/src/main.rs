//! Checks of the workspace as a whole, for what no compiler holds.
//!
//! `cargo xtask cores` checks the architecture: dependencies point downwards, and the pure crates name no runtime,
//! socket, file or clock. `cargo xtask docs` checks that the documents speak of what is there. The tests beside
//! them run the same checks, so `make test` does too.

mod arrows;
mod documents;
mod purity;
mod workspace;

use std::process::ExitCode;

use workspace::Workspace;

const USAGE: &str = "usage: cargo xtask cores|docs";

fn main() -> ExitCode {
    let argument = std::env::args().nth(1);
    let found = match argument.as_deref() {
        Some("cores") => cores(),
        Some("docs") => docs(),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(64);
        }
    };
    match found {
        Ok(faults) if faults.is_empty() => ExitCode::SUCCESS,
        Ok(faults) => {
            for fault in faults {
                eprintln!("{fault}");
            }
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn cores() -> anyhow::Result<Vec<String>> {
    let workspace = Workspace::read()?;
    let mut faults = arrows::faults(&workspace);
    faults.extend(purity::faults(&workspace)?);
    Ok(faults)
}

fn docs() -> anyhow::Result<Vec<String>> {
    documents::faults(&Workspace::read()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_point_downwards_and_the_cores_are_pure() {
        assert_eq!(cores().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn documents_name_what_is_there() {
        assert_eq!(docs().unwrap(), Vec::<String>::new());
    }
}
