//! Follows tasks to their ends and shows how far they are: bars on a terminal, lines elsewhere, objects for
//! programs. A server that is restarted meanwhile is waited for: tasks go on without anybody who looks.

use std::io::{IsTerminal as _, stderr};
use std::time::Duration;

use futures_util::future::try_join_all;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use limosa_api::client::CallError;
use limosa_api::rest::{Event, Task, TaskState};
use limosa_model::Phase;
use tokio::time::{Instant, sleep};

use crate::cluster::Cluster;
use crate::error::CliError;
use crate::output::Output;
use crate::render;

/// How long a server may be away until nobody waits for it any more.
const PATIENCE: Duration = Duration::from_secs(120);
const BETWEEN_TRIES: Duration = Duration::from_millis(500);

/// Where progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Show {
    /// To people, on the standard error stream.
    People,
    /// To programs, on the standard output: every state of every task, a line each.
    Programs,
    /// Nowhere.
    Nobody,
}

/// Follows all tasks to their ends, and returns them as they then are.
///
/// # Errors
/// [`CliError::Interrupted`] on Ctrl-C; what the server answers; or that it stays away.
pub async fn follow(cluster: &Cluster, tasks: Vec<Task>, show: Show) -> Result<Vec<Task>, CliError> {
    let target =
        if show == Show::People { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bars = MultiProgress::with_draw_target(target);
    let ids = tasks.iter().map(|task| task.id).collect();
    let followed =
        try_join_all(tasks.into_iter().map(|task| follow_one(cluster, task, View::new(show, &bars))));
    tokio::select! {
        ended = followed => ended,
        _ = tokio::signal::ctrl_c() => Err(CliError::Interrupted { tasks: ids }),
    }
}

async fn follow_one(cluster: &Cluster, mut task: Task, mut view: View) -> Result<Task, CliError> {
    let mut heard = Instant::now();
    view.show(&task)?;
    while !task.state.has_ended() {
        match updates(cluster, &mut task, &mut view, &mut heard).await {
            Ok(()) => {}
            Err(error) if is_away(&error) && heard.elapsed() < PATIENCE => {
                view.waits(&task);
                sleep(BETWEEN_TRIES).await;
            }
            Err(error) => return Err(error),
        }
    }
    view.end();
    Ok(task)
}

/// Shows events from a revision on, for ever. None is missed and none is shown twice, whoever is restarted meanwhile.
///
/// # Errors
/// What `show` says; what the server answers; or that it stays away.
pub async fn follow_events(
    cluster: &Cluster,
    mut from: u64,
    show: impl Fn(&Event) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let mut heard = Instant::now();
    loop {
        let told: Result<(), CliError> = async {
            let mut stream = cluster.watch_events(from).await?;
            while let Some(event) = stream.next().await? {
                show(&event)?;
                from = event.revision + 1;
                heard = Instant::now();
            }
            heard = Instant::now();
            Ok(())
        }
        .await;
        match told {
            Err(error) if !is_away(&error) || heard.elapsed() >= PATIENCE => return Err(error),
            Ok(()) | Err(_) => sleep(BETWEEN_TRIES).await,
        }
    }
}

/// Takes in what the server tells of a task until it has ended or the stream does.
async fn updates(
    cluster: &Cluster,
    task: &mut Task,
    view: &mut View,
    heard: &mut Instant,
) -> Result<(), CliError> {
    let mut stream = cluster.watch_task(task.id).await?;
    while let Some(next) = stream.next().await? {
        *heard = Instant::now();
        *task = next;
        view.show(task)?;
        if task.state.has_ended() {
            return Ok(());
        }
    }
    // The stream has ended without the task's end: the server is on its way out.
    let away = std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the stream has ended");
    Err(CallError::Unreachable { address: cluster.address().into(), source: away.into() }.into())
}

fn is_away(error: &CliError) -> bool {
    matches!(error, CliError::Call(CallError::Unreachable { .. }))
}

/// How one task is shown.
enum View {
    Bar(ProgressBar),
    Lines(Lines),
    Programs(Output),
    Nobody,
}

impl View {
    fn new(show: Show, bars: &MultiProgress) -> Self {
        match show {
            Show::People if stderr().is_terminal() => {
                let style = ProgressStyle::with_template("{prefix:<20} {bar:30} {pos:>3} %\n  {wide_msg}");
                let bar = ProgressBar::new(100).with_style(style.expect("a fixed template"));
                Self::Bar(bars.add(bar))
            }
            Show::People => Self::Lines(Lines::default()),
            Show::Programs => Self::Programs(Output::new(crate::args::Format::Json)),
            Show::Nobody => Self::Nobody,
        }
    }

    fn show(&mut self, task: &Task) -> Result<(), CliError> {
        let progress = render::progress(task);
        match self {
            Self::Bar(bar) => {
                bar.set_prefix(progress.doing);
                bar.set_position(progress.percent.into());
                bar.set_message(progress.figures);
            }
            Self::Lines(lines) => {
                if lines.is_news(task) {
                    eprintln!("{}", progress.line());
                }
            }
            Self::Programs(output) => output.item(task, |_| String::new())?,
            Self::Nobody => {}
        }
        Ok(())
    }

    fn waits(&mut self, task: &Task) {
        match self {
            Self::Bar(bar) => bar.set_message("the server does not answer; waiting for it"),
            Self::Lines(lines) if !lines.waits => {
                eprintln!("{}: the server does not answer; waiting for it", render::progress(task).doing);
                lines.waits = true;
            }
            Self::Lines(_) | Self::Programs(_) | Self::Nobody => {}
        }
    }

    fn end(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

/// Which updates are worth a line: another state or phase, or ten percent more. The end is told by whoever asked.
#[derive(Debug, Default)]
struct Lines {
    last: Option<(TaskState, Option<Phase>, u8)>,
    waits: bool,
}

impl Lines {
    fn is_news(&mut self, task: &Task) -> bool {
        let is = (task.state, task.phase, task.percent / 10);
        self.waits = false;
        self.last.replace(is) != Some(is) && !task.state.has_ended()
    }
}

#[cfg(test)]
mod tests {
    use limosa_api::rest::{Subject, SubjectKind, TaskKind};
    use limosa_model::TaskId;

    use super::*;

    #[test]
    fn a_line_is_written_for_another_phase_or_ten_percent_more() {
        let at = |percent, phase| Task {
            id: TaskId::from_u128(1),
            kind: TaskKind::Migrate,
            subject: Subject { kind: SubjectKind::Vm, id: "1".into(), name: None },
            state: TaskState::Running,
            phase: Some(phase),
            percent,
            progress: None,
            message: None,
            cancel_asked: false,
            migration: None,
            parent: None,
            failure: None,
            result: None,
            created: "2030-01-01T00:00:00Z".parse().unwrap(),
            ended: None,
        };
        let mut lines = Lines::default();
        let news = [
            (at(0, Phase::Prepare), true),
            (at(3, Phase::Prepare), false),
            (at(4, Phase::Reserve), true),
            (at(9, Phase::Transfer), true),
            (at(12, Phase::Transfer), true),
            (at(19, Phase::Transfer), false),
        ];
        let ended = Task { state: TaskState::Succeeded, ..at(100, Phase::Finish) };
        for (task, is_news) in news.into_iter().chain([(ended, false)]) {
            assert_eq!(lines.is_news(&task), is_news, "{}", render::progress(&task).line());
        }
    }
}
