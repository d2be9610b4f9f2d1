//! What to ask of the two ends of a migration so that it comes to its end. Pure.

use limosa_api::agent::{MigrationStatus, Role, Signal};
use limosa_migration::custody::Request;
use limosa_model::{Fact, HostId, JournalId};

use crate::live::Ends;
use crate::records::MigrationRecord;

/// What to ask of one end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ask {
    /// Take part.
    TakePart {
        /// Which end.
        role: Role,
        /// Find your part out, begin nothing.
        recover: bool,
        /// For the destination: the fingerprint of the source's worker.
        fingerprint: Option<String>,
    },
    /// Hear this.
    Hear(Role, Signal),
    /// Forget it.
    Forget(Role),
}

/// All that is to be asked now, given the journals that the two hosts have now. `ends` holds nothing that was said
/// under an earlier journal.
pub(crate) fn asks(
    record: &MigrationRecord,
    ends: &Ends,
    journal_of: impl Fn(HostId) -> Option<JournalId>,
) -> Vec<Ask> {
    let passage = &record.passage;
    if record.closed {
        return Vec::new();
    }
    if passage.is_settled() && record.report.is_some() {
        let gone = [passage.source_lost, passage.destination_lost];
        let roles = [Role::Source, Role::Destination].into_iter().zip(gone);
        return roles.filter(|(_, gone)| !gone).map(|(role, _)| Ask::Forget(role)).collect();
    }
    let mut asks = Vec::new();
    if !passage.source_lost {
        asks.extend(of_source(record, ends, journal_of(passage.ticket.source)));
    }
    if !passage.destination_lost {
        asks.extend(of_destination(record, ends, journal_of(passage.ticket.destination)));
    }
    match passage.request() {
        Some((_, Request::SourceLost)) => asks.push(Ask::Hear(Role::Destination, Signal::SourceLost)),
        Some((_, Request::Abandon)) => asks.push(Ask::Hear(Role::Source, Signal::Abandon)),
        None => {}
    }
    asks
}

fn of_source(record: &MigrationRecord, ends: &Ends, journal: Option<JournalId>) -> Vec<Ask> {
    let role = Role::Source;
    let forgot = journal != record.source_journal;
    match (record.passage.source, ends.source.as_ref()) {
        (Some(Fact::Resumed | Fact::Released), None) => Vec::new(),
        (_, None) => {
            let recover = forgot || record.is_given_up();
            vec![Ask::TakePart { role, recover, fingerprint: None }]
        }
        (fact, Some(status)) => {
            let told = record.passage.for_host(record.passage.ticket.source);
            let mut asks = tell(role, told.map(Signal::Told), status);
            if fact.is_none() && status.fact.is_none() && record.is_given_up() {
                asks.push(Ask::Hear(role, Signal::Cancel));
            }
            asks
        }
    }
}

fn of_destination(record: &MigrationRecord, ends: &Ends, journal: Option<JournalId>) -> Vec<Ask> {
    let role = Role::Destination;
    let forgot = journal != record.destination_journal;
    match (record.passage.destination, ends.destination.as_ref()) {
        (Some(_), None) => Vec::new(),
        (None, None) => {
            let decided = matches!(record.passage.source, Some(Fact::Resumed | Fact::Released));
            let source = ends.source.as_ref();
            let fingerprint = source.and_then(|source| source.fingerprint.clone());
            // It has never begun where the source has ended or the server has given up: it is to say so.
            let recover = forgot || decided || record.is_given_up() || record.passage.source_lost;
            let may_begin = record.passage.source.is_some() || fingerprint.is_some();
            match recover || may_begin {
                true => vec![Ask::TakePart { role, recover, fingerprint }],
                false => Vec::new(),
            }
        }
        (_, Some(status)) => {
            let told = record.passage.for_host(record.passage.ticket.destination);
            tell(role, told.map(Signal::Told), status)
        }
    }
}

/// Tells an end that still asks.
fn tell(role: Role, told: Option<Signal>, status: &MigrationStatus) -> Vec<Ask> {
    match told {
        Some(told) if !status.ended => vec![Ask::Hear(role, told)],
        _ => Vec::new(),
    }
}
