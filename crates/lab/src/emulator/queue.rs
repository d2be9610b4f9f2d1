//! One direction of an emulated link, as a queue of frames with times. Pure: the clock is an argument.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Counters, Impairment};
use crate::error::Error;

/// Frames beyond this many bytes are dropped, as any router would: 0.3 s of 1 Gbit/s.
const BYTES_LIMIT: usize = 32 * 1024 * 1024;

/// A share of frames that are lost, in millionths. Written `0.1%`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Loss(u32);

impl Loss {
    const ALL: u32 = 1_000_000;

    /// So many millionths, if that is not more than all.
    pub const fn millionths(count: u32) -> Option<Self> {
        if count <= Self::ALL { Some(Self(count)) } else { None }
    }
}

impl TryFrom<u32> for Loss {
    type Error = Error;

    fn try_from(count: u32) -> Result<Self, Error> {
        Self::millionths(count)
            .ok_or_else(|| Error::invalid("loss", &count.to_string(), "at most a million millionths"))
    }
}

impl From<Loss> for u32 {
    fn from(loss: Loss) -> Self {
        loss.0
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fraction = format!("{:04}", self.0 % 10_000);
        let fraction = fraction.trim_end_matches('0');
        let point = if fraction.is_empty() { "" } else { "." };
        write!(f, "{}{point}{fraction}%", self.0 / 10_000)
    }
}

impl FromStr for Loss {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parse = || {
            let (whole, fraction) = match text.strip_suffix('%')?.split_once('.') {
                Some((whole, fraction)) => (whole, fraction),
                None => (text.strip_suffix('%')?, ""),
            };
            let digits = |part: &str| part.bytes().all(|c| c.is_ascii_digit());
            if whole.is_empty()
                || whole.len() > 3
                || fraction.len() > 4
                || !digits(whole)
                || !digits(fraction)
            {
                return None;
            }
            let count =
                whole.parse::<u32>().ok()? * 10_000 + format!("{fraction:0<4}").parse::<u32>().ok()?;
            Self::millionths(count)
        };
        parse().ok_or_else(|| {
            Error::invalid("loss", text, "a share such as 0.1% is expected, at most four decimals")
        })
    }
}

/// Frames on their way, in the order in which they came.
#[derive(Debug)]
pub struct DelayQueue {
    impairment: Impairment,
    frames: VecDeque<(u64, Vec<u8>)>,
    bytes: usize,
    latest_due_ns: u64,
    random: u64,
    counters: Counters,
}

impl DelayQueue {
    /// An empty queue; the same seed gives the same losses and the same jitter.
    pub fn new(seed: u64) -> Self {
        Self {
            impairment: Impairment::default(),
            frames: VecDeque::new(),
            bytes: 0,
            latest_due_ns: 0,
            random: seed,
            counters: Counters::default(),
        }
    }

    /// Sets what happens to frames that come from here on. Those on their way keep their times, unless the link
    /// is cut, which loses them.
    pub fn set(&mut self, impairment: Impairment) {
        self.impairment = impairment;
        if impairment.cut {
            self.counters.lost += self.frames.len() as u64;
            self.frames.clear();
            self.bytes = 0;
        }
    }

    /// Takes a frame in, or loses it.
    pub fn push(&mut self, now_ns: u64, frame: &[u8]) {
        let drawn = self.below(u64::from(Loss::ALL));
        if self.impairment.cut || drawn < u64::from(self.impairment.loss.0) {
            self.counters.lost += 1;
            return;
        }
        if self.bytes + frame.len() > BYTES_LIMIT {
            self.counters.overflowed += 1;
            return;
        }
        let jitter_us = self.below(self.impairment.jitter_us.saturating_add(1));
        let kept_us = self.impairment.delay_us.saturating_add(jitter_us);
        let due_ns = now_ns.saturating_add(kept_us.saturating_mul(1000)).max(self.latest_due_ns);
        self.latest_due_ns = due_ns;
        self.bytes += frame.len();
        self.frames.push_back((due_ns, frame.to_vec()));
    }

    /// The first frame whose time has come.
    pub fn pop_due(&mut self, now_ns: u64) -> Option<Vec<u8>> {
        if self.next_due_ns()? > now_ns {
            return None;
        }
        let (_, frame) = self.frames.pop_front()?;
        self.bytes -= frame.len();
        self.counters.passed += 1;
        // An empty queue has nothing that a later frame could overtake.
        if self.frames.is_empty() {
            self.latest_due_ns = 0;
        }
        Some(frame)
    }

