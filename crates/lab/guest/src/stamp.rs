//! The stamps: what a page of memory and a block of the disk must contain. Pure.
//!
//! A page holds its own number, the generation in which it was written, and 510 words that follow from both
//! and the seed of this boot. So a page that is stale, that belongs elsewhere, that was lost, or of which only
//! a part arrived is told apart from a good one, and from each other:
//!
//! ```text
//! word 0          1            2 … 511
//!      page       generation   mix(seed, page, generation) + n × STEP
//! ```
//!
//! A block is a page whose last word is a checksum of the others, so that it can be judged without knowing
//! what was written last.

use std::fmt;

/// Bytes in a page, and in a block.
pub(crate) const PAGE_BYTES: usize = 4096;
/// Words in a page.
pub(crate) const PAGE_WORDS: usize = PAGE_BYTES / 8;

/// One page as words.
pub(crate) type Page = [u64; PAGE_WORDS];

/// Odd, with its bits well spread (the golden ratio in 64 bits): no two words of a page are equal.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// What a page or block turned out to hold in place of what was expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing but zeros: the page was lost.
    Zero,
    /// A whole stamp, of this page, from another generation.
    Stale { generation: u64 },
    /// A whole stamp, of another page.
    Misplaced { page: u64, generation: u64 },
    /// No whole stamp: this word is the first that does not fit the first two.
    Torn { word: usize },
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zero => write!(f, "zero page"),
            Self::Stale { generation } => write!(f, "generation {generation}"),
            Self::Misplaced { page, generation } => write!(f, "page {page} of generation {generation}"),
            Self::Torn { word } => write!(f, "torn at word {word}"),
        }
    }
}

/// Stamps a page.
pub(crate) fn write(words: &mut Page, seed: u64, page: u64, generation: u64) {
    words[0] = page;
    words[1] = generation;
    let mut value = mix(seed, page, generation);
    for word in &mut words[2..] {
        *word = value;
        value = value.wrapping_add(STEP);
    }
}

/// Checks a page.
///
/// # Errors
/// What it holds, if that is not the stamp of this page and generation.
pub(crate) fn check(words: &Page, seed: u64, page: u64, generation: u64) -> Result<(), Found> {
    let fault = first_fault(words, seed);
    if fault.is_none() && words[0] == page && words[1] == generation {
        return Ok(());
    }
    Err(match fault {
        Some(_) if words.iter().all(|word| *word == 0) => Found::Zero,
        Some(word) => Found::Torn { word },
        None if words[0] != page => Found::Misplaced { page: words[0], generation: words[1] },
        None => Found::Stale { generation: words[1] },
    })
}

/// Stamps a block of the disk.
pub(crate) fn write_block(words: &mut Page, seed: u64, block: u64, generation: u64) {
    write(words, seed, block, generation);
    words[PAGE_WORDS - 1] = checksum(words);
}

/// Checks a block of the disk.
///
/// # Errors
/// What it holds, if that is not the stamp of this block and generation.
pub(crate) fn check_block(words: &Page, seed: u64, block: u64, generation: u64) -> Result<(), Found> {
    if words[PAGE_WORDS - 1] != checksum(words) {
        return Err(if words.iter().all(|word| *word == 0) {
            Found::Zero
        } else {
            Found::Torn { word: PAGE_WORDS - 1 }
        });
    }
    let mut plain = *words;
    plain[PAGE_WORDS - 1] = word_at(seed, words[0], words[1], PAGE_WORDS - 1);
    check(&plain, seed, block, generation)
}

/// One number that depends on all three, every bit on every bit (the finaliser of splitmix64, twice).
pub(crate) fn mix(seed: u64, page: u64, generation: u64) -> u64 {
    finalise(finalise(seed ^ page.wrapping_mul(STEP)) ^ generation)
}

/// The next number of a sequence for choosing pages and blocks (splitmix64).
pub(crate) fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(STEP);
    finalise(*state)
}

fn word_at(seed: u64, page: u64, generation: u64, index: usize) -> u64 {
    mix(seed, page, generation).wrapping_add(STEP.wrapping_mul(index as u64 - 2))
}

/// The first word that does not follow from the page's own first two.
fn first_fault(words: &Page, seed: u64) -> Option<usize> {
    let mut expected = mix(seed, words[0], words[1]);
    for (index, word) in words.iter().enumerate().skip(2) {
        if *word != expected {
            return Some(index);
        }
        expected = expected.wrapping_add(STEP);
    }
    None
}

fn checksum(words: &Page) -> u64 {
    words[..PAGE_WORDS - 1].iter().fold(STEP, |sum, word| finalise(sum ^ word))
}

fn finalise(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: u64 = 0x1234_5678_9abc_def0;

    fn stamped(page: u64, generation: u64) -> Page {
        let mut words = [0; PAGE_WORDS];
        write(&mut words, SEED, page, generation);
        words
    }

    fn stamped_block(block: u64, generation: u64) -> Page {
        let mut words = [0; PAGE_WORDS];
        write_block(&mut words, SEED, block, generation);
        words
    }

    #[test]
    fn a_page_passes_as_itself_and_as_nothing_else() {
        let page = stamped(7, 3);
        assert_eq!(check(&page, SEED, 7, 3), Ok(()));
        assert_eq!(check(&page, SEED, 7, 4), Err(Found::Stale { generation: 3 }));
        assert_eq!(check(&page, SEED, 8, 3), Err(Found::Misplaced { page: 7, generation: 3 }));
        assert!(check(&page, SEED + 1, 7, 3).is_err(), "a page of another boot passes");
    }

    #[test]
    fn a_lost_page_is_told_from_a_torn_one() {
        assert_eq!(check(&[0; PAGE_WORDS], SEED, 0, 0), Err(Found::Zero));
        let mut half = stamped(7, 4);
        half[256..].copy_from_slice(&stamped(7, 3)[256..]);
        assert_eq!(check(&half, SEED, 7, 4), Err(Found::Torn { word: 256 }));
    }

    #[test]
    fn every_single_changed_bit_is_noticed() {
        for index in 0..PAGE_WORDS {
            for bit in [0, 1, 31, 32, 63] {
                let mut page = stamped(9, 2);
                page[index] ^= 1 << bit;
                assert!(check(&page, SEED, 9, 2).is_err(), "bit {bit} of word {index}");
                let mut block = stamped_block(9, 2);
                block[index] ^= 1 << bit;
                assert!(check_block(&block, SEED, 9, 2).is_err(), "bit {bit} of word {index} of a block");
            }
        }
    }

    #[test]
    fn a_block_passes_as_itself_and_as_nothing_else() {
        let block = stamped_block(7, 3);
        assert_eq!(check_block(&block, SEED, 7, 3), Ok(()));
        assert_eq!(check_block(&block, SEED, 7, 4), Err(Found::Stale { generation: 3 }));
        assert_eq!(check_block(&block, SEED, 6, 3), Err(Found::Misplaced { page: 7, generation: 3 }));
        assert_eq!(check_block(&[0; PAGE_WORDS], SEED, 7, 3), Err(Found::Zero));
    }
}
