//! Exit codes: stable, one for each kind of failure, so that scripts need not read texts.

use limosa_model::FailureKind;

/// Everything was done that was asked.
pub const SUCCESS: u8 = 0;
/// Something failed on this machine: a file, a terminal, a daemon that could not start.
pub const LOCAL: u8 = 1;
/// The command line makes no sense.
pub const USAGE: u8 = 2;
/// The server does not answer, or something other than this cluster's server does.
pub const UNREACHABLE: u8 = 3;
/// The user stopped looking; what was begun goes on.
pub const INTERRUPTED: u8 = 130;

/// The code of a failure.
pub fn code(kind: FailureKind) -> u8 {
    match kind {
        FailureKind::Invalid => 10,
        FailureKind::NotFound => 11,
        FailureKind::Conflict => 12,
        FailureKind::Denied => 13,
        FailureKind::Cancelled => 14,
        FailureKind::Timeout => 15,
        FailureKind::Incompatible => 20,
        FailureKind::Resource => 21,
        FailureKind::Peer => 22,
        FailureKind::Qemu => 23,
        FailureKind::Storage => 24,
        FailureKind::NotConverging => 25,
    }
}

const MEANINGS: [(u8, &str); 17] = [
    (SUCCESS, "everything was done that was asked"),
    (LOCAL, "something failed on this machine: a file, a terminal, a daemon that could not start"),
    (USAGE, "the command line makes no sense"),
    (UNREACHABLE, "the server does not answer, or is not this cluster's"),
    (10, "invalid: the request makes no sense as it stands"),
    (11, "not-found: what the request names does not exist"),
    (12, "conflict: the request collides with something that exists or is under way"),
    (13, "denied: you may not do this"),
    (14, "cancelled: a user ended it"),
    (15, "timeout: something took longer than its limit"),
    (20, "incompatible: the two hosts do not fit each other"),
    (21, "resource: not enough memory, CPU, disk space, ports or descriptors"),
    (22, "peer: the other host, or the way to it, does not work"),
    (23, "qemu: QEMU refused or died"),
    (24, "storage: a disk or a datastore does not work"),
    (25, "not-converging: the guest dirties memory faster than the link carries it"),
    (INTERRUPTED, "interrupted: you stopped looking (Ctrl-C); what was begun goes on"),
];

/// All codes with their meanings, as `limosa help exit-codes` shows them.
pub fn table() -> String {
    let lines = MEANINGS.iter().map(|(code, meaning)| format!("  {code:>3}  {meaning}\n"));
    format!("Exit codes:\n{}", lines.collect::<String>().trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_failure_has_a_code_of_its_own_in_the_table() {
        let kinds = [
            FailureKind::Incompatible,
            FailureKind::Resource,
            FailureKind::Peer,
            FailureKind::Qemu,
            FailureKind::Storage,
            FailureKind::NotConverging,
            FailureKind::Timeout,
            FailureKind::Cancelled,
            FailureKind::Denied,
            FailureKind::Invalid,
            FailureKind::NotFound,
            FailureKind::Conflict,
        ];
        for kind in kinds {
            let meaning = MEANINGS.iter().find(|(number, _)| *number == code(kind)).unwrap().1;
            assert!(meaning.starts_with(&format!("{kind}: ")), "{meaning}");
        }
        assert_eq!(MEANINGS.len(), kinds.len() + 5);
        assert!(MEANINGS.is_sorted_by_key(|(number, _)| *number));
    }
}