    /// When the first frame's time comes.
    pub fn next_due_ns(&self) -> Option<u64> {
        self.frames.front().map(|(due_ns, _)| *due_ns)
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// A number below `limit`, which is not 0 (splitmix64).
    fn below(&mut self, limit: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let value = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (value ^ (value >> 31)) % limit.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(impairment: Impairment) -> DelayQueue {
        let mut queue = DelayQueue::new(1);
        queue.set(impairment);
        queue
    }

    #[test]
    fn a_frame_leaves_when_its_delay_is_over_and_not_before() {
        let mut queue = queue(Impairment { delay_us: 75_000, ..Impairment::default() });
        queue.push(1_000, b"frame");
        assert_eq!(queue.next_due_ns(), Some(75_001_000));
        assert_eq!(queue.pop_due(75_000_999), None);
        assert_eq!(queue.pop_due(75_001_000).as_deref(), Some(&b"frame"[..]));
        assert_eq!(queue.next_due_ns(), None);
    }

    #[test]
    fn jitter_stays_in_its_bounds_and_never_reorders() {
        let mut queue = queue(Impairment { delay_us: 100, jitter_us: 50, ..Impairment::default() });
        for number in 0..=255_u8 {
            queue.push(u64::from(number) * 1_000, &[number]);
        }
        let mut order = Vec::new();
        let mut latest = 0;
        while let Some(due) = queue.next_due_ns() {
            let number = queue.pop_due(due).unwrap()[0];
            let pushed = u64::from(number) * 1_000;
            assert!(due >= pushed + 100_000 && due <= pushed.max(latest) + 150_000);
            latest = latest.max(pushed);
            order.push(number);
        }
        assert_eq!(order, (0..=255).collect::<Vec<u8>>());
    }

    #[test]
    fn a_shorter_delay_does_not_let_later_frames_overtake() {
        let mut queue = queue(Impairment { delay_us: 1_000, ..Impairment::default() });
        queue.push(0, b"first");
        queue.set(Impairment::default());
        queue.push(1, b"second");
        assert_eq!(queue.pop_due(999_999), None);
        assert_eq!(queue.pop_due(1_000_000).as_deref(), Some(&b"first"[..]));
        assert_eq!(queue.pop_due(1_000_000).as_deref(), Some(&b"second"[..]));
    }

    #[test]
    fn the_share_that_is_lost_is_the_share_that_was_asked_for() {
        let mut queue = queue(Impairment { loss: "10%".parse().unwrap(), ..Impairment::default() });
        for number in 0..100_000 {
            queue.push(number, b"x");
        }
        let lost = queue.counters().lost;
        assert!((9_500..=10_500).contains(&lost), "{lost} of 100000 lost");
    }

    #[test]
    fn a_cut_loses_what_is_on_its_way_and_what_comes_until_it_is_mended() {
        let mut queue = queue(Impairment::default());
        queue.push(0, b"before");
        queue.set(Impairment { cut: true, ..Impairment::default() });
        queue.push(1, b"during");
        assert_eq!(queue.pop_due(u64::MAX), None);
        queue.set(Impairment::default());
        queue.push(2, b"after");
        assert_eq!(queue.pop_due(2).as_deref(), Some(&b"after"[..]));
        assert_eq!(queue.counters(), Counters { passed: 1, lost: 2, overflowed: 0 });
    }

    #[test]
    fn a_full_queue_drops_and_keeps_its_bound() {
        let mut queue = queue(Impairment { delay_us: 1, ..Impairment::default() });
        let frame = vec![0; 1024 * 1024];
        for _ in 0..40 {
            queue.push(0, &frame);
        }
        assert_eq!(queue.counters().overflowed, 8);
        assert_eq!(queue.bytes, BYTES_LIMIT);
    }

    #[test]
    fn losses_are_read_as_they_are_written() {
        for (text, count) in
            [("0%", 0), ("0.1%", 1_000), ("0.0001%", 1), ("12.5%", 125_000), ("100%", 1_000_000)]
        {
            let loss: Loss = text.parse().unwrap();
            assert_eq!((loss.0, loss.to_string().as_str()), (count, text));
        }
        for text in ["", "%", "1", "-1%", "100.1%", "0.00001%", ".1%", "1.x%", "9999%", "+1%"] {
            assert!(text.parse::<Loss>().is_err(), "{text}");
        }
    }
}
