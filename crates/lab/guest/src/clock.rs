//! Watches the guest's clocks: a thread wakes every millisecond and notes when it did not.

use std::io;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::{lock, spawn, sys};

const TICK: Duration = Duration::from_millis(1);
/// A gap above this counts as a jump.
const JUMP_NS: u64 = 20_000_000;

/// What was seen of the clocks since boot, or since the last reset.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Jumps {
    /// The longest time between two ticks on CLOCK_MONOTONIC.
    pub(crate) max_gap_ns: u64,
    /// How many were above 20 ms.
    pub(crate) count: u64,
    /// The largest change of CLOCK_REALTIME against CLOCK_MONOTONIC in one tick, either way.
    pub(crate) realtime_max_ns: u64,
    /// How many were above 20 ms.
    pub(crate) realtime_count: u64,
}

impl Jumps {
    /// Takes in one tick, from the times read at the tick before and at this one.
    fn note(&mut self, before: (u64, u64), now: (u64, u64)) {
        let gap = now.0.saturating_sub(before.0);
        let shift = (now.1.wrapping_sub(before.1).wrapping_sub(gap) as i64).unsigned_abs();
        self.max_gap_ns = self.max_gap_ns.max(gap);
        self.count += u64::from(gap > JUMP_NS);
        self.realtime_max_ns = self.realtime_max_ns.max(shift);
        self.realtime_count += u64::from(shift > JUMP_NS);
    }
}

/// Starts the watching thread.
pub(crate) fn watch() -> io::Result<Arc<Mutex<Jumps>>> {
    let jumps = Arc::new(Mutex::new(Jumps::default()));
    let shared = Arc::clone(&jumps);
    let read = || (sys::monotonic_ns(), sys::realtime_ns());
    spawn("clock", move || {
        let mut before = read();
        loop {
            thread::sleep(TICK);
            let now = read();
            lock(&shared).note(before, now);
            before = now;
        }
    })?;
    Ok(jumps)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_steady_clock_has_no_jumps() {
        let mut jumps = Jumps::default();
        jumps.note((5 * MS, 1000 * MS), (6 * MS, 1001 * MS));
        assert_eq!(jumps, Jumps { max_gap_ns: MS, ..Jumps::default() });
    }

    #[test]
    fn a_pause_and_a_step_of_the_wall_clock_are_told_apart() {
        let mut jumps = Jumps::default();
        jumps.note((0, 1000 * MS), (50 * MS, 1050 * MS));
        assert_eq!((jumps.count, jumps.realtime_count), (1, 0));
        jumps.note((50 * MS, 1050 * MS), (51 * MS, 951 * MS));
        assert_eq!((jumps.count, jumps.realtime_count, jumps.realtime_max_ns), (1, 1, 100 * MS));
    }
}
