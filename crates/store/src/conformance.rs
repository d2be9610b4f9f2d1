//! What every implementation of [`Store`] does, as tests. Give [`run`] a way to make empty stores.
//!
//! Revisions are only compared with each other, since an implementation may begin where it likes.

use std::any::Any;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use crate::{
    BoxFuture, Changes, Compare, Event, KEY_LIMIT_BYTES, KeyValue, LeaseId, Op, OpResult, Range, Revision,
    Store, StoreError, TXN_LIMIT_BYTES, TXN_LIMIT_OPS, Txn, TxnOutcome, Typed,
};

/// A store to be tested, empty.
pub struct Fixture {
    /// The store.
    pub store: Arc<dyn Store>,
    /// Lets time go by for the store's leases.
    pub pass: Box<dyn Fn(Duration) -> BoxFuture<'static, ()> + Send + Sync>,
    /// What has to live as long as the store: its folder, its process.
    pub keep: Box<dyn Any + Send>,
}

macro_rules! run_each {
    ($make:ident: $($check:ident)+) => {$({
        println!("conformance: {}", stringify!($check));
        let fixture = $make().await;
        $check(&*fixture.store, &*fixture.pass).await;
    })+};
}

/// Runs the whole suite, each test on a store of its own.
///
/// # Panics
/// At the first thing that does not hold.
pub async fn run<F, Made>(make: F)
where
    F: Fn() -> Made,
    Made: Future<Output = Fixture>,
{
    run_each!(make:
        a_key_that_was_written_is_read_with_its_history
        only_a_transaction_that_changes_something_takes_a_revision
        a_transaction_changes_everything_at_one_revision
        each_compare_holds_exactly_when_it_should
        the_other_branch_runs_when_a_compare_fails
        of_many_who_claim_one_key_one_wins
        reads_in_a_transaction_see_its_writes
        a_range_is_sorted_limited_and_continued
        a_range_sees_the_past
        a_watch_replays_the_past_and_goes_on_without_gap_or_double
        a_watch_sees_its_prefix_only
        a_watch_may_begin_in_the_future
        a_dropped_wait_loses_no_change
        compaction_forgets_the_past_and_keeps_the_present
        a_lease_that_runs_out_deletes_its_keys_for_all_to_see
        a_lease_that_is_kept_alive_keeps_its_keys
        a_revoked_lease_deletes_its_keys_at_one_revision
        a_key_leaves_its_lease_when_it_is_written_without
        a_transaction_with_an_unknown_lease_does_nothing
        bad_input_is_refused_and_changes_nothing
        an_update_loses_no_increment
    );
}

