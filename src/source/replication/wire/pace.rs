//! How long what the walsender sends may gather before it is read: pure.
//!
//! The walsender sends each message by itself. While it fits into our receive window, each is a packet of its own, which
//! over TCP costs the walsender more than all else that it does for a row; behind a window that is full the kernel joins
//! what it sends. So whoever is late reads a little more slowly than the walsender could send.
//!
//! One-row transactions of 250 B over TCP on two processors, walsender and relay: 14.4 and 6.7 µs a row where every
//! message wakes us, 13.3 and 4.8 µs with [`GATHER_PROMPT`], 5.9 and 2.3 µs behind a full window; 65k, 72k, 150k rows/s.

use std::time::Duration;

/// A read that brought this much shows that the walsender is busy.
const DENSE_BYTES: usize = 1 << 10;
/// Reads that follow each other so closely would each wake us for a row or two.
const DENSE_WITHIN: Duration = Duration::from_millis(1);
/// How long a prompt reader lets rows gather; the kernel adds about 50 µs.
const GATHER_PROMPT: Duration = Duration::from_micros(60);
/// How long a late one does where no window fills: a unix socket holds 90 rows of 250 B, which come in 0.8 ms. Relay 6.0 and
/// walsender 9.4 µs a row become 5.4 and 8.9.
const GATHER_LATE: Duration = Duration::from_micros(300);
/// How much longer a late reader waits after each read that found less than it had room for, at first and at most.
const GATHER_STEP: Duration = Duration::from_micros(50);
const GATHER_MAX: Duration = Duration::from_millis(1);
/// How long a late reader that has emptied the window lets it fill, at most: packet by packet, [`WINDOW_BYTES`] take
/// 40 ms with rows of 250 B.
const REST_MAX: Duration = Duration::from_millis(50);
pub(super) const REST_MIN: Duration = Duration::from_millis(5);
/// What should come between two rests: less than the 4 MiB that Linux lets a sender queue, or the walsender waits for us.
const CYCLE_BYTES: usize = 3_500_000;
/// What was read since the last rest is worth the next one.
const REST_BYTES: usize = 256 << 10;
/// The receive window, where we choose it: large enough to read from while the walsender works, small enough to be full
/// after a rest. The kernel doubles it for its own needs, and may grant less (`net.core.rmem_max`).
pub(super) const WINDOW_BYTES: usize = 512_000;
/// What Linux grants as it is shipped; a smaller window would let the walsender wait for us.
pub(super) const WINDOW_BYTES_MIN: usize = 2 * 212_992;
/// A window of [`WINDOW_BYTES_MIN`] passes 80 MB/s to a server that answers so soon; elsewhere the kernel sizes it.
pub(super) const NEAR: Duration = Duration::from_millis(5);

/// What the reader is after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ReadMode {
    /// Each row as soon as it is there.
    #[default]
    Prompt,
    /// Many rows a second: these are late already.
    CatchUp,
}

/// What one read found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) bytes: usize,
    /// The socket held more than there was room for.
    pub(super) is_full: bool,
    /// Since the read before.
    pub(super) after: Duration,
}

/// Decides when the next read follows.
#[derive(Debug)]
pub(super) struct Pace {
    /// There is a window that a rest fills.
    has_window: bool,
    gather: Duration,
    rest: Duration,
    since_rest: usize,
}

impl Pace {
    pub(super) fn new(has_window: bool) -> Self {
        Self {
            has_window,
            gather: Duration::ZERO,
            rest: REST_MAX,
            since_rest: 0,
        }
    }

    /// How long after this read the next one may come.
    pub(super) fn next_after(&mut self, found: Found, read_mode: ReadMode) -> Duration {
        match read_mode {
            ReadMode::CatchUp if self.has_window => self.late(found),
            ReadMode::CatchUp if !found.is_full => GATHER_LATE,
            ReadMode::CatchUp | ReadMode::Prompt => prompt(found),
        }
    }

    /// Waits longer after each read that emptied the window and shorter after each that did not, and so ends up a little
    /// behind the walsender.
    fn late(&mut self, found: Found) -> Duration {
        self.since_rest = self.since_rest.saturating_add(found.bytes);
        if found.is_full {
            self.gather = self.gather * 15 / 16;
            return self.gather;
        }
        if self.since_rest < REST_BYTES {
            return prompt(found);
        }
        let share = CYCLE_BYTES as f64 / self.since_rest as f64;
        self.rest = self.rest.mul_f64(share).clamp(REST_MIN, REST_MAX);
        self.since_rest = 0;
        self.gather = (self.gather * 2 + GATHER_STEP).min(GATHER_MAX);
        self.rest
    }
}

