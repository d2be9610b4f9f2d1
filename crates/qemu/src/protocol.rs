//! The wire form of QMP: JSON objects, one a line, read with limits. No sockets and no clocks here.
//!
//! ```text
//!  client                                    QEMU
//!    | <------------ {"QMP": {version, ...}}   |   greeting, as soon as we are its client
//!    | {"execute": "qmp_capabilities", ...} -> |
//!    | <------------ {"return": {}, "id": 0}   |   from here on: commands, replies and events
//!    | {"execute": C, "arguments", "id": N} -> |
//!    | <------------ {"event": E, ...}         |   at any moment
//!    | <------------ {"return"|"error", id: N} |   once for each command
//! ```
//!
//! A line of more than [`LINE_LIMIT_BYTES`], or one that is none of these, ends the connection: behind it
//! no reply can be matched with certainty.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{ErrorClass, TimedEvent};

/// The longest line that is read. `query-qmp-schema` answers with 230 KB in QEMU 10.
pub(crate) const LINE_LIMIT_BYTES: usize = 16 * 1024 * 1024;

/// How much of a malformed line an error repeats.
const EXCERPT_BYTES: usize = 120;

/// A version of QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version {
    /// The major number.
    pub major: u32,
    /// The minor number.
    pub minor: u32,
    /// The patch level.
    pub micro: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// What QEMU says of itself when it greets us, and in answer to `query-version`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Greeting {
    /// The version of upstream's QEMU.
    #[serde(rename = "qemu")]
    pub version: Version,
    /// The distribution's package and its version, if it was built as one.
    #[serde(default)]
    pub package: String,
}

/// A line from QEMU.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Message {
    Greeting(Greeting),
    Reply { id: u64, outcome: Result<Value, Refusal> },
    Event(TimedEvent),
}

/// QEMU's no to a command.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Refusal {
    pub(crate) class: ErrorClass,
    #[serde(rename = "desc")]
    pub(crate) description: String,
}

/// Why a line is not QMP, with its beginning.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}: {excerpt}")]
pub(crate) struct Malformed {
    why: String,
    excerpt: String,
}

impl Malformed {
    fn new(why: impl Into<String>, line: &[u8]) -> Self {
        let excerpt = &line[..line.len().min(EXCERPT_BYTES)];
        Self { why: why.into(), excerpt: format!("\"{}\"", excerpt.escape_ascii()) }
    }
}

/// Reads one line.
pub(crate) fn parse(line: &[u8]) -> Result<Message, Malformed> {
    #[derive(Deserialize)]
    struct Line {
        #[serde(rename = "QMP")]
        greeting: Option<GreetingBody>,
        #[serde(rename = "return", default, deserialize_with = "present")]
        result: Option<Value>,
        error: Option<Refusal>,
        id: Option<u64>,
        event: Option<String>,
    }
    #[derive(Deserialize)]
    struct GreetingBody {
        version: Greeting,
    }

    let malformed = |why: &str| Malformed::new(why, line);
    let fields: Line =
        serde_json::from_slice(line).map_err(|error| Malformed::new(error.to_string(), line))?;
    let outcome = match (fields.result, fields.error) {
        (Some(_), Some(_)) => return Err(malformed("both a result and an error")),
        (Some(result), None) => Some(Ok(result)),
        (None, Some(refusal)) => Some(Err(refusal)),
        (None, None) => None,
    };
    match (outcome, fields.event, fields.greeting) {
        (Some(outcome), None, None) => {
            let id = fields.id.ok_or_else(|| malformed("a reply without an id"))?;
            Ok(Message::Reply { id, outcome })
        }
        (None, Some(_), None) => serde_json::from_slice(line)
            .map(Message::Event)
            .map_err(|error| Malformed::new(error.to_string(), line)),
        (None, None, Some(greeting)) => Ok(Message::Greeting(greeting.version)),
        _ => Err(malformed("neither greeting nor reply nor event")),
    }
}

/// A field that is there counts as there, even if it is null.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// Cuts what arrives into lines.
#[derive(Debug, Default)]
pub(crate) struct LineBuffer {
    bytes: Vec<u8>,
    /// Where the first line not yet given out begins.
    start: usize,
    /// Up to here there is no line end behind `start`.
    searched: usize,
}

