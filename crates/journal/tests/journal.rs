//! What a journal promises, when everything works and when it does not.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use limosa_journal::{Journal, JournalError, Medium, drive};
use limosa_model::{Machine, Step};
use proptest::prelude::*;

/// A disk that fails when told to, and whose content can be looked at and cut.
#[derive(Clone, Default)]
struct Disk(Arc<Mutex<DiskState>>);

#[derive(Default)]
struct DiskState {
    bytes: Vec<u8>,
    fail_writes: bool,
    fail_syncs: bool,
    full: bool,
    syncs: usize,
}

impl Disk {
    fn with(&self, change: impl FnOnce(&mut DiskState)) {
        change(&mut self.0.lock().unwrap());
    }

    /// The journal as it lies on this disk.
    fn journal(&self) -> Result<Journal, JournalError> {
        Journal::over(Box::new(self.clone()), Path::new("on-a-test-disk"))
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().bytes.clone()
    }

    fn holding(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(DiskState { bytes, ..DiskState::default() })))
    }
}

impl Medium for Disk {
    fn read_from(&self, offset: u64) -> io::Result<Vec<u8>> {
        Ok(self.0.lock().unwrap().bytes[offset as usize..].to_vec())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        let end = offset as usize + bytes.len();
        if state.full && end > state.bytes.len() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if state.bytes.len() < end {
            state.bytes.resize(end, 0);
        }
        // A failed write leaves half of itself behind.
        let written = if state.fail_writes { bytes.len() / 2 } else { bytes.len() };
        state.bytes[offset as usize..offset as usize + written].copy_from_slice(&bytes[..written]);
        if state.fail_writes { Err(io::Error::other("write failed")) } else { Ok(()) }
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        state.syncs += 1;
        if state.fail_syncs { Err(io::Error::other("sync failed")) } else { Ok(()) }
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().bytes.len() as u64)
    }

    fn set_aside(&self, len: u64) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        if state.full && (state.bytes.len() as u64) < len {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if (state.bytes.len() as u64) < len {
            state.bytes.resize(len as usize, 0);
        }
        Ok(())
    }
}

/// The bytes of a journal just begun.
fn begun() -> Disk {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    drop(Journal::open(&path).unwrap());
    Disk::holding(std::fs::read(path).unwrap())
}

#[test]
fn the_latest_value_of_each_key_is_found_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let mut journal = Journal::open(&path).unwrap();
    assert!(journal.is_fresh());
    let id = journal.id().unwrap();
    journal.put("vm/a", &1).unwrap();
    journal.put_synced("vm/b", &2).unwrap();
    journal.put("vm/a", &3).unwrap();
    journal.put("other", &"x").unwrap();
    journal.remove("vm/b").unwrap();
    drop(journal);
    let journal = Journal::open(&path).unwrap();
    assert!(!journal.is_fresh());
    assert_eq!(journal.id().unwrap(), id);
    assert_eq!(journal.list::<i32>("vm/").unwrap(), [("a".to_owned(), 3)]);
    assert_eq!(journal.get::<String>("other").unwrap().as_deref(), Some("x"));
}

#[test]
fn a_failed_write_changes_nothing_and_can_be_tried_again() {
    let disk = begun();
    let mut journal = disk.journal().unwrap();
    journal.put_synced("state", &"transferring").unwrap();
    disk.with(|d| d.fail_writes = true);
    assert!(journal.put_synced("state", &"handed-over").is_err());
    assert_eq!(journal.get::<String>("state").unwrap().as_deref(), Some("transferring"));
    assert_eq!(disk.journal().unwrap().get::<String>("state").unwrap().as_deref(), Some("transferring"));
    disk.with(|d| d.fail_writes = false);
    journal.put_synced("state", &"resumed").unwrap();
    assert_eq!(disk.journal().unwrap().get::<String>("state").unwrap().as_deref(), Some("resumed"));
}

#[test]
fn after_a_failed_sync_the_step_that_follows_takes_the_place_of_the_failed_one() {
    let disk = begun();
    let mut journal = disk.journal().unwrap();
    disk.with(|d| d.fail_syncs = true);
    assert!(journal.put_synced("state", &"handed-over, and with many words").is_err());
    disk.with(|d| d.fail_syncs = false);
    journal.put_synced("state", &"resumed").unwrap();
    let again = disk.journal().unwrap();
    assert_eq!(again.get::<String>("state").unwrap().as_deref(), Some("resumed"));
}

