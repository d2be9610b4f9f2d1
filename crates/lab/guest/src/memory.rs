//! The memory stamper: one thread that fills pages, rewrites them at a set rate and checks them for ever.
//!
//! What each page must contain follows from its number and its generation; the generations are kept in a
//! table of their own, each entry with a checksum, so that a fault in the table is not taken for one in a
//! page. Generations are drawn from one counter: no two writes of a boot look alike. A page is checked before
//! it is overwritten, so no fault is papered over; and a fault once seen is never forgotten.

use std::fs;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::settings::Settings;
use crate::stamp::{self, Found, Page};
use crate::{console, lock, spawn, sys};

const PAGES_PER_MIB: u64 = 256;
/// How often writes and checks that have fallen due are done.
const TICK: Duration = Duration::from_millis(5);
/// What is done at a stretch before the counters are published.
const STRETCH: usize = 256;
/// Faults beyond this many are counted, not kept.
const FAULTS_KEPT: usize = 16;

/// A page that did not hold what was written last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) page: u64,
    pub(crate) expected: u64,
    pub(crate) found: String,
}

/// What the stamper has done so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct Status {
    /// The generation of the latest write: the number of page writes since boot.
    pub(crate) generation: u64,
    pub(crate) pages: u64,
    /// Pages written at least once; equal to `pages` once the first fill is over.
    pub(crate) filled: u64,
    pub(crate) verified: u64,
    /// Times that every page was checked.
    pub(crate) passes: u64,
    pub(crate) fault_count: u64,
    /// The first few faults.
    pub(crate) faults: Vec<Fault>,
}

/// The stamper as the rest of the guest sees it.
pub(crate) struct Memory {
    status: Arc<Mutex<Status>>,
    dirty_mib_s: Arc<AtomicU64>,
    requests: Sender<Sender<Status>>,
}

impl Memory {
    pub(crate) fn status(&self) -> Status {
        lock(&self.status).clone()
    }

    pub(crate) fn dirty_mib_s(&self) -> u64 {
        self.dirty_mib_s.load(Ordering::Relaxed)
    }

    pub(crate) fn set_dirty_mib_s(&self, rate: u64) {
        self.dirty_mib_s.store(rate, Ordering::Relaxed);
    }

    /// Checks every page once, beginning now, and gives the status after that.
    pub(crate) fn verify(&self) -> Option<Status> {
        let (reply, answer) = mpsc::channel();
        self.requests.send(reply).ok()?;
        answer.recv().ok()
    }
}

/// Starts the stamper.
///
/// # Errors
/// When the guest has not that much memory.
pub(crate) fn start(settings: &Settings, seed: u64) -> io::Result<Memory> {
    let available_mib = available_mib()?;
    if settings.fill_mib >= available_mib {
        let message = format!("limosa.fill_mib={} but {available_mib} MiB are free", settings.fill_mib);
        return Err(io::Error::other(message));
    }
    let count = usize::try_from(settings.fill_mib * PAGES_PER_MIB).map_err(io::Error::other)?;
    let (requests, received) = mpsc::channel();
    let status = Arc::new(Mutex::new(Status { pages: count as u64, ..Status::default() }));
    let dirty_mib_s = Arc::new(AtomicU64::new(settings.dirty_mib_s));
    let stamper = Stamper {
        pages: sys::map_pages(count)?,
        table: vec![Entry::default(); count],
        seed,
        generation: 0,
        cursor: 0,
        random: seed,
        verify_mib_s: settings.verify_mib_s,
        dirty_mib_s: Arc::clone(&dirty_mib_s),
        writes: Budget::default(),
        status: Arc::clone(&status),
    };
    spawn("memory", move || stamper.run(&received))?;
    Ok(Memory { status, dirty_mib_s, requests })
}

