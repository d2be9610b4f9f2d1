//! The reconcilers: they look at what should be and what is, and do the next thing.
//!
//! None of them takes any input; each is idempotent. They run when something has changed and on a timer, and after a
//! start of the server they go on where the store says that things are: that is the whole of its recovery.

mod evacuate;
mod housekeeping;
mod lost;
mod passage;
mod passages;
mod queue;
mod report;
mod strays;
mod vms;

pub(crate) use strays::is_entitled;

use std::sync::Arc;
use std::time::Instant;

use limosa_store::StoreError;

use crate::server::Server;

/// Runs until the server closes.
pub(crate) async fn run(server: Arc<Server>) {
    let mut timer = tokio::time::interval(server.config.reconcile_interval_ms.duration());
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut closing = server.closing.subscribe();
    let mut housekept = Instant::now();
    loop {
        tokio::select! {
            _ = timer.tick() => {}
            () = server.nudge.notified() => {}
            _ = closing.wait_for(|closing| *closing) => return,
        }
        if let Err(error) = pass(&server).await {
            tracing::error!(%error, "the reconcilers stopped half-way; they begin again");
        }
        if housekept.elapsed() >= housekeeping::INTERVAL {
            housekept = Instant::now();
            if let Err(error) = housekeeping::tidy(&server).await {
                tracing::warn!(%error, "old events and tasks could not be taken away");
            }
        }
    }
}

async fn pass(server: &Arc<Server>) -> Result<(), StoreError> {
    if server.is_restoring() {
        return Ok(());
    }
    lost::lost(server).await?;
    passages::passages(server).await?;
    vms::vms(server).await?;
    evacuate::evacuations(server).await?;
    queue::queue(server).await?;
    strays::strays(server).await
}
