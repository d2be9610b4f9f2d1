//! The embedded store: the conformance suite, and what only a file can do.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use limosa_store::conformance::{self, Fixture};
use limosa_store::{
    Embedded, ManualClock, Op, Options, Range, Revision, Store, StoreError, Txn, Typed, restore_from,
};
use tempfile::TempDir;

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

async fn put(store: &dyn Store, key: &str, value: impl Into<Vec<u8>>) -> Revision {
    store.txn(Txn::new().then(Op::put(key, value))).await.unwrap().revision
}

#[tokio::test]
async fn the_embedded_store_conforms() {
    conformance::run(|| async {
        let folder = folder();
        let clock = Arc::new(ManualClock::default());
        let options = Options { clock: clock.clone() };
        let store = Arc::new(Embedded::open_with(folder.path().join("store"), options).unwrap());
        let pass = move |by| {
            clock.advance(by);
            Box::pin(std::future::ready(())) as _
        };
        Fixture { store, pass: Box::new(pass), keep: Box::new(folder) }
    })
    .await;
}

#[tokio::test]
async fn what_was_written_is_there_after_a_restart_and_revisions_go_on() {
    let folder = folder();
    let path = folder.path().join("store");
    let store = Embedded::open(&path).unwrap();
    let incarnation = store.incarnation().await.unwrap();
    put(&store, "a", "1").await;
    let last = put(&store, "a", "2").await;
    drop(store);
    let store = Embedded::open(&path).unwrap();
    let entry = store.get("a").await.unwrap().unwrap();
    assert_eq!((&*entry.value, entry.mod_revision, entry.version), (&b"2"[..], last, 2));
    assert_eq!(put(&store, "b", "1").await, last.next());
    assert_eq!(store.incarnation().await.unwrap(), incarnation);
}

#[tokio::test]
async fn a_lease_begins_its_time_anew_when_the_store_is_opened() {
    let folder = folder();
    let path = folder.path().join("store");
    let clock = Arc::new(ManualClock::default());
    let open = || Embedded::open_with(&path, Options { clock: clock.clone() }).unwrap();
    let store = open();
    let lease = store.grant_lease(Duration::from_secs(10)).await.unwrap().id;
    let revision = store.txn(Txn::new().then(Op::put_leased("l", "1", lease))).await.unwrap().revision;
    clock.advance(Duration::from_secs(9));
    drop(store);
    clock.advance(Duration::from_secs(100));
    let store = open();
    clock.advance(Duration::from_secs(9));
    assert_eq!(store.lease(lease).await.unwrap().remaining, Duration::from_secs(1));
    clock.advance(Duration::from_secs(1));
    let changes = store.watch("l", revision.next()).await.unwrap().next().await.unwrap();
    assert_eq!(changes.events[0].key(), "l");
    assert!(
        store.grant_lease(Duration::from_secs(10)).await.unwrap().id > lease,
        "no lease's name comes twice"
    );
}

#[tokio::test]
async fn a_slow_watcher_and_large_changes_lose_nothing() {
    let folder = folder();
    let store = Embedded::open(folder.path().join("store")).unwrap();
    let mut watch = store.watch("k/", Revision(1)).await.unwrap();
    let mut expected = vec![put(&store, "k/0", "first").await];
    assert_eq!(watch.next().await.unwrap().revision, expected[0]);
    for n in 0..600 {
        put(&store, "other", "x").await;
        let bytes = if n % 50 == 0 { 100_000 } else { 10 };
        expected.push(put(&store, "k/1", vec![0; bytes]).await);
    }
    for revision in &expected[1..] {
        assert_eq!(watch.next().await.unwrap().revision, *revision);
    }
    drop(store);
    assert!(matches!(watch.next().await, Err(StoreError::Closed)));
}

#[tokio::test]
async fn a_watch_from_the_oldest_revision_kept_sees_a_deletion_made_there() {
    let folder = folder();
    let store = Embedded::open(folder.path().join("store")).unwrap();
    put(&store, "a", "1").await;
    let deleted = store.txn(Txn::new().then(Op::delete("a"))).await.unwrap().revision;
    store.compact(deleted).await.unwrap();
    assert_eq!(store.watch("", deleted).await.unwrap().next().await.unwrap().revision, deleted);
}

