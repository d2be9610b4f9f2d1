//! What a journal is written to: a file, or in tests one that fails.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, fallocate};

/// A file as a journal needs it.
pub trait Medium: Send {
    /// The bytes from `offset` on, up to the end.
    fn read_from(&self, offset: u64) -> io::Result<Vec<u8>>;
    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Returns once everything written is on stable storage.
    fn sync(&self) -> io::Result<()>;
    /// The length in bytes.
    fn size(&self) -> io::Result<u64>;
    /// Makes the file at least this long, with zeroes, and its blocks its own: writing there later needs no space.
    fn set_aside(&self, len: u64) -> io::Result<()>;
}

impl Medium for File {
    fn read_from(&self, offset: u64) -> io::Result<Vec<u8>> {
        let len = usize::try_from(self.metadata()?.len().saturating_sub(offset)).map_err(io::Error::other)?;
        let mut bytes = vec![0; len];
        self.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn set_aside(&self, len: u64) -> io::Result<()> {
        let now = self.size()?;
        if now < len {
            fallocate(self, FallocateFlags::empty(), now, len - now)?;
            self.sync_all()?;
        }
        Ok(())
    }
}
