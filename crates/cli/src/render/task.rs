//! Tasks and events.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use limosa_api::rest::{Event, Subject, SubjectKind, Task, TaskState};

use super::{ago, facts, or_dash, table};

/// Tasks, a line each.
pub fn tasks(tasks: &[Task], now: Timestamp) -> String {
    table(
        ["ID", "TASK", "STATE", "DONE", "BEGUN", ""],
        tasks.iter().map(|task| {
            [
                task.id.to_string(),
                doing(task),
                state(task).into(),
                format!("{} %", task.percent),
                ago(now, task.created),
                words(task),
            ]
        }),
    )
}

/// One task, all of it.
pub fn task(task: &Task) -> String {
    let remedy = task.failure.as_ref().map(|failure| failure.remedy.clone());
    facts([
        ("id", task.id.to_string()),
        ("task", doing(task)),
        ("state", state(task).into()),
        ("phase", task.phase.map(|phase| phase.to_string()).unwrap_or_default()),
        ("done", format!("{} %", task.percent)),
        ("why", words(task)),
        ("what to do", remedy.unwrap_or_default()),
        ("cancel", if task.cancel_asked { "asked for".into() } else { String::new() }),
        ("migration", task.migration.map(|id| id.to_string()).unwrap_or_default()),
        ("part of", task.parent.map(|id| id.to_string()).unwrap_or_default()),
        ("begun", task.created.to_string()),
        ("ended", or_dash(task.ended)),
    ])
}

/// An event, on one line.
pub fn event(event: &Event, zone: &TimeZone) -> String {
    let time = event.time.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S");
    format!("{time}  {:<24}  {:<16}  {}", event.code, subject(&event.subject), event.message)
}

/// What a task does, as in `migrate web`.
pub(crate) fn doing(task: &Task) -> String {
    format!("{} {}", task.kind.name(), named(&task.subject))
}

fn named(subject: &Subject) -> String {
    subject.name.as_ref().map_or_else(|| subject.id.clone(), ToString::to_string)
}

fn subject(subject: &Subject) -> String {
    let kind = match subject.kind {
        SubjectKind::Cluster => "cluster",
        SubjectKind::Host => "host",
        SubjectKind::Vm => "vm",
        SubjectKind::Migration => "migration",
        SubjectKind::Datastore => "datastore",
        SubjectKind::Network => "network",
    };
    format!("{kind} {}", named(subject))
}

fn state(task: &Task) -> &'static str {
    match task.state {
        TaskState::Queued => "queued",
        TaskState::Running => "running",
        TaskState::Succeeded => "succeeded",
        TaskState::Failed => "failed",
        TaskState::Cancelled => "cancelled",
    }
}

fn words(task: &Task) -> String {
    let failure = task.failure.as_ref().map(|failure| format!("{} ({})", failure.what, failure.kind));
    failure.or_else(|| task.message.clone()).unwrap_or_default()
}

#[cfg(test)]
pub(super) mod tests {
    use limosa_api::rest::TaskKind;
    use limosa_model::{Failure, FailureKind, Phase, TaskId};

    use super::*;

    pub(crate) fn example() -> Task {
        Task {
            id: TaskId::from_u128(1),
            kind: TaskKind::Migrate,
            subject: Subject {
                kind: SubjectKind::Vm,
                id: "an-id".into(),
                name: Some("web".parse().unwrap()),
            },
            state: TaskState::Running,
            phase: Some(Phase::Reserve),
            percent: 3,
            progress: None,
            message: None,
            cancel_asked: false,
            migration: None,
            parent: None,
            failure: None,
            result: None,
            created: "2030-01-01T00:00:00Z".parse().unwrap(),
            ended: None,
        }
    }

    fn failed() -> Task {
        Task {
            state: TaskState::Failed,
            failure: Some(Failure::new(FailureKind::Resource, "h2 has no room", "make room")),
            ended: Some("2030-01-01T00:00:05Z".parse().unwrap()),
            ..example()
        }
    }

    #[test]
    fn a_list_of_tasks_has_a_line_for_each() {
        let now = "2030-01-01T00:02:00Z".parse().unwrap();
        let queued = Task {
            state: TaskState::Queued,
            percent: 0,
            message: Some("waits for two others".into()),
            subject: Subject { name: None, ..example().subject },
            ..example()
        };
        assert_eq!(
            tasks(&[example(), queued, failed()], now),
            "ID                                    TASK           STATE    DONE  BEGUN\n\
             00000000-0000-0000-0000-000000000001  migrate web    running  3 %   2 min ago\n\
             00000000-0000-0000-0000-000000000001  migrate an-id  queued   0 %   2 min ago  waits for two others\n\
             00000000-0000-0000-0000-000000000001  migrate web    failed   3 %   2 min ago  h2 has no room (resource)\n"
        );
    }

    #[test]
    fn a_failed_task_says_why_and_what_to_do() {
        assert_eq!(
            task(&failed()),
            "\
id          00000000-0000-0000-0000-000000000001
task        migrate web
state       failed
phase       reserve
done        3 %
why         h2 has no room (resource)
what to do  make room
begun       2030-01-01T00:00:00Z
ended       2030-01-01T00:00:05Z
"
        );
    }

    #[test]
    fn an_event_is_one_line() {
        let started = Event {
            revision: 7,
            time: "2030-01-01T00:00:00Z".parse().unwrap(),
            code: "vm-started".into(),
            subject: example().subject,
            message: "web runs on h1".into(),
        };
        assert_eq!(
            event(&started, &TimeZone::UTC),
            "2030-01-01 00:00:00  vm-started                vm web            web runs on h1"
        );
    }
}
