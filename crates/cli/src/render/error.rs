//! A failure as one readable paragraph: what, why, where the VM is, what to do next.

use limosa_api::client::CallError;
use limosa_model::{FailureKind, Outcome, Phase};
use serde::Serialize;

use super::{capital, plain, sentence, wrap};
use crate::error::CliError;

const WIDTH: usize = 100;

/// What is told of a failure: to people as a paragraph, to programs as an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Account {
    /// What was being done and what happened.
    pub what: String,
    /// What kind of failure it is, where the cluster decided that.
    pub code: Option<FailureKind>,
    /// The phase of the migration in which it happened.
    pub phase: Option<Phase>,
    /// Where the VM is.
    pub outcome: Option<Outcome>,
    /// What to do next; empty where nobody knows.
    pub remedy: String,
    /// The code with which the command ends.
    pub exit_code: u8,
}

impl Account {
    /// All that is known of a failure; nothing where all has been told.
    pub fn of(error: &CliError) -> Option<Self> {
        let bare = |remedy: String| Self {
            what: error.to_string(),
            code: None,
            phase: None,
            outcome: None,
            remedy,
            exit_code: error.exit_code(),
        };
        Some(match error {
            CliError::Told { .. } => return None,
            CliError::Refused(problem) => Self {
                what: problem.detail.clone(),
                code: Some(problem.code),
                phase: problem.phase,
                outcome: problem.outcome,
                ..bare(problem.remedy.clone())
            },
            CliError::Failed { doing, failure, outcome } => Self {
                what: format!("cannot {doing}: {}", failure.what),
                code: Some(failure.kind),
                phase: failure.phase,
                outcome: *outcome,
                ..bare(failure.remedy.clone())
            },
            CliError::Call(CallError::Unreachable { address, .. }) => bare(format!(
                "check that the server runs at {address}, and that `--ca` names its cluster's authority"
            )),
            CliError::Call(_) => bare("check that `limosa` and the server have the same version".into()),
            CliError::Invalid { remedy, .. } => bare(remedy.clone()),
            CliError::Interrupted { tasks } => {
                let follow: Vec<_> = tasks.iter().map(|task| format!("`limosa task watch {task}`")).collect();
                bare(format!("follow it with {}", follow.join(", ")))
            }
            CliError::File { .. } | CliError::Tls(_) | CliError::Stream { .. } | CliError::Daemon { .. } => {
                bare(String::new())
            }
        })
    }

    /// One readable paragraph: what, why, where the VM is, what to do next.
    pub fn paragraph(&self) -> String {
        let mut text = format!("error: {}", self.what.trim_end_matches('.'));
        match (self.code, self.phase) {
            (Some(code), Some(phase)) => text += &format!(" ({code}, in phase {phase})"),
            (Some(code), None) => text += &format!(" ({code})"),
            (None, _) => {}
        }
        text = sentence(&text);
        if let Some(outcome) = self.outcome {
            text += &format!(" {}", sentence(&capital(&outcome.to_string())));
        }
        if !self.remedy.is_empty() {
            text += &format!(" What to do: {}", sentence(&self.remedy));
        }
        wrap(&plain(&text), WIDTH)
    }
}

/// The paragraph that is printed when a command fails; empty where all has been told.
pub fn error(error: &CliError) -> String {
    Account::of(error).map(|account| account.paragraph()).unwrap_or_default()
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
    fn programs_get_the_same_account_as_an_object() {
        let problem =
            Problem::new(FailureKind::Conflict, "web moves already", "wait").with_outcome(Outcome::Unchanged);
        let account = Account::of(&CliError::Refused(Box::new(problem))).unwrap();
        assert_eq!(
            serde_json::to_string(&account).unwrap(),
            r#"{"what":"web moves already","code":"conflict","phase":null,"outcome":"unchanged","remedy":"wait","exit_code":12}"#
        );
        assert_eq!(Account::of(&CliError::Told { code: 12 }), None);
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
