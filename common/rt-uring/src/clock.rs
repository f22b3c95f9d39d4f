//! Time and randomness of the machine.

use ember_rt::{Clock, LocalBoxFuture, Rng};
use ember_types::{Instant, UnixTime};
use rustix::time::{ClockId, clock_gettime};

/// The machine's clocks.
pub(crate) struct SystemClock;

fn boottime() -> Instant {
    let time = clock_gettime(ClockId::Boottime);
    Instant((time.tv_sec as u64).saturating_mul(1_000_000_000) + time.tv_nsec as u64)
}

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        boottime()
    }

    fn unix_now(&self) -> UnixTime {
        let time = clock_gettime(ClockId::Realtime);
        UnixTime { seconds: time.tv_sec, nanos: time.tv_nsec as u32 }
    }

    fn sleep_until(&self, at: Instant) -> LocalBoxFuture<'static, ()> {
        Box::pin(async move {
            // tokio's timer runs on CLOCK_MONOTONIC, which may stand still while ours goes on.
            loop {
                let left = at.since(boottime());
                if left.is_zero() {
                    return;
                }
                tokio::time::sleep(left).await;
            }
        })
    }
}

/// The system's generator, asked each time: a buffer of its output would be shared with a forked child.
pub(crate) struct SystemRng;

impl Rng for SystemRng {
    fn next_u64(&self) -> u64 {
        getrandom::u64().expect("the system's random number generator")
    }
}
