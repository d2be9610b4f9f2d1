//! A guest's memory: a memfd that the agent makes and QEMU maps, shared.
//!
//! It is found again by its name among the descriptors of a running QEMU, and lives as long as the last process that
//! holds it.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use limosa_model::ByteSize;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

const NAME: &str = "limosa-ram";

/// Makes memory of this size, all zero and not yet allocated. Its size is sealed: whoever maps it need not fear that
/// it shrinks under their feet.
pub(crate) fn create(size: ByteSize) -> io::Result<OwnedFd> {
    let memory = memfd_create(NAME, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&memory, size.as_bytes())?;
    fcntl_add_seals(memory.as_fd(), SealFlags::SHRINK | SealFlags::GROW)?;
    Ok(memory)
}

/// Opens the memory of a running QEMU.
pub(crate) fn find(pid: u32) -> io::Result<OwnedFd> {
    let wanted = format!("/memfd:{NAME} (deleted)");
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let path = entry?.path();
        if fs::read_link(&path).is_ok_and(|target| target == Path::new(&wanted)) {
            return Ok(OpenOptions::new().read(true).write(true).open(path)?.into());
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "the process holds no guest memory of Limosa's"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_found_by_its_name_and_keeps_its_size() {
        let memory = create(ByteSize::mib(2)).unwrap();
        let found = find(std::process::id()).unwrap();
        rustix::io::pwrite(&memory, b"limosa", 4096).unwrap();
        let mut read = [0; 6];
        rustix::io::pread(&found, &mut read, 4096).unwrap();
        assert_eq!(&read, b"limosa");
        assert!(ftruncate(&found, 4096).is_err());
        assert!(ftruncate(&found, 4 << 20).is_err());
    }
}
