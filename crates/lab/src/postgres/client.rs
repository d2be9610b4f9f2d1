//! The little of PostgreSQL's protocol (version 3.0) that a client without a password and without parameters needs.
//!
//! ```text
//!   startup ─────▶            Q "…" ─────▶
//!           ◀───── R 0                ◀───── T, D…, C (a row each; the tag)
//!           ◀───── S…, K              ◀───── E (instead, if it fails)
//!           ◀───── Z                  ◀───── Z
//! ```

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use crate::namespace::Namespace;

const PORT: u16 = 5432;
const VERSION: i32 = 3 << 16;
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// A checkpoint of a whole database on TCG takes its time.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);
/// Longer messages are rubbish.
const MESSAGE_LIMIT: usize = 1 << 20;

/// A connection to a PostgreSQL server.
#[derive(Debug)]
pub struct Client<S = TcpStream> {
    stream: S,
}

/// Rows as texts; none for NULL.
pub(super) type Rows = Vec<Vec<Option<String>>>;

impl Client {
    /// Connects from a namespace, as the user `postgres` to the database of that name.
    ///
    /// # Errors
    /// When the server is not there, or does not let this client in.
    pub fn connect(namespace: &Namespace, address: Ipv4Addr) -> io::Result<Self> {
        let server = SocketAddr::from((address, PORT));
        let stream = namespace
            .run(|| TcpStream::connect_timeout(&server, CONNECT_LIMIT))
            .map_err(io::Error::other)??;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        Self::over(stream)
    }
}

impl<S: Read + Write> Client<S> {
    fn over(stream: S) -> io::Result<Self> {
        let mut client = Self { stream };
        let mut startup = VERSION.to_be_bytes().to_vec();
        startup.extend_from_slice(b"user\0postgres\0database\0postgres\0\0");
        client.send(None, &startup)?;
        client.answer()?;
        Ok(client)
    }

    /// Runs statements, separated by semicolons, and gives the rows of all of them.
    ///
    /// # Errors
    /// What the server said of the statement that failed, or that the connection is gone.
    pub fn query(&mut self, statements: &str) -> io::Result<Rows> {
        self.send(Some(b'Q'), &[statements.as_bytes(), b"\0"].concat())?;
        self.answer()
    }

    /// Runs a statement that gives one number.
    ///
    /// # Errors
    /// As [`Self::query`], and when it gives anything else.
    pub fn number(&mut self, statement: &str) -> io::Result<i64> {
        let rows = self.query(statement)?;
        let number = match rows.as_slice() {
            [row] => match row.as_slice() {
                [Some(text)] => text.parse().ok(),
                _ => None,
            },
            _ => None,
        };
        number.ok_or_else(|| invalid(&format!("`{statement}` gave {rows:?}, not a number")))
    }

    fn send(&mut self, kind: Option<u8>, body: &[u8]) -> io::Result<()> {
        let length = i32::try_from(body.len() + 4).map_err(io::Error::other)?;
        let mut message = Vec::from_iter(kind);
        message.extend_from_slice(&length.to_be_bytes());
        message.extend_from_slice(body);
        self.stream.write_all(&message)
    }

    /// Everything up to the server's being ready again.
    fn answer(&mut self) -> io::Result<Rows> {
        let (mut rows, mut failure) = (Rows::new(), None);
        loop {
            let (kind, body) = self.receive()?;
            match kind {
                b'Z' => return failure.map_or(Ok(rows), Err),
                b'D' => rows.push(row(&body).ok_or_else(|| invalid("a row that is none"))?),
                b'E' => failure = Some(io::Error::other(error_text(&body))),
                b'R' if body != [0; 4] => return Err(invalid("it wants a password")),
                _ => {}
            }
        }
    }

    fn receive(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let mut head = [0; 5];
        self.stream.read_exact(&mut head)?;
        let [kind, length @ ..] = head;
        let length =
            usize::try_from(i32::from_be_bytes(length)).ok().and_then(|length| length.checked_sub(4));
        let length = length.filter(|length| *length <= MESSAGE_LIMIT);
        let mut body = vec![0; length.ok_or_else(|| invalid("a message of an impossible length"))?];
        self.stream.read_exact(&mut body)?;
        Ok((kind, body))
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("PostgreSQL's server: {what}"))
}

/// The values of a row: a count, then for each its length (-1 for NULL) and its bytes.
fn row(body: &[u8]) -> Option<Vec<Option<String>>> {
    let (count, mut rest) = body.split_first_chunk::<2>()?;
    let mut values = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, after) = rest.split_first_chunk::<4>()?;
        rest = after;
        let value = match i32::from_be_bytes(*length) {
            -1 => None,
            length => {
                let (value, after) = rest.split_at_checked(usize::try_from(length).ok()?)?;
                rest = after;
                Some(String::from_utf8_lossy(value).into_owned())
            }
        };
        values.push(value);
    }
    Some(values)
}

/// The message in an error's fields, each a letter and a text that a zero ends.
fn error_text(body: &[u8]) -> String {
    let field = body.split(|byte| *byte == 0).find_map(|field| field.strip_prefix(b"M"));
    String::from_utf8_lossy(field.unwrap_or(b"an error without words")).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that says what it was told to, whatever it is asked.
    struct Script(io::Cursor<Vec<u8>>);

    impl Read for Script {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(buffer)
        }
    }

    impl Write for Script {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        [&[kind], &(body.len() as i32 + 4).to_be_bytes()[..], body].concat()
    }

    fn client(messages: &[Vec<u8>]) -> io::Result<Client<Script>> {
        let welcome = [message(b'R', &[0; 4]), message(b'S', b"x\0y\0"), message(b'Z', b"I")].concat();
        Client::over(Script(io::Cursor::new([welcome, messages.concat()].concat())))
    }

    #[test]
    fn rows_of_all_statements_come_before_the_server_is_ready() {
        let row = message(b'D', &[&[0, 2, 0, 0, 0, 2], &b"42"[..], &(-1_i32).to_be_bytes()].concat());
        let mut client = client(&[row, message(b'C', b"SELECT 1\0"), message(b'Z', b"I")]).unwrap();
        assert_eq!(client.query("SELECT 42, NULL").unwrap(), [[Some("42".to_owned()), None]]);
    }

    #[test]
    fn a_refused_statement_is_an_error_in_the_servers_words() {
        let refusal = message(b'E', b"SERROR\0Mno such table\0\0");
        let mut client = client(&[refusal, message(b'Z', b"I")]).unwrap();
        assert_eq!(client.query("x").unwrap_err().to_string(), "no such table");
    }

    #[test]
    fn rubbish_is_an_error_and_no_panic() {
        for rubbish in
            [vec![b'D', 0, 0, 0, 0], message(b'D', &[0, 1, 0, 0, 0, 9]), vec![b'Z', 255, 255, 255, 255]]
        {
            assert!(client(&[rubbish]).unwrap().query("x").is_err());
        }
    }
}
