//! `limosa task …` and `limosa events`.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use limosa_api::rest::Event;
use limosa_model::TaskId;

use super::succeeded;
use crate::args::{EventsArgs, TaskCommand};
use crate::cluster::Cluster;
use crate::error::CliError;
use crate::output::Output;
use crate::render;
use crate::watch::{Show, follow, follow_events};

pub(super) async fn run(cluster: &Cluster, command: TaskCommand, output: Output) -> Result<(), CliError> {
    match command {
        TaskCommand::List => {
            output.show(&cluster.tasks().await?, |tasks| render::tasks(&tasks.items, Timestamp::now()))
        }
        TaskCommand::Show { task } => output.show(&cluster.task(id(&task)?).await?, render::task),
        TaskCommand::Cancel { task } => output.show(&cluster.cancel_task(id(&task)?).await?, render::task),
        TaskCommand::Watch { task } => {
            let task = cluster.task(id(&task)?).await?;
            let show = if output.is_json() { Show::Programs } else { Show::People };
            for task in follow(cluster, vec![task], show).await? {
                match task.migration {
                    _ if output.is_json() => {}
                    Some(migration) => output.say(&render::report(&cluster.migration(migration).await?))?,
                    None => output.say(&render::task(&task))?,
                }
                // What failed has been told by the report or the task.
                succeeded(&task).map_err(|error| CliError::Told { code: error.exit_code() })?;
            }
            Ok(())
        }
    }
}

pub(super) async fn events(cluster: &Cluster, args: EventsArgs, output: Output) -> Result<(), CliError> {
    let past = cluster.events(args.from.unwrap_or(0)).await?;
    let zone = TimeZone::system();
    let show = |event: &Event| output.item(event, |event| render::event(event, &zone));
    past.items.iter().try_for_each(show)?;
    if args.follow { follow_events(cluster, past.revision + 1, show).await } else { Ok(()) }
}

fn id(text: &str) -> Result<TaskId, CliError> {
    text.parse().map_err(|error: limosa_model::id::InvalidId| {
        CliError::invalid(error.to_string(), "`limosa task list` shows the ids")
    })
}
