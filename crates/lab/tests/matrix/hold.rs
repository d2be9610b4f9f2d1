//! The points at which a migration is held, and how it is brought to each.

use limosa_lab::{Network, Pinger, Room, Shape, wait};
use limosa_model::Phase;

use crate::common::LIMIT;
use crate::processes::Part;
use crate::stage::Stage;

/// How often an agent says again what was not answered, and a little, in microseconds.
const TURN_US: u64 = 600_000;

/// Where a lost guest is looked for: so many pings in a row without an answer.
const SILENT_PINGS: u64 = 25;

/// Where a migration is held, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Hold {
    /// The source has its order, the destination none.
    Ordered,
    /// The destination is ready; the source's agent stands still and has not heard.
    Reserved,
    /// Memory is being sent, slowly.
    Transferring,
    /// The source's QEMU has stopped the guest and waits for its agent, which stands still.
    PreSwitchover,
    /// The source lets QEMU send the rest; the destination's QEMU stands still and does not load it.
    Switching,
    /// The destination has loaded everything and said so; the source's agent stands still and has not heard.
    Loaded,
    /// The source has handed over; the destination's agent stands still and has not heard.
    HandedOver,
    /// The destination runs the VM; the source's agent stands still and has not heard.
    Arrived,
}

impl Hold {
    pub(crate) const ALL: [Self; 8] = [
        Self::Ordered,
        Self::Reserved,
        Self::Transferring,
        Self::PreSwitchover,
        Self::Switching,
        Self::Loaded,
        Self::HandedOver,
        Self::Arrived,
    ];

    /// The phase that it is a point of. A phase without one fails a test.
    pub(crate) fn phase(self) -> Phase {
        match self {
            Self::Ordered => Phase::Prepare,
            Self::Reserved => Phase::Reserve,
            Self::Transferring => Phase::Transfer,
            Self::PreSwitchover | Self::Switching | Self::Loaded => Phase::Switchover,
            Self::HandedOver => Phase::Handover,
            Self::Arrived => Phase::Finish,
        }
    }

    /// Whether the guest's CPUs stand still there, so that nothing can be asked of it.
    pub(crate) fn guest_stands(self) -> bool {
        matches!(self, Self::PreSwitchover | Self::Switching | Self::Loaded | Self::HandedOver)
    }

    /// Whether the destination has a QEMU and a worker.
    pub(crate) fn has_destination(self) -> bool {
        self > Self::Ordered
    }

    /// Whether neither QEMU holds the image's lock.
    pub(crate) fn image_is_free(self) -> bool {
        matches!(self, Self::Switching | Self::Loaded | Self::HandedOver)
    }
}

impl Stage<'_> {
    /// Brings a new migration to this point and holds it there.
    pub(crate) fn hold(&mut self, hold: Hold) -> Result<(), String> {
        let (from, to) = (self.at, self.other());
        let options = self.options();
        let target = self.target.clone();
        let failed =
            |error: limosa_api::client::CallError| format!("a migration could not be ordered: {error}");
        let slow = Shape { rate: Some("4Mbit".parse().unwrap()), ..Shape::default() };
        if hold >= Hold::Transferring {
            self.lab.shape(Self::room(from), Network::Migration, &slow).unwrap();
        }
        let ticket = self.cluster.ticket(from, to, &target, self.epoch);
        self.last = Some(ticket);
        let source = self.cluster.order_end(from, to, ticket, &target, &options, None).map_err(failed)?;
        if hold == Hold::Ordered {
            return Ok(());
        }
        if hold == Hold::Reserved {
            self.freeze(from, Part::Agent);
        }
        self.cluster.order_end(to, from, ticket, &target, &options, source.fingerprint).map_err(failed)?;
        if hold == Hold::Reserved {
            return self.await_state(to, &["ready"]);
        }
        self.await_state(from, &["transferring"])?;
        wait::until("memory to be sent", LIMIT, || {
            let sent = self.status(from).and_then(|s| s.progress).is_some_and(|p| p.wire.as_bytes() > 0);
            Ok(sent.then_some(()))
        })
        .map_err(|error| error.to_string())?;
        if hold == Hold::Transferring {
            return Ok(());
        }
        self.freeze(from, Part::Agent);
        self.lab.unshape(Self::room(from), Network::Migration).unwrap();
        self.await_silence()?;
        if hold == Hold::PreSwitchover {
            return Ok(());
        }
        if hold == Hold::Switching {
            self.freeze(to, Part::Qemu);
            self.thaw(from, Part::Agent);
            return self.await_state(from, &["switching"]);
        }
        self.freeze(to, Part::Agent);
        self.thaw(from, Part::Agent);
        wait::until("the source to have sent everything", LIMIT, || {
            Ok(self.status(from).filter(|s| s.state == "switching" && s.measured.wire_bytes > 0).map(drop))
        })
        .map_err(|error| error.to_string())?;
        self.freeze(from, Part::Agent);
        self.thaw(to, Part::Agent);
        self.await_state(to, &["loaded"])?;
        if hold == Hold::Loaded {
            return Ok(());
        }
        self.pass_word(to, from, "handedover")?;
        if hold == Hold::HandedOver {
            return Ok(());
        }
        self.pass_word(from, to, "running")
    }

    /// Waits until the guest does not answer any more: QEMU has stopped it.
    fn await_silence(&self) -> Result<(), String> {
        let client = self.lab.namespace(Room::Client).unwrap();
        let pinger = Pinger::start(&client, self.config.address).unwrap();
        let mut last = (0, 0);
        wait::until("the guest to be stopped", LIMIT, || {
            let now = pinger.snapshot();
            if now.received > last.0 {
                last = (now.received, now.sent);
            }
            Ok((now.sent >= last.1 + SILENT_PINGS).then_some(()))
        })
        .map_err(|error| error.to_string())
    }

    /// The speaker's agent goes, the listener's stands still. Lets what the speaker says come to the listener, and
    /// stops the speaker before it can hear the answer. An agent says again what was not answered; so where nothing
    /// was on its way yet, it is given another turn.
    fn pass_word(&mut self, speaker: usize, listener: usize, state: &str) -> Result<(), String> {
        for _ in 0..20 {
            let clock = |stage: &Self| stage.status(speaker).map(|status| status.now_us);
            let began = clock(self).ok_or("the speaker does not answer")?;
            wait::until("the speaker to have had a turn", LIMIT, || {
                Ok(clock(self).filter(|now| *now > began + TURN_US).map(drop))
            })
            .map_err(|error| error.to_string())?;
            self.freeze(speaker, Part::Agent);
            self.thaw(listener, Part::Agent);
            if (0..40).any(|_| self.status(listener).is_some_and(|status| status.state == state)) {
                return Ok(());
            }
            self.freeze(listener, Part::Agent);
            self.thaw(speaker, Part::Agent);
        }
        Err(format!("host {listener} does not come to {state}"))
    }
}