impl LineBuffer {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.start);
        self.searched -= self.start;
        self.start = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole line that is not blank, without its end.
    pub(crate) fn next_line(&mut self) -> Result<Option<&[u8]>, Malformed> {
        loop {
            let end = self.bytes[self.searched..].iter().position(|byte| *byte == b'\n');
            let Some(end) = end.map(|offset| self.searched + offset) else {
                self.searched = self.bytes.len();
                let unfinished = &self.bytes[self.start..];
                return if unfinished.len() > LINE_LIMIT_BYTES {
                    Err(too_long(unfinished))
                } else {
                    Ok(None)
                };
            };
            let line = self.start..end;
            self.start = end + 1;
            self.searched = self.start;
            if line.len() > LINE_LIMIT_BYTES {
                return Err(too_long(&self.bytes[line]));
            }
            if !self.bytes[line.clone()].trim_ascii().is_empty() {
                return Ok(Some(&self.bytes[line]));
            }
        }
    }
}

fn too_long(line: &[u8]) -> Malformed {
    Malformed::new(format!("a line of more than {LINE_LIMIT_BYTES} bytes"), line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn replies_are_read_with_their_ids() {
        assert_eq!(
            parse(br#"{"return": {"a": 1}, "id": 7}"#).unwrap(),
            Message::Reply { id: 7, outcome: Ok(json!({"a": 1})) }
        );
        assert_eq!(
            parse(br#"{"id": 8, "error": {"class": "NewClass", "desc": "no"}}"#).unwrap(),
            Message::Reply {
                id: 8,
                outcome: Err(Refusal {
                    class: ErrorClass::Other("NewClass".into()),
                    description: "no".into()
                })
            }
        );
        assert_eq!(
            parse(br#"{"return": null, "id": 9}"#).unwrap(),
            Message::Reply { id: 9, outcome: Ok(Value::Null) }
        );
    }

    #[test]
    fn a_greeting_from_the_future_is_read() {
        let line =
            br#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "Debian"},
            "capabilities": ["oob", "telepathy"], "more": 1}}"#;
        let Message::Greeting(greeting) = parse(line).unwrap() else { panic!("not a greeting") };
        assert_eq!(greeting.version.to_string(), "10.0.2");
    }

    #[test]
    fn rubbish_is_an_error_with_an_excerpt() {
        for line in [
            &b"{"[..],
            b"[]",
            b"7",
            b"\xff\xfe\x00",
            b"{}",
            br#"{"return": {}}"#,
            br#"{"return": {}, "id": -1}"#,
            br#"{"return": {}, "id": "x"}"#,
            br#"{"return": {}, "error": {"class": "G", "desc": ""}, "id": 1}"#,
            br#"{"return": {}, "event": "STOP", "id": 1}"#,
            br#"{"event": 7}"#,
            br#"{"error": {}, "id": 1}"#,
            br#"{"QMP": {}}"#,
        ] {
            let error = parse(line).expect_err(&String::from_utf8_lossy(line)).to_string();
            assert!(error.contains(&line.escape_ascii().to_string()), "{error}");
        }
        let deep = [b"[".repeat(100_000), b"]".repeat(100_000)].concat();
        assert!(parse(&deep).is_err());
    }

    #[test]
    fn lines_are_cut_wherever_the_stream_was_cut() {
        let stream = b"one\r\n\n  \ntwo\nthree";
        for chunk in 1..=stream.len() {
            let mut buffer = LineBuffer::default();
            let mut lines = Vec::new();
            for piece in stream.chunks(chunk) {
                buffer.push(piece);
                while let Some(line) = buffer.next_line().unwrap() {
                    lines.push(line.trim_ascii().to_vec());
                }
            }
            assert_eq!(lines, [b"one".to_vec(), b"two".to_vec()], "in chunks of {chunk}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_line_makes_the_parser_panic(line: Vec<u8>) {
            let _ = parse(&line);
        }

        #[test]
        fn no_reply_makes_the_parser_panic(
            key in "QMP|return|error|event", value in "[\\[\\]{}:,\"a0]{0,12}", id: i64
        ) {
            let _ = parse(format!("{{\"{key}\": {value}, \"id\": {id}}}").as_bytes());
        }
    }

    #[test]
    fn a_line_without_end_is_given_up_at_the_limit() {
        let mut buffer = LineBuffer::default();
        buffer.push(&vec![b' '; LINE_LIMIT_BYTES]);
        assert_eq!(buffer.next_line(), Ok(None));
        buffer.push(b" ");
        assert!(buffer.next_line().is_err());
    }
}
