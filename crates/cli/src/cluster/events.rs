//! Server-sent events (WHATWG HTML, 9.2), as far as the server sends them: the data of each, read as JSON.

use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use hyper::body::Bytes;
use limosa_api::client::CallError;
use serde::de::DeserializeOwned;

use crate::error::CliError;

/// Longest event that is read, in bytes.
const LIMIT_BYTES: usize = 1 << 20;

/// Objects as they come, until the server ends the stream.
pub struct EventStream<T> {
    address: String,
    pieces: BoxStream<'static, io::Result<Bytes>>,
    parser: Parser,
    ready: VecDeque<String>,
    what: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> EventStream<T> {
    pub(super) fn new(address: &str, pieces: BoxStream<'static, io::Result<Bytes>>) -> Self {
        Self {
            address: address.into(),
            pieces,
            parser: Parser::default(),
            ready: VecDeque::new(),
            what: PhantomData,
        }
    }

    /// The next object; none when the server has ended the stream.
    ///
    /// # Errors
    /// [`CliError::Call`] if the connection broke, or the server sent something else.
    pub async fn next(&mut self) -> Result<Option<T>, CliError> {
        loop {
            if let Some(data) = self.ready.pop_front() {
                return serde_json::from_str(&data)
                    .map(Some)
                    .map_err(|error| self.rubbish(&error.to_string()));
            }
            match self.pieces.next().await {
                None => return Ok(None),
                Some(Ok(piece)) => match self.parser.take(&piece) {
                    Ok(events) => self.ready.extend(events),
                    Err(why) => return Err(self.rubbish(why)),
                },
                Some(Err(source)) => {
                    let error =
                        CallError::Unreachable { address: self.address.clone(), source: source.into() };
                    return Err(error.into());
                }
            }
        }
    }

    fn rubbish(&self, why: &str) -> CliError {
        CallError::Protocol { address: self.address.clone(), why: why.into() }.into()
    }
}

#[derive(Default)]
struct Parser {
    line: Vec<u8>,
    data: Option<String>,
}

impl Parser {
    /// The data of the events that this piece completes.
    fn take(&mut self, piece: &[u8]) -> Result<Vec<String>, &'static str> {
        let mut events = Vec::new();
        for byte in piece {
            if *byte != b'\n' {
                self.line.push(*byte);
                if self.line.len() > LIMIT_BYTES {
                    return Err("an event is too long");
                }
                continue;
            }
            let line = std::mem::take(&mut self.line);
            let line = line.strip_suffix(b"\r").unwrap_or(&line);
            if line.is_empty() {
                events.extend(self.data.take());
            } else if let Some(data) = line.strip_prefix(b"data:") {
                let data = std::str::from_utf8(data).map_err(|_| "an event is not UTF-8")?;
                let data = data.strip_prefix(' ').unwrap_or(data);
                match &mut self.data {
                    None => self.data = Some(data.to_owned()),
                    Some(begun) if begun.len() + data.len() > LIMIT_BYTES => {
                        return Err("an event is too long");
                    }
                    Some(begun) => begun.extend(["\n", data]),
                }
            }
        }
        Ok(events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_found_wherever_the_pieces_are_cut() {
        let text = b": hello\nevent: task\ndata: {\"a\":1}\n\nid: 7\r\ndata:one\r\ndata: two\r\n\r\n\n:\n\ndata: cut";
        for size in 1..text.len() {
            let mut parser = Parser::default();
            let events: Vec<_> = text.chunks(size).flat_map(|piece| parser.take(piece).unwrap()).collect();
            assert_eq!(events, ["{\"a\":1}", "one\ntwo"], "cut every {size} bytes");
        }
    }

    #[test]
    fn rubbish_and_endless_events_are_errors() {
        assert!(Parser::default().take(b"data: \xff\n").is_err());
        assert!(Parser::default().take(&vec![b'x'; LIMIT_BYTES + 1]).is_err());
        let mut parser = Parser::default();
        let line = [b"data: ".as_slice(), &vec![b'x'; LIMIT_BYTES / 2 + 1], b"\n"].concat();
        parser.take(&line).unwrap();
        parser.take(&line).unwrap_err();
    }
}
