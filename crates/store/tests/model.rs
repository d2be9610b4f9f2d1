//! The embedded store against a model: any sequence of operations gives the same answers, the same
//! past and the same history of changes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use limosa_store::{
    Changes, Compare, Embedded, Event, KeyValue, Op, OpResult, Range, Revision, Store, StoreError, Txn,
};
use proptest::prelude::*;

/// The store as one would write it down: the state after every revision.
#[derive(Default)]
struct Model {
    states: BTreeMap<Revision, BTreeMap<String, KeyValue>>,
    changes: Vec<Changes>,
    oldest: u64,
}

impl Model {
    fn head(&self) -> Revision {
        self.states.keys().next_back().copied().unwrap_or(Revision(1))
    }

    fn now(&self) -> BTreeMap<String, KeyValue> {
        self.states.values().next_back().cloned().unwrap_or_default()
    }

    fn txn(&mut self, txn: &Txn) -> (bool, Revision, Vec<OpResult>) {
        let mut state = self.now();
        let succeeded = txn.compares.iter().all(|compare| compare.holds(state.get(compare.key())));
        let revision = self.head().next();
        let (mut events, mut results) = (Vec::new(), Vec::new());
        for op in if succeeded { &txn.then } else { &txn.otherwise } {
            results.push(match op.clone() {
                Op::Put { key, value, lease } => {
                    let old = state.get(&key);
                    let create_revision = old.map_or(revision, |old| old.create_revision);
                    let version = old.map_or(1, |old| old.version + 1);
                    let entry = KeyValue {
                        key: key.clone(),
                        value,
                        create_revision,
                        mod_revision: revision,
                        version,
                        lease,
                    };
                    state.insert(key, entry.clone());
                    events.push(Event::Put(entry));
                    OpResult::Put
                }
                Op::Delete(key) => {
                    let existed = state.remove(&key).is_some();
                    if existed {
                        events.push(Event::Delete { key, mod_revision: revision });
                    }
                    OpResult::Delete { existed }
                }
                Op::Get(key) => OpResult::Get(state.get(&key).cloned()),
                Op::Range(_) => unreachable!("not generated"),
            });
        }
        if !events.is_empty() {
            self.states.insert(revision, state);
            self.changes.push(Changes { revision, events });
        }
        (succeeded, self.head(), results)
    }

    fn at(&self, revision: Revision, range: &Range) -> Vec<KeyValue> {
        let state =
            self.states.range(..=revision).next_back().map(|(_, state)| state.clone()).unwrap_or_default();
        state
            .into_values()
            .filter(|entry| entry.key.starts_with(&range.prefix))
            .filter(|entry| range.after.as_ref().is_none_or(|after| entry.key > *after))
            .collect()
    }
}

#[derive(Debug, Clone)]
enum Step {
    Txn(Txn),
    Read { prefix: String, after: Option<String>, limit: u32, back: u64 },
    Compact { back: u64 },
    Reopen,
}

fn key() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "a/", "a/b", "a/é", "b", "\u{10ffff}"]).prop_map(str::to_owned)
}

fn compare() -> impl Strategy<Value = Compare> {
    (key(), 0..6_u8, 1..20_u64).prop_map(|(key, kind, n)| match kind {
        0 => Compare::Exists(key),
        1 => Compare::Absent(key),
        2 => Compare::ModRevision(key, Revision(n)),
        3 => Compare::CreateRevision(key, Revision(n)),
        4 => Compare::Version(key, n % 4),
        _ => Compare::Value(key, vec![(n % 3) as u8]),
    })
}

fn branch() -> impl Strategy<Value = Vec<Op>> {
    let op = (key(), 0..4_u8, 0..3_u8).prop_map(|(key, kind, value)| match kind {
        0 => Op::get(key),
        1 => Op::delete(key),
        _ => Op::put(key, vec![value]),
    });
    prop::collection::vec(op, 0..4)
}

fn step() -> impl Strategy<Value = Step> {
    let txn = (prop::collection::vec(compare(), 0..2), branch(), branch())
        .prop_map(|(compares, then, otherwise)| Step::Txn(Txn { compares, then, otherwise }));
    let prefix = prop::sample::select(vec!["", "a", "a/", "b", "c"]).prop_map(str::to_owned);
    let read = (prefix, prop::option::of(key()), 0..5_u32, 0..8_u64)
        .prop_map(|(prefix, after, limit, back)| Step::Read { prefix, after, limit, back });
    let compact = (0..8_u64).prop_map(|back| Step::Compact { back });
    prop_oneof![12 => txn, 4 => read, 1 => compact, 1 => Just(Step::Reopen)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_store_answers_as_the_model_does(steps in prop::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(compare_with_model(steps));
    }
}

async fn compare_with_model(steps: Vec<Step>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let mut store = Embedded::open(&path).unwrap();
    let mut model = Model { oldest: 1, ..Model::default() };
    for step in steps {
        match step {
            Step::Txn(txn) => match store.txn(txn.clone()).await {
                Ok(done) => {
                    assert_eq!((done.succeeded, done.revision, done.results), model.txn(&txn));
                }
                Err(error) => assert!(matches!(error, StoreError::DuplicateKey { .. }), "{error}"),
            },
            Step::Read { prefix, after, limit, back } => {
                let at = Revision(model.head().0.saturating_sub(back));
                let range = Range { prefix, after, limit: Some(limit), revision: (back > 0).then_some(at) };
                match store.range(range.clone()).await {
                    Ok(found) => {
                        let mut expected = model.at(at, &range);
                        assert_eq!(found.more, expected.len() > limit as usize);
                        expected.truncate(limit as usize);
                        assert_eq!(found.entries, expected);
                        assert_eq!(found.revision, model.head());
                    }
                    Err(error) => {
                        assert!(matches!(error, StoreError::Compacted { .. }), "{error}");
                        assert!(at.0 < model.oldest);
                    }
                }
            }
            Step::Compact { back } => {
                let to = model.head().0.saturating_sub(back);
                let done = store.compact(Revision(to)).await;
                assert_eq!(done.is_ok(), to > model.oldest);
                model.oldest = model.oldest.max(to);
            }
            Step::Reopen => {
                drop(store);
                store = Embedded::open(&path).unwrap();
            }
        }
    }
    let mut watch = store.watch("", Revision(model.oldest).next()).await.unwrap();
    for changes in model.changes.iter().filter(|changes| changes.revision.0 > model.oldest) {
        assert_eq!(watch.next().await.unwrap(), *changes);
    }
}
