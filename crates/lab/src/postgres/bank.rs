//! Money that is moved between accounts, one transfer after the other, over one connection that is never made anew.
//!
//! Transfer `n` follows from `n` alone, so that afterwards the database itself can tell whether the ledger holds what
//! was asked for. A transfer counts once the server has acknowledged its commit.

use std::io;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::client::Client;
use crate::error::{Error, Result};
use crate::namespace::Namespace;
use crate::wait;

/// How many accounts there are, and what is in each at first, the statements below say too.
const ACCOUNTS: u64 = 1000;

const SCHEMA: &str = "
    CREATE EXTENSION IF NOT EXISTS amcheck;
    CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL);
    CREATE TABLE ledger (id bigint PRIMARY KEY, payer int NOT NULL, payee int NOT NULL, amount int NOT NULL);
    INSERT INTO accounts SELECT id, 1000 FROM generate_series(1, 1000) id;
    CHECKPOINT;";

/// Each must give 0; each says what it looks for.
const CHECKS: [(&str, &str); 6] = [
    (
        "transfers in the ledger that were never ordered so",
        "SELECT count(*) FROM ledger WHERE payer <> id % 1000 + 1 OR payee <> (id * 7 + 3) % 1000 + 1 OR amount <> id % 97 + 1",
    ),
    (
        "accounts whose balance is not what the ledger says",
        "SELECT count(*) FROM accounts a WHERE balance <> 1000
        - coalesce((SELECT sum(amount) FROM ledger WHERE payer = a.id), 0)
        + coalesce((SELECT sum(amount) FROM ledger WHERE payee = a.id), 0)",
    ),
    ("money that appeared or vanished", "SELECT sum(balance)::bigint - 1000 * 1000 FROM accounts"),
    (
        "rows that amcheck finds damaged",
        "SELECT (SELECT count(*) FROM verify_heapam('ledger')) + (SELECT count(*) FROM verify_heapam('accounts'))",
    ),
    (
        "indexes without their rows",
        "SELECT count(x) - 2 FROM (VALUES (bt_index_check('ledger_pkey', true)::text), (bt_index_check('accounts_pkey', true)::text)) v(x)",
    ),
    (
        "pages with a wrong checksum",
        "SELECT coalesce(sum(checksum_failures), 0)::bigint FROM pg_stat_database",
    ),
];

/// Someone who moves money all the time.
#[derive(Debug)]
pub struct Bank {
    seen: Arc<Seen>,
    thread: Option<JoinHandle<io::Result<()>>>,
    namespace: Namespace,
    address: Ipv4Addr,
}

#[derive(Debug, Default)]
struct Seen {
    acknowledged: AtomicU64,
    longest: Mutex<Duration>,
    stop: AtomicBool,
}

/// What the database holds against what its client was promised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audit {
    /// Transfers whose commit was acknowledged.
    pub acknowledged: u64,
    /// Of these, those that the ledger does not hold.
    pub lost: u64,
    /// Transfers in the ledger that were not acknowledged: at most one may be, the last.
    pub unasked: u64,
    /// The longest that a transfer took.
    pub longest: Duration,
    /// What else is wrong, in words.
    pub faults: Vec<String>,
}

impl Audit {
    /// Whether nothing was lost and nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.lost == 0 && self.unasked == 0 && self.faults.is_empty()
    }
}

impl Bank {
    /// Waits until the database answers, makes the tables, and begins.
    ///
    /// # Errors
    /// When the database does not come up in time, or refuses.
    pub fn open(namespace: &Namespace, address: Ipv4Addr, limit: Duration) -> Result<Self> {
        let what = format!("an answer of the database at {address}");
        let mut client = wait::until(&what, limit, || Ok(Client::connect(namespace, address).ok()))?;
        client.query(SCHEMA).map_err(Error::io("make the bank's tables"))?;
        let seen = Arc::new(Seen::default());
        let shared = seen.clone();
        let thread = thread::Builder::new().name("bank".into()).spawn(move || transfer(&mut client, &shared));
        let thread = thread.map_err(Error::io("start the bank's thread"))?;
        Ok(Self { seen, thread: Some(thread), namespace: namespace.clone(), address })
    }

    /// How many transfers were acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.seen.acknowledged.load(Ordering::Relaxed)
    }

    /// Whether the connection still serves.
    pub fn is_alive(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Ends the transfers and looks at everything, over a connection of its own.
    ///
    /// # Errors
    /// When the connection did not live until now, or the database does not answer.
    pub fn audit(mut self) -> Result<Audit> {
        self.seen.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            ended.map_err(Error::io("move money in the database"))?;
        }
        let auditing = || Error::io("look at the database");
        let mut client = Client::connect(&self.namespace, self.address).map_err(auditing())?;
        let acknowledged = self.acknowledged();
        let all = client.number("SELECT count(*) FROM ledger").map_err(auditing())?;
        let promised = client
            .number(&format!("SELECT count(*) FROM ledger WHERE id BETWEEN 1 AND {acknowledged}"))
            .map_err(auditing())?;
        let mut faults = Vec::new();
        for (what, check) in CHECKS {
            match client.number(check) {
                Ok(0) => {}
                Ok(count) => faults.push(format!("{count} {what}")),
                Err(error) => faults.push(format!("{what}: {error}")),
            }
        }
        let longest = *self.seen.longest.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Audit {
            acknowledged,
            lost: acknowledged.saturating_sub(promised.unsigned_abs()),
            unasked: (all - promised).unsigned_abs(),
            longest,
            faults,
        })
    }
}

impl Drop for Bank {
    fn drop(&mut self) {
        self.seen.stop.store(true, Ordering::Relaxed);
    }
}

fn transfer(client: &mut Client, seen: &Seen) -> io::Result<()> {
    for id in 1.. {
        if seen.stop.load(Ordering::Relaxed) {
            break;
        }
        let (payer, payee, amount) = (id % ACCOUNTS + 1, (id * 7 + 3) % ACCOUNTS + 1, id % 97 + 1);
        let begin = Instant::now();
        client.query(&format!(
            "BEGIN; UPDATE accounts SET balance = balance - {amount} WHERE id = {payer}; \
             UPDATE accounts SET balance = balance + {amount} WHERE id = {payee}; \
             INSERT INTO ledger VALUES ({id}, {payer}, {payee}, {amount}); COMMIT"
        ))?;
        let took = begin.elapsed();
        seen.acknowledged.store(id, Ordering::Relaxed);
        let mut longest = seen.longest.lock().unwrap_or_else(PoisonError::into_inner);
        *longest = took.max(*longest);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_transfer_is_from_an_account_to_itself() {
        assert!((1..=ACCOUNTS).all(|id| id % ACCOUNTS != (id * 7 + 3) % ACCOUNTS));
    }

    #[test]
    fn the_schema_and_the_checks_speak_of_the_same_accounts() {
        assert!(SCHEMA.contains(&format!("generate_series(1, {ACCOUNTS})")));
        assert!(CHECKS.iter().any(|(_, check)| check.contains(&format!("{ACCOUNTS} * "))));
    }

    #[test]
    fn an_audit_with_a_lost_transfer_is_not_clean() {
        let clean =
            Audit { acknowledged: 9, lost: 0, unasked: 0, longest: Duration::ZERO, faults: Vec::new() };
        assert!(clean.is_clean());
        assert!(!Audit { lost: 1, ..clean.clone() }.is_clean());
        assert!(!Audit { unasked: 1, ..clean.clone() }.is_clean());
        assert!(!Audit { faults: vec!["1 x".into()], ..clean }.is_clean());
    }
}
