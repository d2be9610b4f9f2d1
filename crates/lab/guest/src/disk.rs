//! The disk stamper: writes stamped blocks to the start of `/dev/vda` and reads them back.
//!
//! Each write goes with O_DIRECT or through the page cache, in turn, and is followed by fdatasync; each read
//! takes the other way. A block must hold what was last written to it in this boot; blocks not yet written in
//! this boot, and blocks whose last write failed, are not judged.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::memory::Budget;
use crate::settings::Settings;
use crate::stamp::{self, PAGE_BYTES, Page};
use crate::{console, json_string, lock, spawn, sys};

const DEVICE: &str = "/dev/vda";
const TICK: Duration = Duration::from_millis(5);
const BLOCKS_PER_MIB: usize = 256;
/// Errors beyond this many are counted, not kept.
const ERRORS_KEPT: usize = 16;

/// What the disk stamper has done so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct Status {
    pub(crate) written: u64,
    pub(crate) verified: u64,
    pub(crate) error_count: u64,
    /// The first few errors, in words.
    pub(crate) errors: Vec<String>,
}

/// The disk stamper as the rest of the guest sees it.
pub(crate) struct Disk {
    status: Arc<Mutex<Status>>,
    requests: Sender<Sender<Status>>,
}

impl Disk {
    pub(crate) fn status(&self) -> Status {
        lock(&self.status).clone()
    }

    /// Reads every block that was written, both ways, beginning now, and gives the status after that.
    pub(crate) fn verify(&self) -> Option<Status> {
        let (reply, answer) = mpsc::channel();
        self.requests.send(reply).ok()?;
        answer.recv().ok()
    }
}

/// Starts the stamper; none if there is no disk to stamp.
pub(crate) fn start(settings: &Settings, seed: u64) -> Option<Disk> {
    let started = open(settings, seed).and_then(|stamper| {
        let (requests, received) = mpsc::channel();
        let status = Arc::clone(&stamper.status);
        spawn("disk", move || stamper.run(&received))?;
        Ok(Disk { status, requests })
    });
    started
        .map_err(|error| console("disk-failed", &format!("\"error\":{}", json_string(&error.to_string()))))
        .ok()
}

fn open(settings: &Settings, seed: u64) -> io::Result<Stamper> {
    let mut buffered = OpenOptions::new().read(true).write(true).open(DEVICE)?;
    let direct = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(DEVICE)?;
    let there = usize::try_from(buffered.seek(SeekFrom::End(0))?).map_err(io::Error::other)? / PAGE_BYTES;
    let wanted = usize::try_from(settings.disk_mib).map_err(io::Error::other)? * BLOCKS_PER_MIB;
    let blocks = there.min(wanted);
    if blocks == 0 {
        return Err(io::Error::other(format!("{DEVICE} has no whole block")));
    }
    Ok(Stamper {
        files: [direct, buffered],
        buffer: sys::map_pages(BLOCKS_PER_MIB)?,
        table: vec![None; blocks],
        seed,
        generation: 0,
        random: !seed,
        writes_s: settings.disk_writes_s,
        status: Arc::default(),
    })
}

struct Stamper {
    /// The same device, with O_DIRECT and through the page cache.
    files: [File; 2],
    /// Page aligned, as O_DIRECT demands.
    buffer: &'static mut [Page],
    /// The generation that each block must have, where that is known.
    table: Vec<Option<u64>>,
    seed: u64,
    generation: u64,
    random: u64,
    writes_s: u64,
    status: Arc<Mutex<Status>>,
}

impl Stamper {
    fn run(mut self, requests: &Receiver<Sender<Status>>) {
        let mut writes = Budget::default();
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
            for _ in 0..writes.take(sys::monotonic_ns(), self.writes_s) {
                let way = (self.generation % 2) as usize;
                let block = self.random_block();
                self.write(block, way);
                let block = self.random_block();
                self.check(block, 1, 1 - way);
            }
        }
    }

    fn random_block(&mut self) -> usize {
        (stamp::next_random(&mut self.random) % self.table.len() as u64) as usize
    }

    fn write(&mut self, block: usize, way: usize) {
        self.generation += 1;
        stamp::write_block(&mut self.buffer[0], self.seed, block as u64, self.generation);
        let file = &self.files[way];
        let bytes = sys::as_bytes(&self.buffer[..1]);
        match file.write_all_at(bytes, offset(block)).and_then(|()| file.sync_data()) {
            Ok(()) => {
                self.table[block] = Some(self.generation);
                lock(&self.status).written += 1;
            }
            Err(error) => {
                self.table[block] = None;
                self.report(format!("block {block}: write: {error}"));
            }
        }
    }

    fn full_pass(&mut self) {
        for way in 0..self.files.len() {
            for first in (0..self.table.len()).step_by(self.buffer.len()) {
                self.check(first, self.buffer.len().min(self.table.len() - first), way);
            }
        }
    }

    /// Reads blocks and judges those whose generation is known.
    fn check(&mut self, first: usize, count: usize, way: usize) {
        let bytes = sys::as_bytes_mut(&mut self.buffer[..count]);
        if let Err(error) = self.files[way].read_exact_at(bytes, offset(first)) {
            self.report(format!("block {first}: read: {error}"));
            return;
        }
        for (index, words) in self.buffer[..count].iter().enumerate() {
            let block = first + index;
            let Some(generation) = self.table[block] else { continue };
            lock(&self.status).verified += 1;
            if let Err(found) = stamp::check_block(words, self.seed, block as u64, generation) {
                self.report(format!("block {block}: generation {generation} expected, found {found}"));
            }
        }
    }

    fn report(&self, error: String) {
        let mut status = lock(&self.status);
        status.error_count += 1;
        if status.errors.len() < ERRORS_KEPT {
            console("disk-fault", &format!("\"error\":{}", json_string(&error)));
            status.errors.push(error);
        }
    }
}

fn offset(block: usize) -> u64 {
    (block * PAGE_BYTES) as u64
}
