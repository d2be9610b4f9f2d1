//! A run of bytes of fixed capacity that is filled at its end and emptied at its front.

/// Bytes on their way. The memory is taken once; nothing here grows.
pub(crate) struct Buffer {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Buffer {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self { bytes: vec![0; capacity].into_boxed_slice(), start: 0, end: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub(crate) fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub(crate) fn filled_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.end]
    }

    /// How many bytes still fit.
    pub(crate) fn room(&self) -> usize {
        self.bytes.len() - (self.end - self.start)
    }

    /// All the room there is, in one piece.
    pub(crate) fn spare(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.bytes[self.end..]
    }

    /// The first `count` bytes of [`Self::spare`] have been filled.
    pub(crate) fn commit(&mut self, count: usize) {
        assert!(count <= self.bytes.len() - self.end, "more was filled than was spare");
        self.end += count;
    }

    /// The first `count` bytes of [`Self::filled`] are done with.
    pub(crate) fn consume(&mut self, count: usize) {
        assert!(count <= self.end - self.start, "more was consumed than was filled");
        self.start += count;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Adds `bytes` if all of them fit.
    #[must_use]
    pub(crate) fn append(&mut self, bytes: &[u8]) -> bool {
        let fits = bytes.len() <= self.room();
        if fits {
            if bytes.len() > self.bytes.len() - self.end {
                self.spare();
            }
            self.bytes[self.end..self.end + bytes.len()].copy_from_slice(bytes);
            self.end += bytes.len();
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_goes_in_comes_out_in_its_order(steps: Vec<(Vec<u8>, usize)>) {
            let mut buffer = Buffer::with_capacity(64);
            let mut expected = std::collections::VecDeque::new();
            for (bytes, take) in steps {
                let fits = bytes.len() <= 64 - expected.len();
                prop_assert_eq!(buffer.append(&bytes), fits);
                if fits {
                    expected.extend(bytes);
                }
                let take = take % (expected.len() + 1);
                let taken: Vec<u8> = expected.drain(..take).collect();
                prop_assert_eq!(&buffer.filled()[..take], taken);
                buffer.consume(take);
                prop_assert_eq!(buffer.room(), 64 - expected.len());
            }
        }
    }
}
