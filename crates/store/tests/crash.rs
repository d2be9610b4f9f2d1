//! A server that is killed: everything it had acknowledged is there, and revisions go on.
//!
//! The test starts itself again as the process that writes, reads its acknowledgements, and kills it
//! in the middle. The seed of the moments is printed; `LIMOSA_SEED` sets it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::env;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use limosa_store::{Embedded, Op, Range, Revision, Store, Txn, Typed};

const LIFE: &str = "LIMOSA_STORE_CRASH_FOLDER";
const LIVES: usize = 12;
const WRITERS: usize = 6;

/// What one writer counts; the same number goes to two keys in one transaction.
fn counter(writer: usize) -> String {
    format!("counter/{writer}")
}

/// The process that is killed. Does nothing unless the test below started it.
#[test]
fn writer_process() {
    let Ok(folder) = env::var(LIFE) else { return };
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let store = Arc::new(Embedded::open(Path::new(&folder).join("store")).unwrap());
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..WRITERS {
            let store = store.clone();
            writers.spawn(async move {
                loop {
                    let key = counter(writer);
                    let n = store.get_json::<u64>(&key).await.unwrap().map_or(0, |n| n.value) + 1;
                    let txn = Txn::new()
                        .then(Op::put_json(&*key, &n).unwrap())
                        .then(Op::put_json(format!("twin/{writer}"), &n).unwrap());
                    let revision = store.txn(txn).await.unwrap().revision;
                    writeln!(std::io::stdout().lock(), "acknowledged {writer} {n} {revision}").unwrap();
                }
            });
        }
        writers.join_next().await.unwrap().unwrap();
    });
}

#[test]
fn every_acknowledged_write_survives_kill_9_and_no_revision_comes_twice() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = env::var("LIMOSA_SEED").map_or(now, |seed| seed.parse().unwrap());
    println!("LIMOSA_SEED={seed}");
    let mut random = Random(seed);
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut acknowledged = BTreeMap::new();
    let mut newest = Revision(0);
    for life in 0..LIVES {
        let before = newest;
        live_and_die(folder.path(), &mut random, |writer, n, revision| {
            assert!(revision > before, "life {life}: revision {revision} had been given before");
            acknowledged.insert(writer, n);
            newest = newest.max(revision);
        });
        let store = Embedded::open(folder.path().join("store")).unwrap();
        runtime.block_on(async {
            let found = store.range(Range::prefix("")).await.unwrap();
            assert!(found.revision >= newest, "life {life}");
            newest = found.revision;
            for (&writer, &n) in &acknowledged {
                let count = store.get_json::<u64>(&counter(writer)).await.unwrap().unwrap();
                let twin = store.get_json::<u64>(&format!("twin/{writer}")).await.unwrap().unwrap();
                assert!(count.value >= n, "life {life}: {n} was acknowledged, {} is there", count.value);
                assert_eq!(count, twin, "life {life}: half a transaction");
            }
        });
    }
    assert_eq!(acknowledged.len(), WRITERS);
}

/// Starts a writer, hears its acknowledgements, kills it in the middle and hears what it had said.
fn live_and_die(folder: &Path, random: &mut Random, mut heard: impl FnMut(usize, u64, Revision)) {
    let mut writer = Command::new(env::current_exe().unwrap())
        .args(["--exact", "writer_process", "--nocapture"])
        .env(LIFE, folder)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines();
    let mut hear = |line: &str| {
        let words: Vec<_> = line.split(' ').collect();
        if let ["acknowledged", writer, n, revision] = words[..] {
            heard(writer.parse().unwrap(), n.parse().unwrap(), Revision(revision.parse().unwrap()));
        }
        words[0] == "acknowledged"
    };
    let mut left = 1 + random.below(200);
    while left > 0 {
        let line = lines.next().expect("the writer writes until it is killed").unwrap();
        left -= u64::from(hear(&line));
    }
    // Anywhere in the few commits that follow, which is what is tested.
    std::thread::sleep(Duration::from_micros(random.below(3000)));
    writer.kill().unwrap();
    writer.wait().unwrap();
    for line in lines {
        // A line that was cut off was not heard by anybody.
        let line = line.unwrap();
        if line.split(' ').count() == 4 {
            hear(&line);
        }
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}
