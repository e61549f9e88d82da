//! Whether this machine's clock was set back.
//!
//! librdkafka's threads wait until a time of day (`pthread_cond_timedwait`): set the clock back by a day, and a
//! producer that waits to ask for its id again waits for a day.

use std::time::{Duration, Instant, SystemTime};

/// What a wait may be longer by.
const SET_BACK_MAX: Duration = Duration::from_secs(10);

/// A moment by both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clocks {
    wall: SystemTime,
    steady: Instant,
}

impl Clocks {
    pub(super) fn now() -> Self {
        Self {
            wall: SystemTime::now(),
            steady: Instant::now(),
        }
    }

    /// By more than librdkafka's waits may be late.
    pub(super) fn were_set_back(&self) -> bool {
        is_behind(self.wall, SystemTime::now(), self.steady.elapsed())
    }
}

/// The clock shows less than what has passed since `then`.
fn is_behind(then: SystemTime, now: SystemTime, passed: Duration) -> bool {
    now.checked_add(SET_BACK_MAX)
        .is_some_and(|now| now < then + passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clock_that_was_set_back_is_behind() {
        let seconds = Duration::from_secs;
        let then = SystemTime::UNIX_EPOCH + seconds(1_000_000);
        for (passed, shown, is_so) in [
            (0, 0, false),
            (60, 60, false),
            (60, 55, false),
            (60, 86_460, false),
            (60, 45, true),
        ] {
            let now = then + seconds(shown);
            assert_eq!(
                is_behind(then, now, seconds(passed)),
                is_so,
                "{passed} {shown}"
            );
        }
        assert!(is_behind(then, then - seconds(86_400), seconds(1)));
    }
}
