//! Which host takes a VM: pure, and the same for the same question.
//!
//! A host that cannot take the VM brings its reason along; among the others the one with the most room afterwards is
//! chosen. Room is measured by what is scarcer, memory or CPUs, as a share of what the host has; hosts with equal
//! room are told apart by name, so that a repeated question has the same answer.

use limosa_model::{Capacity, HostId, Name};
use serde::{Deserialize, Serialize};

/// A host that may take the VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The host.
    pub host: HostId,
    /// Its name.
    pub name: Name,
    /// What it has for guests.
    pub capacity: Capacity,
    /// What is taken of it, reservations of migrations under way included.
    pub taken: Capacity,
    /// Why it cannot take the VM, whatever room it has.
    pub refusal: Option<String>,
}

/// A host that cannot take the VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// The host.
    pub host: HostId,
    /// Its name.
    pub name: Name,
    /// Why not.
    pub why: String,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The host that takes the VM; none where no host can.
    pub host: Option<HostId>,
    /// Why that one.
    pub why: String,
    /// The hosts that cannot, by name.
    pub rejected: Vec<Rejected>,
}

/// Chooses a host for a VM that takes `wanted`.
pub fn choose(wanted: Capacity, candidates: &[Candidate]) -> Choice {
    let mut sorted: Vec<&Candidate> = candidates.iter().collect();
    sorted.sort_by(|a, b| (&a.name, a.host).cmp(&(&b.name, b.host)));
    let mut rejected = Vec::new();
    let mut best: Option<(&Candidate, u64)> = None;
    for candidate in sorted {
        if let Some(why) = candidate.refusal.clone().or_else(|| no_room(wanted, candidate)) {
            rejected.push(Rejected { host: candidate.host, name: candidate.name.clone(), why });
            continue;
        }
        let room = room_after(wanted, candidate);
        if best.is_none_or(|(_, most)| room > most) {
            best = Some((candidate, room));
        }
    }
    let why = match best {
        Some((candidate, room)) => {
            format!("{} keeps the most room: {}% afterwards", candidate.name, room / 10_000)
        }
        None => "no host can take it".to_owned(),
    };
    Choice { host: best.map(|(candidate, _)| candidate.host), why, rejected }
}

/// Why a host has no room for `wanted`, with both figures.
pub fn no_room(wanted: Capacity, candidate: &Candidate) -> Option<String> {
    let free = candidate.capacity.less(candidate.taken);
    if free.holds(wanted) {
        return None;
    }
    Some(if wanted.memory > free.memory {
        format!("{} of memory are needed, {} are free", wanted.memory.human(), free.memory.human())
    } else {
        format!("{} CPUs are needed, {} are free", wanted.cpus, free.cpus)
    })
}

/// What is left of the scarcer of memory and CPUs, in millionths of what the host has.
fn room_after(wanted: Capacity, candidate: &Candidate) -> u64 {
    let left = candidate.capacity.less(candidate.taken.plus(wanted));
    let share = |left: u64, all: u64| match all {
        0 => 0,
        _ => u64::try_from(u128::from(left) * 1_000_000 / u128::from(all)).unwrap_or(u64::MAX),
    };
    let memory = share(left.memory.as_bytes(), candidate.capacity.memory.as_bytes());
    memory.min(share(left.cpus.into(), candidate.capacity.cpus.into()))
}

#[cfg(test)]
mod tests {
    use limosa_model::ByteSize;

    use super::*;

    fn room(gib: u64, cpus: u32) -> Capacity {
        Capacity { memory: ByteSize::mib(gib << 10), cpus }
    }

    fn host(name: &str, capacity: Capacity, taken: Capacity) -> Candidate {
        let host = HostId::from_u128(name.bytes().fold(0, |n, c| n << 8 | u128::from(c)));
        Candidate { host, name: name.parse().unwrap(), capacity, taken, refusal: None }
    }

    #[test]
    fn the_host_with_the_most_room_afterwards_is_chosen() {
        let (full, free) = (host("a", room(16, 8), room(12, 4)), host("b", room(16, 8), room(4, 2)));
        assert_eq!(choose(room(1, 1), &[full, free.clone()]).host, Some(free.host));
    }

    #[test]
    fn what_is_scarcer_decides() {
        let (few_cpus, little_memory) =
            (host("a", room(100, 4), room(0, 3)), host("b", room(10, 100), room(5, 0)));
        assert_eq!(choose(room(1, 1), &[few_cpus, little_memory.clone()]).host, Some(little_memory.host));
    }

    #[test]
    fn equal_hosts_are_told_apart_by_name_whatever_their_order() {
        let hosts = [host("b", room(8, 8), room(0, 0)), host("a", room(8, 8), room(0, 0))];
        let reversed: Vec<_> = hosts.iter().rev().cloned().collect();
        let choice = choose(room(1, 1), &hosts);
        assert_eq!(choice, choose(room(1, 1), &reversed));
        assert_eq!(choice.host, Some(hosts[1].host));
    }

    #[test]
    fn each_rejected_host_says_why() {
        let mut cordoned = host("a", room(8, 8), room(0, 0));
        cordoned.refusal = Some("it is cordoned".into());
        let choice = choose(
            room(4, 4),
            &[cordoned, host("b", room(2, 8), room(1, 0)), host("c", room(8, 2), room(0, 0))],
        );
        assert_eq!(choice.host, None);
        let why: Vec<_> = choice.rejected.iter().map(|r| r.why.as_str()).collect();
        assert_eq!(
            why,
            [
                "it is cordoned",
                "4.0 GiB of memory are needed, 1.0 GiB are free",
                "4 CPUs are needed, 2 are free"
            ]
        );
    }

    #[test]
    fn a_host_without_capacity_takes_nothing() {
        assert_eq!(choose(room(1, 1), &[host("a", room(0, 0), room(0, 0))]).host, None);
    }
}
