//! The clock by which leases run out.

use std::time::Duration;

/// A clock that only goes forward.
pub trait Clock: Send + Sync + 'static {
    /// The time since some fixed moment, time asleep included.
    fn now(&self) -> Duration;

    /// Takes a function to call whenever the time was moved by hand, so that whoever waits for a
    /// moment looks again. A clock of the real world has no use for it.
    fn on_move(&self, wake: Box<dyn Fn() + Send + Sync>) {
        drop(wake);
    }
}

/// `CLOCK_BOOTTIME`: nobody can set it, and it runs on while the machine is suspended.
#[derive(Debug, Clone, Copy, Default)]
pub struct BootClock;

impl Clock for BootClock {
    fn now(&self) -> Duration {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::try_from(now).expect("the time since boot is not negative")
    }
}

#[cfg(feature = "testing")]
pub use manual::ManualClock;

#[cfg(feature = "testing")]
mod manual {
    use std::sync::{Mutex, PoisonError};
    use std::time::Duration;

    use super::Clock;

    /// A clock that stands still until it is moved.
    #[derive(Default)]
    pub struct ManualClock {
        now: Mutex<Duration>,
        wakes: Mutex<Vec<Box<dyn Fn() + Send + Sync>>>,
    }

    impl ManualClock {
        /// Moves the time forward.
        pub fn advance(&self, by: Duration) {
            *self.now.lock().unwrap_or_else(PoisonError::into_inner) += by;
            for wake in &*self.wakes.lock().unwrap_or_else(PoisonError::into_inner) {
                wake();
            }
        }
    }

    impl Clock for ManualClock {
        fn now(&self) -> Duration {
            *self.now.lock().unwrap_or_else(PoisonError::into_inner)
        }

        fn on_move(&self, wake: Box<dyn Fn() + Send + Sync>) {
            self.wakes.lock().unwrap_or_else(PoisonError::into_inner).push(wake);
        }
    }
}
