//! The points at which a migration is held.

use limosa_model::Phase;

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
