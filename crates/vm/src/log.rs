//! What QEMU says on its standard output and error: kept in a file, which is kept small.
//!
//! QEMU writes the file itself, so that it needs nobody to listen. It is cut back whenever an agent that watches the
//! VM finds it too large.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// A log longer than this is cut back to its end.
const LIMIT_BYTES: u64 = 1 << 20;
const KEPT_BYTES: u64 = 64 << 10;

/// The last of a log: at most so many bytes, whole lines, on one line of text.
pub(crate) fn tail(path: &Path, limit_bytes: u64) -> String {
    let Ok(bytes) = File::open(path).and_then(|mut file| read_tail(&mut file, limit_bytes)) else {
        return "it has left no log".into();
    };
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() { "it said nothing".into() } else { lines.join("; ") }
}

/// Cuts a log back if it is too long.
pub(crate) fn bound(path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().read(true).append(true).open(path)?;
    if file.metadata()?.len() > LIMIT_BYTES {
        let kept = read_tail(&mut file, KEPT_BYTES)?;
        // QEMU appends as well: what it says between these two lines comes before what was kept, and is not lost.
        file.set_len(0)?;
        file.write_all(&kept)?;
    }
    Ok(())
}

fn read_tail(file: &mut File, limit_bytes: u64) -> io::Result<Vec<u8>> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(limit_bytes)))?;
    let mut bytes = Vec::new();
    file.take(limit_bytes).read_to_end(&mut bytes)?;
    if length > limit_bytes {
        let first_line = bytes.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        bytes.drain(..first_line);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_the_last_whole_lines() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "first line\nsecond\n\n third\n").unwrap();
        assert_eq!(tail(file.path(), 1000), "first line; second; third");
        assert_eq!(tail(file.path(), 12), "third");
        std::fs::write(file.path(), "").unwrap();
        assert_eq!(tail(file.path(), 12), "it said nothing");
        assert_eq!(tail(Path::new("/nonexistent"), 12), "it has left no log");
    }

    #[test]
    fn a_log_that_grew_too_long_is_cut_back_while_it_is_written() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut writer = OpenOptions::new().append(true).open(file.path()).unwrap();
        writer.write_all("a line of a talkative guest\n".repeat(50_000).as_bytes()).unwrap();
        bound(file.path()).unwrap();
        writer.write_all(b"the end\n").unwrap();
        let text = std::fs::read_to_string(file.path()).unwrap();
        assert!(text.len() < 66 << 10 && text.starts_with("a line") && text.ends_with("guest\nthe end\n"));
        bound(file.path()).unwrap();
        assert_eq!(std::fs::read_to_string(file.path()).unwrap(), text);
    }
}