#[test]
fn what_was_set_aside_can_be_written_when_the_disk_is_full() {
    let disk = begun();
    let mut journal = disk.journal().unwrap();
    journal.set_aside(64 * 1024).unwrap();
    disk.with(|d| d.full = true);
    for n in 0..200 {
        journal.put_synced("state", &n).unwrap();
    }
    assert_eq!(disk.journal().unwrap().get::<i32>("state").unwrap(), Some(199));
}

#[test]
fn a_broken_record_with_whole_ones_behind_it_is_refused() {
    let disk = begun();
    let mut journal = disk.journal().unwrap();
    for n in 0..10 {
        journal.put("state", &n).unwrap();
    }
    let whole = disk.bytes();
    let first = whole.windows(9).position(|w| w == b"\"state\",\"").unwrap();
    let mut broken = whole.clone();
    broken[first] ^= 1;
    assert!(matches!(Disk::holding(broken).journal(), Err(JournalError::Damaged { .. })));
    assert!(matches!(
        Disk::holding(b"not a journal, and long enough to be one ...".to_vec()).journal(),
        Err(JournalError::Damaged { .. })
    ));
    assert!(matches!(Disk::holding(vec![]).journal(), Err(JournalError::Damaged { .. })));
}

#[test]
fn a_long_journal_is_written_anew_and_stays_the_same_journal() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let mut journal = Journal::open(&path).unwrap();
    let id = journal.id().unwrap();
    journal.put("kept", &"k").unwrap();
    let long = "x".repeat(10_000);
    for n in 0..1000 {
        journal.put("state", &(n, &long)).unwrap();
    }
    assert!(std::fs::metadata(&path).unwrap().len() < 8 << 20);
    drop(journal);
    let journal = Journal::open(&path).unwrap();
    assert_eq!(journal.id().unwrap(), id);
    assert_eq!(journal.get::<(i32, String)>("state").unwrap(), Some((999, long)));
    assert_eq!(journal.get::<String>("kept").unwrap().as_deref(), Some("k"));
}

#[test]
fn a_value_that_is_too_long_is_refused_and_nothing_is_lost() {
    let disk = begun();
    let mut journal = disk.journal().unwrap();
    journal.put("state", &1).unwrap();
    assert!(matches!(journal.put("state", &"x".repeat(2 << 20)), Err(JournalError::Value { .. })));
    assert_eq!(disk.journal().unwrap().get::<i32>("state").unwrap(), Some(1));
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Count(u32);

impl Machine for Count {
    type Event = bool;
    type Effect = u32;

    fn step(&self, decisive: bool) -> Step<Self, u32> {
        Step { next: Self(self.0 + 1), decisive, effects: vec![self.0 + 1] }
    }
}

#[test]
fn effects_are_handed_out_only_after_their_state_is_stored() {
    let disk = begun();
    let mut journal = disk.journal().unwrap();
    let mut machine = Count(0);
    let record = |m: &Count| m.0;
    assert_eq!(drive(&mut journal, "n", &mut machine, false, record).unwrap(), [1]);
    assert_eq!(disk.0.lock().unwrap().syncs, 0);
    assert_eq!(drive(&mut journal, "n", &mut machine, true, record).unwrap(), [2]);
    assert_eq!(disk.0.lock().unwrap().syncs, 1);
    disk.with(|d| d.fail_syncs = true);
    assert!(drive(&mut journal, "n", &mut machine, true, record).is_err());
    assert_eq!(machine, Count(2), "an event that could not be stored has not happened");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Wherever the file is cut, what is read is the history up to some point, never anything else.
    #[test]
    fn a_cut_file_holds_a_prefix_of_the_history(values in prop::collection::vec((0u8..4, any::<u32>()), 1..20), cut in 0.0f64..1.0) {
        let disk = begun();
        let mut journal = disk.journal().unwrap();
        let mut history = vec![std::collections::BTreeMap::new()];
        for (key, value) in &values {
            journal.put(&format!("k/{key}"), value).unwrap();
            let mut state = history.last().unwrap().clone();
            state.insert(key.to_string(), *value);
            history.push(state);
        }
        let mut bytes = disk.bytes();
        let used = bytes.iter().rposition(|b| *b != 0).unwrap() + 1;
        let head = begun().bytes().iter().rposition(|b| *b != 0).unwrap();
        let at = head + ((used.saturating_sub(head)) as f64 * cut) as usize;
        for byte in &mut bytes[at.max(140)..] { *byte = 0; }
        let found: std::collections::BTreeMap<_, _> = Disk::holding(bytes).journal().unwrap().list::<u32>("k/").unwrap().into_iter().collect();
        prop_assert!(history.contains(&found));
    }
}
