//! The digest of a guest's whole memory, while it stands still.
//!
//! Memory is cut into pieces of 2 MiB, each hashed for itself (two pieces at a time), and the hashes hashed in order.
//! A piece that was never touched is not read, and counts as the zeroes that it would be read as.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use limosa_model::{Failure, FailureKind};
use limosa_vm::Vm;
use rustix::fs::{SeekFrom, seek};

const PIECE: u64 = 2 << 20;

/// The digest of a VM's memory, in hexadecimal. The VM must stand still.
pub(super) async fn digest_of(vm: &Vm) -> Result<String, Failure> {
    let unreadable = |error: &dyn std::fmt::Display| {
        let what = format!("the VM's memory cannot be read: {error}");
        Failure::new(FailureKind::Resource, what, "see the agent's log")
    };
    let memory = vm.ram_file().map_err(|e| unreadable(&e))?;
    match tokio::task::spawn_blocking(move || digest(memory)).await {
        Ok(Ok(digest)) => Ok(digest),
        Ok(Err(error)) => Err(unreadable(&error)),
        Err(error) => Err(unreadable(&error)),
    }
}

fn digest(memory: OwnedFd) -> io::Result<String> {
    let file = File::from(memory);
    let len = file.metadata()?.len();
    let pieces = len.div_ceil(PIECE);
    let middle = pieces / 2;
    let (low, high) = std::thread::scope(|scope| {
        let second = scope.spawn(|| hashes(&file, middle, pieces, len));
        (hashes(&file, 0, middle, len), second.join())
    });
    let high = high.map_err(|_| io::Error::other("hashing ended in a panic"))?;
    let mut whole = blake3::Hasher::new();
    for hash in low?.iter().chain(&high?) {
        whole.update(hash.as_bytes());
    }
    Ok(whole.finalize().to_string())
}

fn hashes(file: &File, from: u64, to: u64, len: u64) -> io::Result<Vec<blake3::Hash>> {
    let zero = blake3::hash(&vec![0; PIECE as usize]);
    let mut bytes = vec![0; PIECE as usize];
    let mut hashes = Vec::with_capacity((to - from) as usize);
    let mut data = None;
    for piece in from..to {
        let start = piece * PIECE;
        let size = PIECE.min(len - start);
        if size == PIECE && next_data(file, start, &mut data)? >= start + PIECE {
            hashes.push(zero);
            continue;
        }
        let bytes = &mut bytes[..size as usize];
        file.read_exact_at(bytes, start)?;
        hashes.push(blake3::hash(bytes));
    }
    Ok(hashes)
}

/// Where the next bytes that were ever written are, from `start` on. Kept, so that a long hole costs one question.
fn next_data(file: &File, start: u64, kept: &mut Option<u64>) -> io::Result<u64> {
    if let Some(at) = kept.filter(|at| *at >= start) {
        return Ok(at);
    }
    let at = match seek(file, SeekFrom::Data(start)) {
        Ok(at) => at,
        Err(rustix::io::Errno::NXIO) => u64::MAX,
        Err(error) => return Err(error.into()),
    };
    *kept = Some(at);
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    fn memory(writes: &[(u64, &[u8])]) -> OwnedFd {
        let memory = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&memory, 9 << 20).unwrap();
        for (at, bytes) in writes {
            rustix::io::pwrite(&memory, bytes, *at).unwrap();
        }
        memory
    }

    #[test]
    fn memory_that_differs_in_one_byte_or_place_has_another_digest() {
        let base = digest(memory(&[(5 << 20, b"x")])).unwrap();
        assert_eq!(base, digest(memory(&[(5 << 20, b"x")])).unwrap());
        assert_ne!(base, digest(memory(&[(5 << 20, b"y")])).unwrap());
        assert_ne!(base, digest(memory(&[((5 << 20) + 1, b"x")])).unwrap());
        assert_ne!(base, digest(memory(&[(7 << 20, b"x")])).unwrap());
        assert_ne!(base, digest(memory(&[(5 << 20, b"x"), ((9 << 20) - 1, b"x")])).unwrap());
    }

    #[test]
    fn written_zeroes_are_the_same_as_untouched_memory() {
        assert_eq!(digest(memory(&[])).unwrap(), digest(memory(&[(3 << 20, &[0; 4096])])).unwrap());
    }
}