struct Stamper {
    pages: &'static mut [Page],
    table: Vec<Entry>,
    seed: u64,
    generation: u64,
    /// The page that is checked next.
    cursor: usize,
    random: u64,
    verify_mib_s: u64,
    dirty_mib_s: Arc<AtomicU64>,
    writes: Budget,
    status: Arc<Mutex<Status>>,
}

impl Stamper {
    fn run(mut self, requests: &Receiver<Sender<Status>>) {
        self.fill();
        let mut checks = Budget::default();
        loop {
            match requests.recv_timeout(TICK) {
                Ok(reply) => {
                    self.full_pass();
                    // Whoever asked may have gone away.
                    drop(reply.send(lock(&self.status).clone()));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.write_what_is_due();
            let due = checks.take(sys::monotonic_ns(), self.verify_mib_s * PAGES_PER_MIB);
            self.check_next(usize::try_from(due).unwrap_or(usize::MAX).min(self.pages.len()));
        }
    }

    fn fill(&mut self) {
        for index in 0..self.pages.len() {
            self.write(index);
            if index % STRETCH == 0 {
                self.publish_progress(index as u64 + 1);
            }
        }
        self.publish_progress(self.pages.len() as u64);
        console("filled", &format!("\"pages\":{}", self.pages.len()));
    }

    fn publish_progress(&self, filled: u64) {
        let mut status = lock(&self.status);
        status.filled = filled;
        status.generation = self.generation;
    }

    /// Every page once from the first, while the rewriting goes on.
    fn full_pass(&mut self) {
        self.cursor = 0;
        let mut left = self.pages.len();
        while left > 0 {
            let stretch = left.min(STRETCH);
            self.check_next(stretch);
            left -= stretch;
            self.write_what_is_due();
        }
    }

    fn write_what_is_due(&mut self) {
        let rate = self.dirty_mib_s.load(Ordering::Relaxed).saturating_mul(PAGES_PER_MIB);
        for _ in 0..self.writes.take(sys::monotonic_ns(), rate) {
            let index = (stamp::next_random(&mut self.random) % self.pages.len() as u64) as usize;
            self.check(index);
            self.write(index);
        }
        lock(&self.status).generation = self.generation;
    }

    fn check_next(&mut self, count: usize) {
        for _ in 0..count {
            self.check(self.cursor);
            self.cursor += 1;
            if self.cursor == self.pages.len() {
                self.cursor = 0;
                lock(&self.status).passes += 1;
            }
        }
        lock(&self.status).verified += count as u64;
    }

    fn write(&mut self, index: usize) {
        self.generation += 1;
        stamp::write(&mut self.pages[index], self.seed, index as u64, self.generation);
        self.table[index] = Entry::new(self.seed, index, self.generation);
    }

    fn check(&mut self, index: usize) {
        let entry = self.table[index];
        if entry != Entry::new(self.seed, index, entry.generation) {
            self.report(index, entry.generation, "the table of generations is damaged".to_owned());
            return;
        }
        let checked = stamp::check(&self.pages[index], self.seed, index as u64, entry.generation);
        if let Err(found) = checked {
            self.report_page(index, entry.generation, found);
        }
    }

    fn report_page(&self, index: usize, expected: u64, found: Found) {
        self.report(index, expected, found.to_string());
    }

    fn report(&self, index: usize, expected: u64, found: String) {
        let mut status = lock(&self.status);
        status.fault_count += 1;
        if status.faults.len() < FAULTS_KEPT {
            let fields = format!("\"page\":{index},\"expected\":{expected},\"found\":\"{found}\"");
            console("memory-fault", &fields);
            status.faults.push(Fault { page: index as u64, expected, found });
        }
    }
}

/// The generation that a page must have, and a checksum of that.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Entry {
    generation: u64,
    check: u64,
}

impl Entry {
    fn new(seed: u64, index: usize, generation: u64) -> Self {
        Self { generation, check: stamp::mix(!seed, index as u64, generation) }
    }
}

/// How much work has fallen due at a rate, with what could not be done in 100 ms forgiven: after a pause of
/// the guest the rate goes on, it is not caught up with.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    last_ns: u64,
    /// What is due beyond whole units, in units per 10⁹.
    fraction: u64,
}

