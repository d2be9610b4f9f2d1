//! The shape of every pure core: a value that steps.

/// A pure state machine. It neither waits nor sends nor writes; it says what should be done.
pub trait Machine: Sized {
    /// What can happen to it.
    type Event;
    /// What it wants done.
    type Effect;

    /// What happens next.
    fn step(&self, event: Self::Event) -> Step<Self, Self::Effect>;
}

/// What a machine does about an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step<M, E> {
    /// The machine afterwards.
    pub next: M,
    /// Whether `next` must be durable before any effect is performed.
    pub decisive: bool,
    /// What to do, in order. Effects may be performed again after a crash.
    pub effects: Vec<E>,
}
