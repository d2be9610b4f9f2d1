//! One VM, held for a change that a user asks for.

use std::sync::Arc;

use limosa_api::rest::{HostState, Task};
use limosa_model::{Failure, FailureKind};

use crate::records::{HostRecord, VmRecord, Work, keys};
use crate::refused::{Answer, Refused};
use crate::server::Server;
use crate::snapshot::Snapshot;
use crate::tasks;
use crate::tx::Tx;

/// One VM, and the turn to change it.
pub(super) struct Held<'s> {
    pub(super) server: &'s Arc<Server>,
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) tx: Tx<'s>,
    pub(super) vm: VmRecord,
}

impl<'s> Held<'s> {
    /// The VM with this name or id.
    pub(super) async fn open(server: &'s Arc<Server>, named: &str) -> Answer<Self> {
        refuse_while_restoring(server)?;
        let mut tx = server.begin().await;
        let snapshot = server.snapshot().await?;
        let found = snapshot.vm(named).ok_or_else(|| Refused::unknown("VM", named))?;
        let vm =
            tx.get(&keys::of(keys::VMS, found.id)).await?.ok_or_else(|| Refused::unknown("VM", named))?;
        Ok(Self { server, snapshot, tx, vm })
    }

    pub(super) fn name(&self) -> String {
        self.vm.spec.name.to_string()
    }

    /// Nobody else is at work on it.
    pub(super) fn be_free(&self) -> Answer<()> {
        let name = self.name();
        if let Some(migration) = self.vm.moving() {
            let task = self.snapshot.migrations.get(&migration).map(|record| record.task);
            return Err(moving(&name, migration, task));
        }
        let Some(task) = self.vm.task else { return Ok(()) };
        let work = self.snapshot.tasks.get(&task).map(|record| &record.work);
        match work.and_then(Work::migration) {
            Some(migration) => Err(moving(&name, migration, Some(task))),
            None => {
                let kind = work.map_or("a task", |work| work.kind().name());
                Err(Refused::conflict(
                    format!("VM {name} is at something else: {kind}, task {task}"),
                    format!("wait for it, or cancel it with `limosa task cancel {task}`"),
                ))
            }
        }
    }

    /// The host that runs it, which has to be within reach.
    pub(super) fn running_on(&self) -> Answer<HostRecord> {
        let on = self.vm.on().and_then(|(host, _)| self.snapshot.hosts.get(&host));
        let host = on.ok_or_else(|| {
            let remedy = format!("start it with `limosa vm start {}`", self.name());
            Refused::conflict(format!("VM {} does not run", self.name()), remedy)
        })?;
        match self.server.host_state(host) {
            HostState::Online => Ok(host.clone()),
            state => Err(Failure::new(
                FailureKind::Peer,
                format!("VM {} is on host {}, which is {state:?}", self.name(), host.name).to_lowercase(),
                format!(
                    "start the agent of {}; if the host is gone for good, `limosa vm resolve`",
                    host.name
                ),
            )
            .into()),
        }
    }

    /// Writes the VM and a task for it.
    pub(super) async fn accept(mut self, work: Work) -> Answer<Task> {
        let task = tasks::accept(&mut self.tx, self.vm.subject(), work, None)?;
        self.vm.task = Some(task.id);
        self.save().await?;
        Ok(task)
    }

    /// Writes the VM.
    pub(super) async fn save(mut self) -> Answer<()> {
        self.tx.put(&keys::of(keys::VMS, self.vm.id), &self.vm)?;
        self.server.commit(self.tx).await?;
        Ok(())
    }
}

fn moving(name: &str, migration: limosa_model::MigrationId, task: Option<limosa_model::TaskId>) -> Refused {
    let remedy = match task {
        Some(task) => format!("wait for it, or cancel it with `limosa task cancel {task}`"),
        None => "wait for it".to_owned(),
    };
    Refused::conflict(format!("VM {name} is being migrated already, by {migration}"), remedy)
}

/// A restored server starts, moves and changes nothing.
pub(super) fn refuse_while_restoring(server: &Server) -> Answer<()> {
    match server.is_restoring() {
        false => Ok(()),
        true => Err(Refused::conflict(
            "the server's state was restored from a backup, and that is not confirmed yet",
            "once all hosts report, confirm with `limosa cluster confirm-restore`",
        )),
    }
}
