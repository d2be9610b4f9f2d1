//! Waiting for something that gives no event of its own: asking again, until a deadline.

use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

const PAUSE: Duration = Duration::from_millis(10);

/// Asks until the answer is there.
///
/// # Errors
/// [`Error::TimedOut`] naming `what`, or the first error of `ask`.
pub fn until<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if Instant::now() >= deadline {
            return Err(Error::TimedOut { what: what.to_owned(), limit });
        }
        thread::sleep(PAUSE);
    }
}