type Pass<'a> = &'a (dyn Fn(Duration) -> BoxFuture<'static, ()> + Send + Sync);

async fn commit(store: &dyn Store, txn: Txn) -> TxnOutcome {
    store.txn(txn).await.expect("the transaction is within the limits")
}

async fn put(store: &dyn Store, key: &str, value: &str) -> Revision {
    commit(store, Txn::new().then(Op::put(key, value))).await.revision
}

async fn delete(store: &dyn Store, key: &str) -> Revision {
    commit(store, Txn::new().then(Op::delete(key))).await.revision
}

async fn get(store: &dyn Store, key: &str) -> Option<KeyValue> {
    store.get(key).await.expect("the key can be read")
}

async fn keys(store: &dyn Store, range: Range) -> Vec<String> {
    let found = store.range(range).await.expect("the range can be read");
    found.entries.into_iter().map(|entry| entry.key).collect()
}

async fn head(store: &dyn Store) -> Revision {
    store.range(Range::prefix("")).await.expect("the store can be read").revision
}

/// Changes, short enough to compare: `+key=value` and `-key`.
async fn next(watch: &mut dyn crate::Watch) -> (Revision, Vec<String>) {
    let Changes { revision, events } = watch.next().await.expect("the watch goes on");
    let events = events.into_iter().map(|event| match event {
        Event::Put(KeyValue { key, value, mod_revision, .. }) => {
            assert_eq!(mod_revision, revision);
            format!("+{key}={}", String::from_utf8_lossy(&value))
        }
        Event::Delete { key, mod_revision } => {
            assert_eq!(mod_revision, revision);
            format!("-{key}")
        }
    });
    (revision, events.collect())
}

async fn a_key_that_was_written_is_read_with_its_history(store: &dyn Store, _: Pass<'_>) {
    assert_eq!(get(store, "a").await, None);
    let first = put(store, "a", "1").await;
    let second = put(store, "a", "").await;
    let entry = get(store, "a").await.expect("the key exists");
    let expected = KeyValue {
        key: "a".into(),
        value: Vec::new(),
        create_revision: first,
        mod_revision: second,
        version: 2,
        lease: None,
    };
    assert_eq!(entry, expected);
    delete(store, "a").await;
    assert_eq!(get(store, "a").await, None);
    let again = put(store, "a", "3").await;
    let entry = get(store, "a").await.expect("the key exists");
    assert_eq!((entry.create_revision, entry.mod_revision, entry.version), (again, again, 1));
}

async fn only_a_transaction_that_changes_something_takes_a_revision(store: &dyn Store, _: Pass<'_>) {
    let first = put(store, "a", "1").await;
    assert_eq!(delete(store, "b").await, first);
    assert_eq!(commit(store, Txn::new().then(Op::get("a"))).await.revision, first);
    assert_eq!(put(store, "a", "1").await, first.next(), "the same value again is a change");
    assert_eq!(delete(store, "a").await, first.next().next());
}

async fn a_transaction_changes_everything_at_one_revision(store: &dyn Store, _: Pass<'_>) {
    let before = put(store, "gone", "1").await;
    let txn = Txn::new().then(Op::put("a", "1")).then(Op::delete("gone")).then(Op::put("b", "2"));
    let done = commit(store, txn).await;
    assert_eq!(done.revision, before.next());
    assert_eq!(done.results, [OpResult::Put, OpResult::Delete { existed: true }, OpResult::Put]);
    for key in ["a", "b"] {
        assert_eq!(get(store, key).await.map(|entry| entry.mod_revision), Some(done.revision));
    }
    let mut watch = store.watch("", done.revision).await.expect("the watch starts");
    assert_eq!(next(&mut *watch).await, (done.revision, vec!["+a=1".into(), "-gone".into(), "+b=2".into()]));
}

async fn each_compare_holds_exactly_when_it_should(store: &dyn Store, _: Pass<'_>) {
    let created = put(store, "a", "1").await;
    let modified = put(store, "a", "2").await;
    let key = || "a".to_owned();
    let cases = [
        (Compare::Exists(key()), true),
        (Compare::Absent(key()), false),
        (Compare::ModRevision(key(), modified), true),
        (Compare::ModRevision(key(), created), false),
        (Compare::CreateRevision(key(), created), true),
        (Compare::CreateRevision(key(), modified), false),
        (Compare::Version(key(), 2), true),
        (Compare::Version(key(), 1), false),
        (Compare::Value(key(), b"2".to_vec()), true),
        (Compare::Value(key(), b"1".to_vec()), false),
        (Compare::Exists("b".into()), false),
        (Compare::Absent("b".into()), true),
        (Compare::Value("b".into(), Vec::new()), false),
    ];
    for (compare, holds) in cases {
        let done = commit(store, Txn::new().when(compare.clone())).await;
        assert_eq!(done.succeeded, holds, "{compare:?}");
        let both = Txn::new().when(Compare::Exists(key())).when(compare.clone());
        assert_eq!(commit(store, both).await.succeeded, holds, "{compare:?} with another");
    }
}

async fn the_other_branch_runs_when_a_compare_fails(store: &dyn Store, _: Pass<'_>) {
    put(store, "a", "1").await;
    let claim = Txn::new()
        .when(Compare::Absent("a".into()))
        .then(Op::put("a", "2"))
        .otherwise(Op::get("a"))
        .otherwise(Op::put("refused", "yes"));
    let done = commit(store, claim).await;
    assert!(!done.succeeded);
    assert!(matches!(&done.results[0], OpResult::Get(Some(found)) if found.value == b"1"));
    assert_eq!(get(store, "a").await.map(|entry| entry.version), Some(1));
    assert_eq!(get(store, "refused").await.map(|entry| entry.mod_revision), Some(done.revision));
}

async fn of_many_who_claim_one_key_one_wins(store: &dyn Store, _: Pass<'_>) {
    let claim = |n: &str| {
        let claim = Txn::new().when(Compare::Absent("leader".into())).then(Op::put("leader", n));
        commit(store, claim)
    };
    let (a, b, c, d) = tokio::join!(claim("0"), claim("1"), claim("2"), claim("3"));
    let winners: Vec<_> = (0..).zip([a, b, c, d]).filter(|(_, done)| done.succeeded).collect();
    let [(winner, done)] = &winners[..] else { panic!("{} have won", winners.len()) };
    let leader = get(store, "leader").await.expect("somebody leads");
    assert_eq!(leader.value, winner.to_string().into_bytes());
    assert_eq!((leader.version, leader.mod_revision), (1, done.revision));
}

async fn reads_in_a_transaction_see_its_writes(store: &dyn Store, _: Pass<'_>) {
    put(store, "a/1", "old").await;
    let txn = Txn::new()
        .then(Op::get("a/1"))
        .then(Op::put("a/1", "new"))
        .then(Op::get("a/1"))
        .then(Op::Range(Range::prefix("a/")));
    let done = commit(store, txn).await;
    let values: Vec<_> = done
        .results
        .iter()
        .filter_map(|result| match result {
            OpResult::Get(found) => found.clone(),
            OpResult::Range(found) => found.entries.first().cloned(),
            _ => None,
        })
        .map(|entry| entry.value)
        .collect();
    assert_eq!(values, [&b"old"[..], b"new", b"new"]);
}

async fn a_range_is_sorted_limited_and_continued(store: &dyn Store, _: Pass<'_>) {
    for key in ["v/b", "v/a", "v/é", "v", "w/a", "v/a/1", "v0"] {
        put(store, key, "1").await;
    }
    assert_eq!(keys(store, Range::prefix("v/")).await, ["v/a", "v/a/1", "v/b", "v/é"]);
    assert_eq!(keys(store, Range::prefix("")).await, ["v", "v/a", "v/a/1", "v/b", "v/é", "v0", "w/a"]);
    let page = store.range(Range::prefix("v/").limit(2)).await.expect("the page is read");
    assert!(page.more);
    assert_eq!(page.entries.len(), 2);
    let rest = Range::prefix("v/").after("v/a/1").limit(2);
    let page = store.range(rest).await.expect("the page is read");
    assert!(!page.more);
    assert_eq!(page.entries.iter().map(|entry| &*entry.key).collect::<Vec<_>>(), ["v/b", "v/é"]);
}

async fn a_range_sees_the_past(store: &dyn Store, _: Pass<'_>) {
    let one = put(store, "a", "1").await;
    let two = put(store, "b", "1").await;
    let three = delete(store, "a").await;
    let four = put(store, "b", "2").await;
    assert!(keys(store, Range::prefix("").at(one)).await == ["a"]);
    assert!(keys(store, Range::prefix("").at(two)).await == ["a", "b"]);
    assert!(keys(store, Range::prefix("").at(three)).await == ["b"]);
    let past = store.range(Range::prefix("b").at(three)).await.expect("the past is read");
    assert_eq!((&*past.entries[0].value, past.revision), (&b"1"[..], four));
    let future = store.range(Range::prefix("").at(four.next())).await;
    assert!(matches!(future, Err(StoreError::FutureRevision { .. })));
}

async fn a_watch_replays_the_past_and_goes_on_without_gap_or_double(store: &dyn Store, _: Pass<'_>) {
    let mut revisions = Vec::new();
    for n in 0..5 {
        revisions.push(put(store, "k", &n.to_string()).await);
    }
    let mut watch = store.watch("k", revisions[2]).await.expect("the watch starts");
    assert_eq!(next(&mut *watch).await, (revisions[2], vec!["+k=2".into()]));
    for n in 5..400 {
        revisions.push(put(store, "k", &n.to_string()).await);
    }
    for (n, revision) in revisions.into_iter().enumerate().skip(3) {
        assert_eq!(next(&mut *watch).await, (revision, vec![format!("+k={n}")]));
    }
}

async fn a_watch_sees_its_prefix_only(store: &dyn Store, _: Pass<'_>) {
    let from = head(store).await.next();
    let mut watch = store.watch("vm/", from).await.expect("the watch starts");
    let txn = Txn::new().then(Op::put("audit/1", "x")).then(Op::put("vm/1", "y")).then(Op::put("vm", "z"));
    let first = commit(store, txn).await.revision;
    put(store, "vn/1", "x").await;
    let last = put(store, "vm/2", "x").await;
    assert_eq!(next(&mut *watch).await, (first, vec!["+vm/1=y".into()]));
    assert_eq!(next(&mut *watch).await, (last, vec!["+vm/2=x".into()]));
}

async fn a_watch_may_begin_in_the_future(store: &dyn Store, _: Pass<'_>) {
    let from = put(store, "a", "1").await.next().next();
    let mut watch = store.watch("a", from).await.expect("the watch starts");
    put(store, "a", "2").await;
    assert_eq!(put(store, "a", "3").await, from);
    assert_eq!(next(&mut *watch).await, (from, vec!["+a=3".into()]));
}

async fn a_dropped_wait_loses_no_change(store: &dyn Store, _: Pass<'_>) {
    let from = head(store).await.next();
    let mut watch = store.watch("", from).await.expect("the watch starts");
    for n in 0..50 {
        tokio::select! {
            biased;
            _ = watch.next() => panic!("nothing has changed yet"),
            () = tokio::task::yield_now() => {}
        }
        let revision = put(store, "a", &n.to_string()).await;
        assert_eq!(next(&mut *watch).await, (revision, vec![format!("+a={n}")]));
    }
}

async fn compaction_forgets_the_past_and_keeps_the_present(store: &dyn Store, _: Pass<'_>) {
    let first = put(store, "a", "1").await;
    put(store, "still", "here").await;
    delete(store, "a").await;
    let oldest = put(store, "b", "1").await;
    let last = put(store, "b", "2").await;
    store.compact(oldest).await.expect("the past is forgotten");
    assert_eq!(keys(store, Range::prefix("").at(oldest)).await, ["b", "still"]);
    assert_eq!(keys(store, Range::prefix("")).await, ["b", "still"]);
    let compacted = |error| matches!(error, StoreError::Compacted { oldest: told } if told == oldest);
    assert!(compacted(store.range(Range::prefix("").at(first)).await.expect_err("it is forgotten")));
    assert!(compacted(store.compact(first).await.expect_err("it is forgotten already")));
    let mut watch = store.watch("", first).await.expect("the watch starts");
    assert!(compacted(watch.next().await.expect_err("it is forgotten")));
    let mut watch = store.watch("", oldest.next()).await.expect("the watch starts");
    assert_eq!(next(&mut *watch).await, (last, vec!["+b=2".into()]));
    let future = store.compact(last.next()).await;
    assert!(matches!(future, Err(StoreError::FutureRevision { .. })));
    assert_eq!(put(store, "c", "1").await, last.next());
}

async fn a_lease_that_runs_out_deletes_its_keys_for_all_to_see(store: &dyn Store, pass: Pass<'_>) {
    let lease = store.grant_lease(Duration::from_secs(2)).await.expect("a lease is granted");
    assert!(lease.ttl >= Duration::from_secs(2));
    let txn =
        Txn::new().then(Op::put_leased("l/a", "1", lease.id)).then(Op::put_leased("l/b", "2", lease.id));
    let revision = commit(store, txn).await.revision;
    assert_eq!(get(store, "l/a").await.and_then(|entry| entry.lease), Some(lease.id));
    let status = store.lease(lease.id).await.expect("the lease lives");
    assert_eq!((status.ttl, status.keys), (lease.ttl, vec!["l/a".into(), "l/b".into()]));
    assert!(status.remaining <= lease.ttl);
    let mut watch = store.watch("l/", revision.next()).await.expect("the watch starts");
    pass(lease.ttl).await;
    assert_eq!(next(&mut *watch).await, (revision.next(), vec!["-l/a".into(), "-l/b".into()]));
    assert_eq!(keys(store, Range::prefix("l/")).await, [""; 0]);
    for late in [store.keep_lease_alive(lease.id).await.err(), store.lease(lease.id).await.err()] {
        assert!(matches!(late, Some(StoreError::LeaseNotFound { .. })));
    }
}

async fn a_lease_that_is_kept_alive_keeps_its_keys(store: &dyn Store, pass: Pass<'_>) {
    let lease = store.grant_lease(Duration::from_secs(4)).await.expect("a lease is granted");
    commit(store, Txn::new().then(Op::put_leased("l", "1", lease.id))).await;
    for _ in 0..4 {
        pass(lease.ttl / 2).await;
        assert_eq!(store.keep_lease_alive(lease.id).await.expect("the lease lives"), lease.ttl);
    }
    assert!(get(store, "l").await.is_some());
}

async fn a_revoked_lease_deletes_its_keys_at_one_revision(store: &dyn Store, _: Pass<'_>) {
    let lease = store.grant_lease(Duration::from_secs(60)).await.expect("a lease is granted").id;
    for key in ["l/b", "l/a", "l/gone"] {
        commit(store, Txn::new().then(Op::put_leased(key, "1", lease))).await;
    }
    let revision = delete(store, "l/gone").await.next();
    store.revoke_lease(lease).await.expect("the lease lives");
    let mut watch = store.watch("l/", revision).await.expect("the watch starts");
    assert_eq!(next(&mut *watch).await, (revision, vec!["-l/a".into(), "-l/b".into()]));
    assert!(matches!(store.revoke_lease(lease).await, Err(StoreError::LeaseNotFound { .. })));
}

async fn a_key_leaves_its_lease_when_it_is_written_without(store: &dyn Store, _: Pass<'_>) {
    let lease = store.grant_lease(Duration::from_secs(60)).await.expect("a lease is granted").id;
    commit(store, Txn::new().then(Op::put_leased("l", "1", lease))).await;
    put(store, "l", "2").await;
    store.revoke_lease(lease).await.expect("the lease lives");
    assert_eq!(get(store, "l").await.map(|entry| (entry.version, entry.lease)), Some((2, None)));
}

async fn a_transaction_with_an_unknown_lease_does_nothing(store: &dyn Store, _: Pass<'_>) {
    let before = head(store).await;
    let txn = Txn::new().then(Op::put("a", "1")).then(Op::put_leased("b", "1", LeaseId(987_654_321)));
    assert!(matches!(store.txn(txn).await, Err(StoreError::LeaseNotFound { .. })));
    assert_eq!(get(store, "a").await, None);
    assert_eq!(head(store).await, before);
}

async fn bad_input_is_refused_and_changes_nothing(store: &dyn Store, _: Pass<'_>) {
    let before = head(store).await;
    for key in [String::new(), "a\0b".to_owned(), "x".repeat(KEY_LIMIT_BYTES + 1)] {
        for op in [Op::put(&*key, "1"), Op::delete(&*key), Op::get(&*key)] {
            let refused = store.txn(Txn::new().then(op)).await;
            assert!(matches!(refused, Err(StoreError::InvalidKey { .. })), "{key:?}");
        }
        assert!(matches!(store.get(&key).await, Err(StoreError::InvalidKey { .. })));
    }
    let twice = Txn::new().then(Op::put("a", "1")).then(Op::delete("a"));
    assert!(matches!(store.txn(twice).await, Err(StoreError::DuplicateKey { .. })));
    let large = Txn::new().then(Op::put("a", vec![0; TXN_LIMIT_BYTES]));
    assert!(matches!(store.txn(large).await, Err(StoreError::TooLarge { .. })));
    let many = (0..=TXN_LIMIT_OPS).fold(Txn::new(), |txn, n| txn.then(Op::put(n.to_string(), "1")));
    assert!(matches!(store.txn(many).await, Err(StoreError::TooManyOps { .. })));
    for ttl in [Duration::ZERO, Duration::MAX] {
        assert!(matches!(store.grant_lease(ttl).await, Err(StoreError::InvalidTtl { .. })));
    }
    assert_eq!(head(store).await, before);
    let most = (0..TXN_LIMIT_OPS).fold(Txn::new(), |txn, n| txn.then(Op::put(n.to_string(), "1")));
    assert_eq!(commit(store, most).await.revision, before.next());
    put(store, &"x".repeat(KEY_LIMIT_BYTES), "1").await;
}

async fn an_update_loses_no_increment(store: &dyn Store, _: Pass<'_>) {
    let increment = || store.update("n", |n: Option<u64>| Some(n.unwrap_or(0) + 1));
    for _ in 0..20 {
        let (a, b, c) = tokio::join!(increment(), increment(), increment());
        for done in [a, b, c] {
            done.expect("three do not get in each other's way for long");
        }
    }
    let n = store.get_json::<u64>("n").await.expect("it is a number").expect("it is there");
    assert_eq!(n.value, 60);
    assert_eq!(store.update("n", |_: Option<u64>| None).await.expect("it is deleted"), None);
    assert_eq!(get(store, "n").await, None);
}