#[test]
fn every_file_of_the_store_is_its_owners_alone() {
    let folder = folder();
    let path = folder.path().join("store");
    let store = Embedded::open(&path).unwrap();
    let mode = |entry: &fs::DirEntry| entry.metadata().unwrap().permissions().mode() & 0o777;
    for entry in fs::read_dir(folder.path()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(mode(&entry), 0o600, "{:?}", entry.path());
    }
    drop(store);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let _store = Embedded::open(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_second_opener_is_refused_and_told_who_was_first() {
    let folder = folder();
    let path = folder.path().join("store");
    let first = Embedded::open(&path).unwrap();
    let error = Embedded::open(&path).map(drop).unwrap_err().to_string();
    assert!(error.contains("in use") && error.contains(&std::process::id().to_string()), "{error}");
    assert!(matches!(restore_from(&path, &path), Err(StoreError::InUse { .. })));
    drop(first);
    Embedded::open(&path).unwrap();
}

#[test]
fn a_missing_folder_is_named() {
    let folder = folder();
    let error = Embedded::open(folder.path().join("no/store")).map(drop).unwrap_err().to_string();
    assert!(error.contains("no/store"), "{error}");
}

#[test]
fn a_damaged_empty_or_foreign_file_is_refused_with_the_remedy() {
    let folder = folder();
    let path = folder.path().join("store");
    let store = Embedded::open(&path).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        for n in 0..100 {
            put(&store, &format!("key/{n}"), vec![7; 2000]).await;
        }
    });
    drop(store);
    let whole = fs::read(&path).unwrap();
    let mut holed = whole.clone();
    holed[4096 * 3..4096 * 6].fill(0xa5);
    let foreign = folder.path().join("foreign");
    rusqlite::Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE t (a)").unwrap();
    for bytes in [
        b"rubbish ".repeat(1000),
        Vec::new(),
        whole[..whole.len() / 2].to_vec(),
        holed,
        fs::read(foreign).unwrap(),
    ] {
        fs::write(&path, &bytes).unwrap();
        let error = Embedded::open(&path).map(drop).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, StoreError::Corrupted { .. }), "{text}");
        assert!(text.contains(path.to_str().unwrap()) && text.contains("restore it from a backup"), "{text}");
        assert_eq!(fs::read(&path).unwrap(), bytes, "a refused file is left alone");
    }
}

#[test]
fn a_file_of_a_newer_version_is_refused() {
    let folder = folder();
    let path = folder.path().join("store");
    drop(Embedded::open(&path).unwrap());
    rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let error = Embedded::open(&path).map(drop).unwrap_err();
    assert!(matches!(error, StoreError::NewerSchema { found: 99, .. }), "{error}");
}

#[tokio::test]
async fn a_restored_backup_is_the_state_of_then_and_a_higher_incarnation_each_time() {
    let folder = folder();
    let (path, backup) = (folder.path().join("store"), folder.path().join("backup"));
    let store = Embedded::open(&path).unwrap();
    store.put_json("vm", &"then").await.unwrap();
    store.backup_to(&backup).await.unwrap();
    assert!(matches!(store.backup_to(&backup).await, Err(StoreError::BackupExists { .. })));
    assert_eq!(fs::metadata(&backup).unwrap().permissions().mode() & 0o777, 0o600);
    store.put_json("vm", &"later").await.unwrap();
    let mut incarnations = vec![store.incarnation().await.unwrap()];
    drop(store);
    for _ in 0..2 {
        let told = restore_from(&backup, &path).unwrap();
        let store = Embedded::open(&path).unwrap();
        assert_eq!(store.get_json::<String>("vm").await.unwrap().unwrap().value, "then");
        assert_eq!(store.incarnation().await.unwrap(), told);
        assert!(told > *incarnations.last().unwrap());
        incarnations.push(told);
        put(&store, "after", "1").await;
    }
    let aside = folder.path().join(format!("store.before-{}", incarnations[1].0));
    let old = Embedded::open(aside).unwrap();
    assert_eq!(old.get_json::<String>("vm").await.unwrap().unwrap().value, "later");
}

#[tokio::test]
async fn a_damaged_store_is_replaced_by_its_backup_and_a_damaged_backup_replaces_nothing() {
    let folder = folder();
    let (path, backup) = (folder.path().join("store"), folder.path().join("backup"));
    let store = Embedded::open(&path).unwrap();
    put(&store, "a", "1").await;
    store.backup_to(&backup).await.unwrap();
    drop(store);
    let rubbish = folder.path().join("rubbish");
    fs::write(&rubbish, "rubbish ".repeat(1000)).unwrap();
    assert!(matches!(restore_from(&rubbish, &path), Err(StoreError::Corrupted { .. })));
    assert!(Embedded::open(&path).unwrap().get("a").await.unwrap().is_some());
    fs::copy(&rubbish, &path).unwrap();
    fs::write(folder.path().join("store-wal"), "rubbish").unwrap();
    restore_from(&backup, &path).unwrap();
    assert!(Embedded::open(&path).unwrap().get("a").await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_share_a_commit_have_revisions_of_their_own_and_fail_alone() {
    let folder = folder();
    let store = Arc::new(Embedded::open(folder.path().join("store")).unwrap());
    let mut writing = tokio::task::JoinSet::new();
    for n in 0..300_u32 {
        let store = store.clone();
        writing.spawn(async move {
            let put = Op::put(format!("k/{n:03}"), "1");
            let unknown = Op::put_leased("x", "1", limosa_store::LeaseId(77));
            let txn = if n % 3 == 0 { Txn::new().then(put).then(unknown) } else { Txn::new().then(put) };
            (n, store.txn(txn).await)
        });
    }
    let mut revisions = std::collections::BTreeSet::new();
    while let Some(done) = writing.join_next().await {
        match done.unwrap() {
            (n, Ok(done)) if n % 3 != 0 => assert!(revisions.insert(done.revision)),
            (n, Err(StoreError::LeaseNotFound { .. })) if n % 3 == 0 => {}
            (n, other) => panic!("{n}: {other:?}"),
        }
    }
    assert_eq!(revisions.len(), 200);
    let found = store.range(Range::prefix("k/")).await.unwrap();
    assert_eq!(found.entries.len(), 200);
    assert_eq!(Some(&found.revision), revisions.last());
    assert_eq!(found.revision.0 - revisions.first().unwrap().0, 199);
}
