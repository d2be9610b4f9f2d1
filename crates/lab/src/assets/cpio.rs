//! Writes archives in the format of an initramfs: cpio, "newc", as the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst` has it. Pure.

/// Names and files begin at multiples of this.
const ALIGNMENT: usize = 4;
const FOLDER: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER: u32 = 0o020_000;

/// An archive that is being written. The same calls give the same bytes: owners are root, times are zero.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a folder. What lies in it comes later.
    pub fn folder(&mut self, path: &str) {
        self.entry(path, FOLDER | 0o755, (0, 0), &[], 0);
    }

    /// Adds a character device.
    pub fn character_device(&mut self, path: &str, major: u32, minor: u32) {
        self.entry(path, CHARACTER | 0o600, (major, minor), &[], 0);
    }

    /// Adds a file; none if it is larger than the format can say (4 GiB).
    pub fn file(&mut self, path: &str, permissions: u32, content: &[u8]) -> Option<()> {
        let length = u32::try_from(content.len()).ok()?;
        self.entry(path, REGULAR | (permissions & 0o7777), (0, 0), content, length);
        Some(())
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[], 0);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, (major, minor): (u32, u32), content: &[u8], length: u32) {
        self.entries += 1;
        let name_length = u32::try_from(path.len() + 1).unwrap_or(u32::MAX);
        let (user, group, links, time, check) = (0, 0, 1, 0, 0);
        let fields =
            [self.entries, mode, user, group, links, time, length, 0, 0, major, minor, name_length, check];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    fn sample() -> Vec<u8> {
        let mut archive = Archive::default();
        archive.folder("dev");
        archive.character_device("dev/console", 5, 1);
        archive.file("init", 0o755, b"seven b").unwrap();
        archive.file("empty", 0o644, b"").unwrap();
        archive.finish()
    }

    #[test]
    fn a_header_is_110_characters_and_everything_is_aligned() {
        let mut archive = Archive::default();
        archive.file("init", 0o755, b"seven b").unwrap();
        let bytes = archive.finish();
        assert_eq!(&bytes[..14], b"07070100000001");
        assert_eq!(&bytes[14..22], b"000081ed", "a regular file that all may execute");
        assert_eq!(&bytes[54..62], b"00000007", "its size");
        assert_eq!(&bytes[94..102], b"00000005", "the length of its name with the zero");
        assert_eq!(&bytes[110..124], b"init\0\0seven b\0");
        assert_eq!(&bytes[124..130], b"070701", "the trailer follows, aligned");
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn the_same_content_gives_the_same_bytes() {
        assert_eq!(sample(), sample());
    }

    #[test]
    fn the_cpio_program_reads_what_was_written() {
        let started = Command::new("cpio").arg("-itv").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let Ok(mut cpio) = started else {
            assert!(std::env::var_os("CI").is_none(), "cpio is needed and missing");
            eprintln!("SKIPPED: cpio is not installed");
            return;
        };
        cpio.stdin.take().unwrap().write_all(&sample()).unwrap();
        let output = cpio.wait_with_output().unwrap();
        assert!(output.status.success());
        let listing = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<&str> = listing.lines().collect();
        assert_eq!(lines.len(), 4, "{listing}");
        assert!(lines[0].starts_with("drwxr-xr-x") && lines[0].ends_with(" dev"), "{listing}");
        assert!(lines[1].starts_with("crw-------") && lines[1].contains("5,   1"), "{listing}");
        assert!(lines[2].starts_with("-rwxr-xr-x") && lines[2].ends_with(" init"), "{listing}");
    }
}
