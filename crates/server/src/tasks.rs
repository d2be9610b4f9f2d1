//! Tasks: accepted durably, ended once.

use jiff::Timestamp;
use limosa_api::rest::{Subject, Task, TaskKind, TaskResult, TaskState};
use limosa_model::{Failure, FailureKind, MigrationId, TaskId};
use limosa_store::StoreError;

use crate::records::{TaskRecord, Work, keys};
use crate::tx::Tx;

/// How a task ends.
#[derive(Debug)]
pub(crate) enum TaskEnd {
    Succeeded(Option<TaskResult>),
    Failed(Failure),
    Cancelled,
}

/// Writes a task down. It is done by the reconcilers from here on.
pub(crate) fn accept(
    tx: &mut Tx<'_>,
    subject: Subject,
    work: Work,
    parent: Option<TaskId>,
) -> Result<Task, StoreError> {
    let task = Task {
        id: TaskId::new(),
        kind: work.kind(),
        subject,
        state: if matches!(work, Work::Migrate { .. }) { TaskState::Queued } else { TaskState::Running },
        phase: None,
        percent: 0,
        progress: None,
        message: None,
        cancel_asked: false,
        migration: work.migration(),
        parent,
        failure: None,
        result: None,
        created: Timestamp::now(),
        ended: None,
    };
    tx.put(&keys::of(keys::TASKS, task.id), &TaskRecord { task: task.clone(), work })?;
    Ok(task)
}

/// Notes how far a task has come, unless it was further.
pub(crate) async fn reached(tx: &mut Tx<'_>, id: TaskId, percent: u8) -> Result<(), StoreError> {
    let key = keys::of(keys::TASKS, id);
    let Some(mut record) = tx.get::<TaskRecord>(&key).await? else { return Ok(()) };
    if !record.has_ended() && record.task.percent < percent {
        record.task.percent = percent;
        tx.put(&key, &record)?;
    }
    Ok(())
}

/// Ends a task, unless it has ended.
pub(crate) async fn end(tx: &mut Tx<'_>, id: TaskId, end: TaskEnd) -> Result<(), StoreError> {
    let key = keys::of(keys::TASKS, id);
    let Some(mut record) = tx.get::<TaskRecord>(&key).await? else { return Ok(()) };
    if record.has_ended() {
        return Ok(());
    }
    let task = &mut record.task;
    task.ended = Some(Timestamp::now());
    task.message = None;
    match end {
        TaskEnd::Succeeded(result) => {
            (task.state, task.percent, task.result) = (TaskState::Succeeded, 100, result);
        }
        TaskEnd::Failed(failure) => (task.state, task.failure) = (TaskState::Failed, Some(failure)),
        TaskEnd::Cancelled => {
            task.state = TaskState::Cancelled;
            task.failure =
                Some(Failure::new(FailureKind::Cancelled, "a user ended it", "ask again if it is wanted"));
        }
    }
    if task.state == TaskState::Failed {
        let why = task.failure.as_ref().map(ToString::to_string).unwrap_or_default();
        let name = task.subject.name.as_ref().map(ToString::to_string).unwrap_or_default();
        let message = format!("{} of {name} failed: {why}", task.kind.name());
        let subject = task.subject.clone();
        tx.event("task-failed", subject, message)?;
    }
    tx.put(&key, &record)
}

impl Work {
    pub(crate) fn kind(&self) -> TaskKind {
        match self {
            Self::Create { .. } => TaskKind::Create,
            Self::Start { .. } => TaskKind::Start,
            Self::Stop { .. } => TaskKind::Stop,
            Self::Kill { .. } => TaskKind::Kill,
            Self::Reboot { .. } => TaskKind::Reboot,
            Self::Pause { .. } => TaskKind::Pause,
            Self::Resume { .. } => TaskKind::Resume,
            Self::Delete { .. } => TaskKind::Delete,
            Self::Migrate { .. } => TaskKind::Migrate,
            Self::Evacuate { .. } => TaskKind::Evacuate,
        }
    }

    pub(crate) fn migration(&self) -> Option<MigrationId> {
        match self {
            Self::Migrate { migration, .. } => Some(*migration),
            _ => None,
        }
    }
}