fn prompt(found: Found) -> Duration {
    let is_dense = found.bytes > DENSE_BYTES || found.after < DENSE_WITHIN;
    if is_dense && !found.is_full {
        GATHER_PROMPT
    } else {
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: usize = 64 << 10;
    const LONG: Duration = Duration::from_secs(1);

    fn found(bytes: usize, after: Duration) -> Found {
        Found {
            bytes,
            is_full: bytes == ROOM,
            after,
        }
    }

    #[test]
    fn a_prompt_reader_waits_only_while_rows_are_dense_and_all_of_them_are_read() {
        let mut pace = Pace::new(true);
        let mut wait = |bytes, after| pace.next_after(found(bytes, after), ReadMode::Prompt);
        assert_eq!(wait(300, LONG), Duration::ZERO);
        assert_eq!(wait(300, Duration::from_micros(200)), GATHER_PROMPT);
        assert_eq!(wait(4_000, LONG), GATHER_PROMPT);
        assert_eq!(wait(ROOM, LONG), Duration::ZERO);
    }

    #[test]
    fn a_late_reader_rests_when_it_has_emptied_a_window_that_was_worth_it() {
        let mut pace = Pace::new(true);
        for _ in 0..3 {
            assert!(pace.next_after(found(ROOM, LONG), ReadMode::CatchUp) < REST_MIN);
        }
        assert_eq!(
            pace.next_after(found(100, LONG), ReadMode::CatchUp),
            Duration::ZERO
        );
        pace.next_after(found(ROOM, LONG), ReadMode::CatchUp);
        let rest = pace.next_after(found(100, LONG), ReadMode::CatchUp);
        assert_eq!(rest, REST_MAX);
        assert!(pace.next_after(found(100, LONG), ReadMode::CatchUp) < REST_MIN);
    }

    #[test]
    fn a_late_reader_rests_less_where_more_comes_meanwhile() {
        let mut pace = Pace::new(true);
        let mut cycle = |bytes: usize| {
            for _ in 0..bytes / ROOM {
                pace.next_after(found(ROOM, LONG), ReadMode::CatchUp);
            }
            pace.next_after(found(100, LONG), ReadMode::CatchUp)
        };
        assert_eq!(cycle(CYCLE_BYTES / 2), REST_MAX);
        let shorter = cycle(CYCLE_BYTES * 2);
        assert!(shorter > REST_MIN && shorter < REST_MAX * 6 / 10);
        assert!((0..10).all(|_| cycle(CYCLE_BYTES * 2) >= REST_MIN));
        assert_eq!(cycle(CYCLE_BYTES * 2), REST_MIN);
        assert!(cycle(CYCLE_BYTES / 4) > REST_MIN);
    }

    #[test]
    fn what_was_read_in_time_counts_for_no_rest() {
        let mut pace = Pace::new(true);
        for _ in 0..1_000 {
            pace.next_after(found(ROOM, LONG), ReadMode::Prompt);
        }
        assert!(pace.next_after(found(100, LONG), ReadMode::CatchUp) < REST_MIN);
        for _ in 0..4 {
            pace.next_after(found(ROOM, LONG), ReadMode::CatchUp);
        }
        assert_eq!(
            pace.next_after(found(100, LONG), ReadMode::CatchUp),
            REST_MAX
        );
    }

    #[test]
    fn nobody_rests_without_a_window_that_fills() {
        let mut pace = Pace::new(false);
        for _ in 0..10 {
            pace.next_after(found(ROOM, LONG), ReadMode::CatchUp);
        }
        assert_eq!(
            pace.next_after(found(100, LONG), ReadMode::CatchUp),
            GATHER_LATE
        );
    }

    #[test]
    fn what_a_late_reader_waits_for_grows_with_empty_windows_and_shrinks_with_full_ones() {
        let mut pace = Pace::new(true);
        for _ in 0..10 {
            for _ in 0..4 {
                pace.next_after(found(ROOM, LONG), ReadMode::CatchUp);
            }
            pace.next_after(found(100, LONG), ReadMode::CatchUp);
            assert!(pace.gather >= GATHER_STEP && pace.gather <= GATHER_MAX);
        }
        for _ in 0..1_000 {
            pace.next_after(found(ROOM, LONG), ReadMode::CatchUp);
        }
        assert_eq!(pace.gather, Duration::ZERO);
    }
}
