//! A clock that never jumps and also runs while the machine is suspended.
//!
//! `std::time::Instant` stands still during a suspend: a holder that wakes would think its lease fresh.

use std::time::Duration;

/// Time since the machine started, suspends included; comparable only within one machine.
pub(crate) fn since_boot() -> Duration {
    #[cfg(target_os = "linux")]
    let id = rustix::time::ClockId::Boottime;
    #[cfg(not(target_os = "linux"))]
    let id = rustix::time::ClockId::Monotonic;
    let time = rustix::time::clock_gettime(id);
    let seconds = u64::try_from(time.tv_sec).expect("the clock counts up from the machine's start");
    let nanoseconds = u32::try_from(time.tv_nsec).expect("a timespec holds less than 10^9 ns");
    Duration::new(seconds, nanoseconds)
}
