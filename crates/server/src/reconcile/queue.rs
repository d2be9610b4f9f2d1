//! Lets queued migrations begin, as many at once as their hosts may have, in the order in which they were asked for.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use limosa_api::agent::MigrationOptions;
use limosa_api::rest::{MigrationPlan, TaskState};
use limosa_model::{Failure, FailureKind, HostId, MigrationId, TaskId};
use limosa_store::StoreError;

use super::passages::stored;
use crate::live::OrderKey;
use crate::orders::Done;
use crate::prepare;
use crate::records::{HostRecord, MigrationRecord, TaskRecord, VmRecord, Work, keys};
use crate::server::Server;
use crate::snapshot::Snapshot;
use crate::tasks::TaskEnd;
use crate::tx::Tx;
use crate::whereabouts;

pub(super) async fn queue(server: &Arc<Server>) -> Result<(), StoreError> {
    let snapshot = server.snapshot().await?;
    if snapshot.hosts.values().any(|host| server.may_yet_report(host)) {
        return Ok(());
    }
    let mut under_way: HashMap<HostId, u32> = HashMap::new();
    for migration in snapshot.migrations.values().filter(|migration| migration.is_under_way()) {
        for host in [migration.passage.ticket.source, migration.passage.ticket.destination] {
            *under_way.entry(host).or_default() += 1;
        }
    }
    // Later ids sort behind earlier ones.
    for record in snapshot.tasks.values().filter(|record| record.is_queued()) {
        let Work::Migrate { vm, migration, to, options } = &record.work else { continue };
        let vm = snapshot.vms.get(vm).filter(|vm| vm.task == Some(record.task.id));
        let source = vm.and_then(|vm| vm.on()).and_then(|(host, _)| snapshot.hosts.get(&host));
        let (Some(vm), Some(source)) = (vm, source) else {
            end_queued(server, record.task.id, gone()).await?;
            continue;
        };
        let to = to.and_then(|to| snapshot.hosts.get(&to));
        let plan = prepare::plan(server, &snapshot, vm, source, to);
        let ends = [Some(source.id), plan.destination.as_ref().map(|host| host.id)];
        let limit = server.config.migrations_per_host;
        let full = ends.into_iter().flatten().find(|host| under_way.get(host).is_some_and(|n| *n >= limit));
        if let Some(full) = full {
            let message =
                format!("host {} takes part in {limit} migrations already", snapshot.host_name(full));
            wait(server, record, message).await?;
            continue;
        }
        for host in ends.into_iter().flatten() {
            *under_way.entry(host).or_default() += 1;
        }
        let preparation = Preparation {
            server: server.clone(),
            snapshot: snapshot.clone(),
            vm: vm.clone(),
            task: record.task.id,
            migration: *migration,
            options: options.clone(),
            created: record.task.created,
        };
        server.dispatch(OrderKey::Prepare(*migration), preparation.run(plan));
    }
    Ok(())
}

fn gone() -> Failure {
    Failure::new(FailureKind::Conflict, "the VM does not run any more", "start it, then migrate again")
}

async fn wait(server: &Server, record: &TaskRecord, message: String) -> Result<(), StoreError> {
    if record.task.message.as_ref() == Some(&message) {
        return Ok(());
    }
    let mut tx = server.begin().await;
    let key = keys::of(keys::TASKS, record.task.id);
    if let Some(mut record) = tx.get::<TaskRecord>(&key).await?.filter(TaskRecord::is_queued) {
        record.task.message = Some(message);
        tx.put(&key, &record)?;
    }
    server.commit(tx).await
}