impl Budget {
    pub(crate) fn take(&mut self, now_ns: u64, rate_per_s: u64) -> u64 {
        const FORGIVEN_NS: u64 = 100_000_000;
        let elapsed_ns = now_ns.saturating_sub(self.last_ns).min(FORGIVEN_NS);
        self.last_ns = now_ns;
        let due = elapsed_ns.saturating_mul(rate_per_s).saturating_add(self.fraction);
        self.fraction = due % 1_000_000_000;
        due / 1_000_000_000
    }
}

fn available_mib() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.map(|kib| kib / 1024).ok_or_else(|| io::Error::other("/proc/meminfo has no MemAvailable"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn stamper(count: usize) -> Stamper {
        let mut stamper = Stamper {
            pages: sys::map_pages(count).unwrap(),
            table: vec![Entry::default(); count],
            seed: 42,
            generation: 0,
            cursor: 0,
            random: 42,
            verify_mib_s: 0,
            dirty_mib_s: Arc::default(),
            writes: Budget::default(),
            status: Arc::default(),
        };
        stamper.fill();
        stamper
    }

    fn faults(stamper: &Stamper) -> Vec<Fault> {
        lock(&stamper.status).faults.clone()
    }

    #[test]
    fn memory_that_nobody_touched_passes_whatever_was_rewritten() {
        let mut stamper = stamper(64);
        for index in [3, 3, 9, 63] {
            stamper.check(index);
            stamper.write(index);
        }
        stamper.full_pass();
        assert_eq!(faults(&stamper), []);
        assert_eq!(lock(&stamper.status).verified, 64);
        assert_eq!(lock(&stamper.status).passes, 1);
    }

    #[test]
    fn a_stale_page_is_named_with_both_generations() {
        let mut stamper = stamper(64);
        let before = stamper.pages[5];
        stamper.write(5);
        stamper.pages[5] = before;
        stamper.full_pass();
        let expected = Fault { page: 5, expected: 65, found: "generation 6".to_owned() };
        assert_eq!(faults(&stamper), [expected]);
    }

    #[test]
    fn swapped_and_lost_pages_are_named() {
        let mut stamper = stamper(64);
        stamper.pages.swap(1, 2);
        stamper.pages[3] = [0; stamp::PAGE_WORDS];
        stamper.full_pass();
        let found: Vec<_> = faults(&stamper).into_iter().map(|fault| (fault.page, fault.found)).collect();
        let expected = [(1, "page 2 of generation 3"), (2, "page 1 of generation 2"), (3, "zero page")];
        assert_eq!(found, expected.map(|(page, found)| (page, found.to_owned())));
    }

    #[test]
    fn a_fault_survives_the_rewrite_of_its_page() {
        let mut stamper = stamper(8);
        stamper.pages[5] = [0; stamp::PAGE_WORDS];
        stamper.check(5);
        stamper.write(5);
        stamper.full_pass();
        assert_eq!(lock(&stamper.status).fault_count, 1);
    }

    #[test]
    fn a_damaged_table_is_not_taken_for_a_damaged_page() {
        let mut stamper = stamper(8);
        stamper.table[2].generation += 1;
        stamper.full_pass();
        assert_eq!(faults(&stamper)[0].found, "the table of generations is damaged");
    }

    #[test]
    fn a_budget_keeps_the_rate_and_forgives_a_pause() {
        let mut budget = Budget::default();
        budget.take(1000 * MS, 256);
        let due: u64 = (1..=1000).map(|tick| budget.take((1000 + tick) * MS, 256)).sum();
        assert_eq!(due, 256);
        assert_eq!(budget.take(60_000 * MS, 1000), 100, "a minute's pause costs 100 ms of work");
        assert_eq!(budget.take(60_000 * MS, 1000), 0);
    }
}
