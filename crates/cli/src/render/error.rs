//! A failure as one readable paragraph: what, why, where the VM is, what to do next.

use limosa_api::client::CallError;
use limosa_model::{FailureKind, Outcome, Phase};

use super::{capital, sentence, wrap};
use crate::error::CliError;

const WIDTH: usize = 100;

/// The paragraph that is printed when a command fails; nothing where all has been told.
pub fn error(error: &CliError) -> String {
    let text = match error {
        CliError::Refused(problem) => {
            tell(&problem.detail, Some(problem.code), problem.phase, problem.outcome, &problem.remedy)
        }
        CliError::Failed { doing, failure, outcome } => tell(
            &format!("cannot {doing}: {}", failure.what),
            Some(failure.kind),
            failure.phase,
            *outcome,
            &failure.remedy,
        ),
        CliError::Call(CallError::Unreachable { address, .. }) => tell(
            &error.to_string(),
            None,
            None,
            None,
            &format!(
                "check that the server runs at {address}, and that `--ca` names its cluster's authority"
            ),
        ),
        CliError::Call(_) => tell(
            &error.to_string(),
            None,
            None,
            None,
            "check that `limosa` and the server have the same version",
        ),
        CliError::Invalid { what, remedy } => tell(what, None, None, None, remedy),
        CliError::Told { .. } => return String::new(),
        CliError::Interrupted { tasks } => {
            let follow: Vec<_> = tasks.iter().map(|task| format!("`limosa task watch {task}`")).collect();
            return format!("What was begun goes on. Follow it with {}.", follow.join(", "));
        }
        CliError::File { .. } | CliError::Tls(_) | CliError::Stream { .. } | CliError::Daemon { .. } => {
            tell(&error.to_string(), None, None, None, "")
        }
    };
    wrap(&format!("error: {text}"), WIDTH)
}

fn tell(
    what: &str,
    kind: Option<FailureKind>,
    phase: Option<Phase>,
    outcome: Option<Outcome>,
    remedy: &str,
) -> String {
    let mut text = what.trim_end_matches('.').to_owned();
    match (kind, phase) {
        (Some(kind), Some(phase)) => text += &format!(" ({kind}, in phase {phase})"),
        (Some(kind), None) => text += &format!(" ({kind})"),
        (None, _) => {}
    }
    text = sentence(&text);
    if let Some(outcome) = outcome {
        text += &format!(" {}", sentence(&capital(&outcome.to_string())));
    }
    if !remedy.is_empty() {
        text += &format!(" What to do: {}", sentence(remedy));
    }
    text
}

#[cfg(test)]
mod tests {
    use limosa_api::Problem;
    use limosa_model::Failure;

    use super::*;

    #[test]
    fn a_failed_migration_says_what_why_where_the_vm_is_and_what_to_do() {
        let failure = Failure::new(
            FailureKind::NotConverging,
            "the guest dirties 1.2 Gbit/s and the link carries 200 Mbit/s",
            "allow more downtime with `--max-downtime`, or move it when it is less busy",
        )
        .during(Phase::Transfer);
        let failed = CliError::Failed {
            doing: "migrate web".into(),
            failure,
            outcome: Some(Outcome::RunningOnSource),
        };
        assert_eq!(
            error(&failed),
            "error: cannot migrate web: the guest dirties 1.2 Gbit/s and the link carries 200 Mbit/s\n\
             (not-converging, in phase transfer). The VM runs on the source. What to do: allow more downtime with\n\
             `--max-downtime`, or move it when it is less busy."
        );
        assert_eq!(failed.exit_code(), 25);
    }

    #[test]
    fn a_refusal_is_the_servers_own_words() {
        let problem = Problem::new(FailureKind::NotFound, "there is no VM web", "see `limosa vm list`");
        let refused = CliError::Refused(Box::new(problem));
        assert_eq!(
            error(&refused),
            "error: there is no VM web (not-found). What to do: see `limosa vm list`."
        );
        assert_eq!(refused.exit_code(), 11);
    }

    #[test]
    fn a_server_that_is_away_is_named() {
        let source = std::io::Error::other("connection refused");
        let away =
            CliError::from(CallError::Unreachable { address: "10.0.0.1:7600".into(), source: source.into() });
        assert_eq!(
            error(&away),
            "error: 10.0.0.1:7600 does not answer: connection refused. What to do: check that the server runs at\n\
             10.0.0.1:7600, and that `--ca` names its cluster's authority."
        );
        assert_eq!(away.exit_code(), 3);
    }
}
