//! The emulator's process: one thread that waits for frames, for times and for questions.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::queue::DelayQueue;
use super::{Counters, Impairment, LINE_LIMIT, tap};
use crate::error::{Error, Result};

/// More than any frame: jumbo frames have 9000 bytes.
const FRAME_LIMIT: usize = 64 * 1024;
/// Frames read from one tap before the other has its turn.
const FRAMES_AT_A_STRETCH: usize = 64;
/// How long whoever asks may take to send a line: the link stands still meanwhile.
const QUESTION_LIMIT: Duration = Duration::from_millis(200);

/// Emulates the link between two taps until the process is ended; the listening unix socket for questions is
/// standard input.
///
/// # Errors
/// When a tap cannot be opened, or no longer read.
pub fn run(inner: &str, outer: &str) -> Result<()> {
    let input =
        io::stdin().as_fd().try_clone_to_owned().map_err(Error::io("take the socket from standard input"))?;
    let mut emulator = Emulator {
        listener: UnixListener::from(input),
        directions: [
            Direction { from: tap::open(inner)?, queue: DelayQueue::new(1) },
            Direction { from: tap::open(outer)?, queue: DelayQueue::new(2) },
        ],
        start: Instant::now(),
    };
    loop {
        emulator.step().map_err(Error::io(format!("pass frames between {inner} and {outer}")))?;
    }
}

struct Emulator {
    listener: UnixListener,
    /// Each reads from its own tap and writes to the other's.
    directions: [Direction; 2],
    start: Instant,
}

struct Direction {
    from: File,
    queue: DelayQueue,
}

impl Emulator {
    fn step(&mut self) -> io::Result<()> {
        let asked = self.wait()?;
        for direction in &mut self.directions {
            read_frames(direction, self.start)?;
        }
        let now_ns = nanoseconds_since(self.start);
        let [inward, outward] = &mut self.directions;
        write_due(&mut inward.queue, &outward.from, now_ns);
        write_due(&mut outward.queue, &inward.from, now_ns);
        if asked {
            let (stream, _) = self.listener.accept()?;
            // Whoever asks wrongly, or goes away, does no harm to the link.
            drop(self.answer(&stream));
        }
        Ok(())
    }

    /// Waits for a frame, for the time of a frame, or for a question; says whether there is a question.
    fn wait(&self) -> io::Result<bool> {
        let [inward, outward] = &self.directions;
        let due_ns = self.directions.iter().filter_map(|direction| direction.queue.next_due_ns()).min();
        let left_ns = due_ns.map(|due_ns| due_ns.saturating_sub(nanoseconds_since(self.start)));
        let timeout = left_ns.and_then(|left| Timespec::try_from(Duration::from_nanos(left)).ok());
        let mut polled = [
            PollFd::new(&inward.from, PollFlags::IN),
            PollFd::new(&outward.from, PollFlags::IN),
            PollFd::new(&self.listener, PollFlags::IN),
        ];
        rustix::io::retry_on_intr(|| poll(&mut polled, timeout.as_ref()))?;
        Ok(polled[2].revents().contains(PollFlags::IN))
    }

    fn answer(&mut self, stream: &UnixStream) -> io::Result<()> {
        stream.set_read_timeout(Some(QUESTION_LIMIT))?;
        let mut line = String::new();
        BufReader::new(stream.take(LINE_LIMIT)).read_line(&mut line)?;
        let asked: Option<Impairment> = serde_json::from_str(&line)?;
        if let Some(impairment) = asked {
            self.directions.iter_mut().for_each(|direction| direction.queue.set(impairment));
        }
        let mut answer = serde_json::to_string(&self.counters())?;
        answer.push('\n');
        (&*stream).write_all(answer.as_bytes())
    }

    fn counters(&self) -> Counters {
        let [inward, outward] = self.directions.each_ref().map(|direction| direction.queue.counters());
        Counters {
            passed: inward.passed + outward.passed,
            lost: inward.lost + outward.lost,
            overflowed: inward.overflowed + outward.overflowed,
        }
    }
}

fn read_frames(direction: &mut Direction, start: Instant) -> io::Result<()> {
    let mut frame = [0; FRAME_LIMIT];
    for _ in 0..FRAMES_AT_A_STRETCH {
        match direction.from.read(&mut frame) {
            Ok(length) => direction.queue.push(nanoseconds_since(start), &frame[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn write_due(queue: &mut DelayQueue, mut to: &File, now_ns: u64) {
    while let Some(frame) = queue.pop_due(now_ns) {
        // A tap that takes no frame (its interface is down) loses it, as a link that is down does.
        let _ = to.write(&frame);
    }
}

fn nanoseconds_since(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