/// A queued migration ends before it has begun.
async fn end_queued(server: &Server, task: TaskId, failure: Failure) -> Result<(), StoreError> {
    let mut tx = server.begin().await;
    let record = tx.get::<TaskRecord>(&keys::of(keys::TASKS, task)).await?;
    if let Some(Work::Migrate { vm, .. }) = record.map(|record| record.work)
        && let Some(mut vm) = tx.get::<VmRecord>(&keys::of(keys::VMS, vm)).await?
        && vm.task.take_if(|worked| *worked == task).is_some()
    {
        tx.put(&keys::of(keys::VMS, vm.id), &vm)?;
    }
    crate::tasks::end(&mut tx, task, TaskEnd::Failed(failure)).await?;
    server.commit(tx).await
}

/// The phase `prepare` of one migration.
struct Preparation {
    server: Arc<Server>,
    snapshot: Arc<Snapshot>,
    vm: VmRecord,
    task: TaskId,
    migration: MigrationId,
    options: MigrationOptions,
    created: Timestamp,
}

impl Preparation {
    async fn run(self, mut plan: MigrationPlan) -> Result<Done, Failure> {
        let began = Instant::now();
        if plan.failed.is_empty() {
            prepare::ask_hosts(&self.server, &self.snapshot, &self.vm, self.options.bandwidth, &mut plan)
                .await;
        }
        let failed = prepare::refusal(&plan).map(|refused| Failure::from(refused.0));
        let destination =
            plan.destination.as_ref().and_then(|host| self.snapshot.hosts.get(&host.id)).cloned();
        match (failed, destination) {
            (None, Some(destination)) => self.begin(&destination, plan, began).await.map_err(stored)?,
            (failed, _) => {
                let failure = failed.unwrap_or_else(gone);
                end_queued(&self.server, self.task, failure).await.map_err(stored)?;
            }
        }
        Ok(Done::Changed)
    }

    /// Gives the migration its epoch. The orders leave once that is durable.
    async fn begin(
        &self,
        destination: &HostRecord,
        plan: MigrationPlan,
        began: Instant,
    ) -> Result<(), StoreError> {
        let mut tx = self.server.begin().await;
        let (task_key, vm_key) = (keys::of(keys::TASKS, self.task), keys::of(keys::VMS, self.vm.id));
        let Some(mut task) = tx.get::<TaskRecord>(&task_key).await?.filter(TaskRecord::is_queued) else {
            return Ok(());
        };
        let Some(mut vm) = tx.get::<VmRecord>(&vm_key).await? else { return Ok(()) };
        let unchanged = vm.on() == self.vm.on() && vm.task == Some(self.task);
        let (custody, passage) = match vm.custody.begin(self.migration, destination.id) {
            Ok(begun) if unchanged => begun,
            _ => {
                whereabouts::finish(&mut tx, &mut vm, TaskEnd::Failed(gone())).await?;
                tx.put(&vm_key, &vm)?;
                return self.server.commit(tx).await;
            }
        };
        let source_journal = journal_of(&mut tx, passage.ticket.source).await?;
        let destination_journal = journal_of(&mut tx, destination.id).await?;
        let record = MigrationRecord {
            passage,
            options: self.options.clone(),
            task: self.task,
            vm_name: vm.spec.name.clone(),
            spec: vm.spec.clone(),
            prediction: plan.prediction,
            created: self.created,
            ended: None,
            prepare_us: u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX),
            cancel_asked: task.task.cancel_asked,
            failure: None,
            report: None,
            source_journal,
            destination_journal,
            closed: false,
        };
        (task.task.state, task.task.message) = (TaskState::Running, None);
        vm.custody = custody;
        let message = format!("{} moves from {} to {}", vm.spec.name, plan.source.name, destination.name);
        tx.event("migration-began", record.subject(), message)?;
        tx.put(&task_key, &task)?;
        tx.put(&vm_key, &vm)?;
        tx.put(&keys::of(keys::MIGRATIONS, self.migration), &record)?;
        self.server.commit(tx).await
    }
}

async fn journal_of(tx: &mut Tx<'_>, host: HostId) -> Result<Option<limosa_model::JournalId>, StoreError> {
    Ok(tx.get::<HostRecord>(&keys::of(keys::HOSTS, host)).await?.and_then(|host| host.journal))
}
