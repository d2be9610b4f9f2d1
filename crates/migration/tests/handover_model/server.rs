//! The server: what it concludes from what it hears, what it asks for, and how it begins anew after a restore.

use limosa_migration::custody::{self, Request, Sighting};
use limosa_model::Incarnation;

use crate::world::{Message, State, World, host_id, number};

impl World {
    /// A message reaches the server.
    pub(crate) fn deliver_to_server(&self, state: &mut State, message: Message) {
        match message {
            Message::Fact(told) => {
                for passage in &mut state.passages {
                    *passage = self.variant.hear(passage, told);
                }
                state.conclude(self);
            }
            Message::Stopped(host, epoch) if !state.restored => {
                state.custody = state.custody.stopped(host, epoch);
            }
            Message::JournalLost(host, journal) if !state.restored => {
                let n = number(host);
                state.journals[n] = state.journals[n].max(journal);
                for passage in state.passages.clone() {
                    let at_end = passage.ticket.source == host || passage.ticket.destination == host;
                    if at_end && !passage.is_settled() {
                        state.send(Message::Recover(passage.ticket.migration, host, journal));
                    }
                }
            }
            _ => {}
        }
    }

    /// A server restored from a backup builds its picture anew from what every host reports.
    pub(crate) fn reconcile(&self, state: &mut State) {
        let mut sightings = Vec::new();
        for (n, host) in state.hosts.iter().enumerate() {
            if host.burnt {
                continue;
            }
            let mut parts: Vec<_> = host.roles.iter().map(|r| (r.ticket(), r.fact())).collect();
            if let Some(q) = host.qemu {
                for t in state.tickets.iter().filter(|t| t.epoch == q.epoch) {
                    if !parts.iter().any(|(p, _)| p == t) {
                        parts.push((*t, None));
                    }
                }
            }
            sightings.push(Sighting {
                host: host_id(n),
                qemus: host.qemu.iter().map(|q| q.epoch).collect(),
                parts,
            });
        }
        let lost: Vec<_> =
            state.hosts.iter().enumerate().filter(|(_, h)| h.burnt).map(|(n, _)| host_id(n)).collect();
        let (custody, passages) = custody::reconcile(
            state.custody.vm,
            Incarnation(state.incarnation),
            state.passages.clone(),
            &sightings,
            &lost,
        );
        state.custody = custody;
        // An end that knows nothing of a migration that the other end is in never took the order: it takes it
        // as one that has lost its journal would.
        for passage in &passages {
            let ticket = passage.ticket;
            for end in [ticket.source, ticket.destination] {
                let host = &state.hosts[number(end)];
                if !host.burnt && !host.roles.iter().any(|r| r.ticket() == ticket) {
                    state.network.insert(Message::Recover(ticket.migration, end, host.journal));
                }
            }
        }
        state.passages = passages;
        state.journals = state.hosts.iter().map(|h| h.journal).collect();
        state.restored = false;
        // Whoever has reported to this incarnation takes no order of an earlier one: their epochs are lower.
        for host in state.hosts.iter_mut().filter(|h| !h.burnt) {
            host.seen = host.seen.max(state.custody.last.0);
        }
        state.conclude(self);
    }

    /// The server sends again what has not been answered, and asks for what is missing.
    pub(crate) fn server_asks(&self, state: &mut State) {
        for passage in state.passages.clone() {
            let ticket = passage.ticket;
            for host in [ticket.source, ticket.destination] {
                if let Some(told) = passage.for_host(host) {
                    state.send(Message::Fact(told));
                }
            }
            match passage.request() {
                Some((_, Request::SourceLost)) => state.send(Message::SourceLost(ticket.migration)),
                Some((_, Request::Abandon)) => state.send(Message::Abandon(ticket.migration)),
                None => {}
            }
        }
    }
}
