//! Whether a migration converges, by what was measured, and what to do about one that does not.
//!
//! The ladder, in order, as far as the user's options allow: QEMU slows the guest down (auto-converge, which it begins
//! by itself after two passes that fall behind) → give up early, with the numbers. Compressing harder and sending
//! deltas come before, post-copy after, once the engine has them.

use limosa_model::{Bandwidth, ByteSize, Millis};

/// What was measured over one pass over the dirty pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pass {
    /// What was left to send at its end.
    pub remaining: ByteSize,
    /// How fast memory was sent.
    pub rate: Bandwidth,
    /// How fast the guest dirtied memory.
    pub dirty_rate: Bandwidth,
    /// How far QEMU slows the guest down already, 0 to 99 percent.
    pub throttle_percent: u8,
}

/// What to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advice {
    /// It converges, or it is too early to tell.
    GoOn,
    /// It will not converge within the limits: give up, with these numbers.
    GiveUp {
        /// How long the guest would stand still if it were switched over with what is left.
        downtime_ms: Millis,
    },
}

/// What the user allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowed {
    /// How long the guest may stand still.
    pub downtime_limit_ms: Millis,
    /// Whether the guest may be slowed down.
    pub throttle: bool,
}

/// Passes that must fail in a row before anything is concluded from them: one can be an accident.
pub const PASSES: usize = 3;

/// The highest that QEMU throttles, in percent.
pub const THROTTLE_MAX_PERCENT: u8 = 99;

/// How long it takes to send this much at this rate. `None` at a standstill.
pub fn time_to_send(what: ByteSize, rate: Bandwidth) -> Option<Millis> {
    let bytes_per_second = rate.as_bytes_per_second();
    (bytes_per_second > 0)
        .then(|| Millis::new((u128::from(what.as_bytes()) * 1000 / u128::from(bytes_per_second)) as u64))
}

/// What to do after these passes, the latest last.
///
/// A migration converges while each pass leaves less than the one before. The dirty rate does not tell that by itself:
/// a guest that rewrites the same memory over and over seems to dirty just what the link carries in a pass.
pub fn advise(passes: &[Pass], allowed: Allowed) -> Advice {
    let Some(latest) = passes.last_chunk::<PASSES>() else { return Advice::GoOn };
    let time = |pass: &Pass| time_to_send(pass.remaining, pass.rate);
    let too_long = latest.iter().all(|pass| time(pass).is_none_or(|time| time > allowed.downtime_limit_ms));
    let shrinks = latest.windows(2).any(|pair| {
        u128::from(pair[1].remaining.as_bytes()) * 10 < u128::from(pair[0].remaining.as_bytes()) * 9
    });
    let last = latest[PASSES - 1];
    let can_throttle = allowed.throttle && last.throttle_percent < THROTTLE_MAX_PERCENT;
    if !too_long || shrinks || can_throttle {
        return Advice::GoOn;
    }
    Advice::GiveUp { downtime_ms: time(&last).unwrap_or(Millis::new(u64::MAX)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWED: Allowed = Allowed { downtime_limit_ms: Millis::new(300), throttle: true };

    fn pass(remaining_mib: u64, rate_mbit: u64, dirty_mbit: u64, throttle_percent: u8) -> Pass {
        let mbit = |n: u64| Bandwidth::bits_per_second(n * 1_000_000);
        Pass {
            remaining: ByteSize::mib(remaining_mib),
            rate: mbit(rate_mbit),
            dirty_rate: mbit(dirty_mbit),
            throttle_percent,
        }
    }

    const UNTHROTTLED: Allowed = Allowed { throttle: false, ..ALLOWED };

    #[test]
    fn a_migration_that_leaves_less_after_each_pass_is_let_go_on() {
        let passes: Vec<_> = (0..9).map(|n| pass(900 * 8_u64.pow(n) / 10_u64.pow(n), 1000, 900, 0)).collect();
        for n in 0..passes.len() {
            assert_eq!(advise(&passes[..n], UNTHROTTLED), Advice::GoOn);
        }
    }

    #[test]
    fn one_bad_pass_proves_nothing() {
        let passes = [pass(900, 1000, 2000, 0), pass(100, 1000, 200, 0), pass(900, 1000, 2000, 0)];
        assert_eq!(advise(&passes, UNTHROTTLED), Advice::GoOn);
        assert_eq!(advise(&[], UNTHROTTLED), Advice::GoOn);
    }

    #[test]
    fn a_guest_that_rewrites_the_same_memory_as_fast_as_the_link_carries_it_does_not_converge() {
        let passes = [pass(32, 60, 60, 0), pass(32, 60, 59, 0), pass(31, 60, 59, 0)];
        assert_eq!(advise(&passes, UNTHROTTLED), Advice::GiveUp { downtime_ms: Millis::new(4334) });
    }

    #[test]
    fn what_fits_the_downtime_limit_is_no_trouble_however_dirty() {
        assert_eq!(advise(&[pass(10, 1000, 2000, 0); 3], ALLOWED), Advice::GoOn);
    }

    #[test]
    fn the_ladder_is_climbed_in_order_and_ends_with_the_numbers() {
        assert_eq!(advise(&[pass(900, 1000, 2000, 0); 3], ALLOWED), Advice::GoOn);
        assert_eq!(advise(&[pass(900, 1000, 2000, 40); 3], ALLOWED), Advice::GoOn);
        let given_up = Advice::GiveUp { downtime_ms: Millis::new(7549) };
        assert_eq!(advise(&[pass(900, 1000, 2000, 99); 3], ALLOWED), given_up);
        assert_eq!(advise(&[pass(900, 1000, 2000, 0); 3], UNTHROTTLED), given_up);
    }

    #[test]
    fn a_standstill_never_ends() {
        assert_eq!(time_to_send(ByteSize::mib(1), Bandwidth::bits_per_second(7)), None);
    }
}
