//! `limosa migrate …`

use limosa_api::rest::{MigrateRequest, Task};

use super::{accepted, succeeded};
use crate::args::MigrateArgs;
use crate::cluster::Cluster;
use crate::error::CliError;
use crate::exit;
use crate::output::Output;
use crate::render;
use crate::watch::{Show, follow};

pub(super) async fn run(cluster: &Cluster, args: MigrateArgs, output: Output) -> Result<(), CliError> {
    let request = MigrateRequest {
        to: args.to.clone(),
        best: args.best || args.to.is_none(),
        dry_run: args.dry_run,
        options: args.flags.options(),
    };
    let mut failures = Failures::new(args.vms.len(), output);
    if args.dry_run {
        for vm in &args.vms {
            match cluster.plan_migration(vm, &request).await {
                Ok(plan) => {
                    output.item(&plan, render::plan)?;
                    failures.told(plan.failed.first().map(|failure| exit::code(failure.kind)));
                }
                Err(error) => failures.take(error)?,
            }
        }
        return failures.end();
    }

    let mut tasks = Vec::new();
    for vm in &args.vms {
        match cluster.migrate(vm, &request).await {
            Ok(task) => tasks.push(task),
            Err(error) => failures.take(error)?,
        }
    }
    if args.watch {
        let show = if output.is_json() { Show::Programs } else { Show::People };
        for task in follow(cluster, tasks, show).await? {
            show_end(cluster, &task, output, &mut failures).await?;
        }
    } else {
        for task in &tasks {
            output.item(task, accepted)?;
        }
    }
    failures.end()
}

/// The report, where the migration got so far that there is one. Programs have it in the task's last state.
async fn show_end(
    cluster: &Cluster,
    task: &Task,
    output: Output,
    failures: &mut Failures,
) -> Result<(), CliError> {
    let ended = succeeded(task);
    if output.is_json() {
        failures.told(ended.err().map(|error| error.exit_code()));
        return Ok(());
    }
    let migration = match task.migration {
        Some(id) => Some(cluster.migration(id).await?).filter(|migration| migration.report.is_some()),
        None => None,
    };
    match (ended, migration) {
        (ended, Some(migration)) => {
            output.say(&render::report(&migration))?;
            failures.told(ended.err().map(|error| error.exit_code()));
            Ok(())
        }
        (Err(error), None) => failures.take(error),
        (Ok(()), None) => Ok(()),
    }
}

/// What failed among several things that were asked for. One alone is the command's own failure; of several, each
/// is told when it fails, and the others go on.
struct Failures {
    of: usize,
    output: Output,
    first: Option<u8>,
}

impl Failures {
    fn new(of: usize, output: Output) -> Self {
        Self { of, output, first: None }
    }

    fn take(&mut self, error: CliError) -> Result<(), CliError> {
        if self.of == 1 {
            return Err(error);
        }
        self.output.fail(&error);
        self.told(Some(error.exit_code()));
        Ok(())
    }

    fn told(&mut self, code: Option<u8>) {
        self.first = self.first.or(code);
    }

    fn end(self) -> Result<(), CliError> {
        self.first.map_or(Ok(()), |code| Err(CliError::Told { code }))
    }
}
