//! Since when rows wait for Kafka. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use crate::core::Ticket;
use crate::observe::status::Timestamp;

/// A wait this long is told; with a look each second it is seen within five.
const TOLD_AFTER: Duration = Duration::from_secs(3);
/// Looks that are remembered while the oldest row waits and others flow: an hour's; later rows seem to wait less.
const LOOKS_MAX: usize = 3_600;

/// One moment by two clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Timestamps {
    pub(super) at: Duration,
    pub(super) on: Timestamp,
}

/// What is in flight at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct InFlight {
    pub(super) oldest_sent: Option<Ticket>,
    /// Every row handed over so far has a lower one.
    pub(super) next: Ticket,
    /// A row waits to hear whether its topic can be written.
    pub(super) is_asking: bool,
    /// All that were acknowledged so far.
    pub(super) delivered_rows: u64,
}

/// A wait that is long enough to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Nothing at all has been acknowledged since then.
    ForAnything(Timestamp),
    /// Some rows wait since then, others were acknowledged meanwhile.
    ForSome(Timestamp),
}

/// What was seen of the rows in flight, second by second.
#[derive(Debug, Default)]
pub(super) struct StallDetector {
    /// Every ticket below this one was handed over by then; one entry for each look that saw new rows.
    handed_over: VecDeque<(Ticket, Timestamps)>,
    asks_since: Option<Timestamps>,
    delivered_rows: u64,
    delivered: Option<Timestamps>,
}

impl StallDetector {
    /// Takes a look at what is in flight, to be called about once a second.
    pub(super) fn look(&mut self, seen: InFlight, now: Timestamps) -> Option<Wait> {
        if seen.delivered_rows != self.delivered_rows {
            self.delivered_rows = seen.delivered_rows;
            self.delivered = Some(now);
        }
        let last = self.handed_over.back().map(|(ticket, _)| *ticket);
        if last != Some(seen.next) {
            self.handed_over.truncate(LOOKS_MAX - 1);
            self.handed_over.push_back((seen.next, now));
        }
        let oldest = seen.oldest_sent.unwrap_or(seen.next);
        while self
            .handed_over
            .front()
            .is_some_and(|(ticket, _)| *ticket <= oldest)
        {
            self.handed_over.pop_front();
        }
        self.asks_since = match seen.is_asking {
            true => self.asks_since.or(Some(now)),
            false => None,
        };
        let sent_on = self.handed_over.front().map(|(_, moment)| *moment);
        let since = [sent_on, self.asks_since].into_iter().flatten();
        let since = since.min_by_key(|moment| moment.at)?;
        let is_long = |moment: Timestamps| now.at.saturating_sub(moment.at) >= TOLD_AFTER;
        if !is_long(since) {
            return None;
        }
        match self.delivered {
            Some(delivered) if !is_long(delivered) => Some(Wait::ForSome(since.on)),
            Some(delivered) if delivered.at > since.at => Some(Wait::ForAnything(delivered.on)),
            _ => Some(Wait::ForAnything(since.on)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    /// The moment so many seconds after the first one.
    fn clock() -> impl Fn(u64) -> Timestamps {
        let on = SystemTime::now();
        move |second| {
            let passed = Duration::from_secs(second);
            Timestamps {
                at: passed,
                on: Timestamp(on + passed),
            }
        }
    }

    fn seen(oldest_sent: impl Into<Option<Ticket>>, next: Ticket, delivered_rows: u64) -> InFlight {
        InFlight {
            oldest_sent: oldest_sent.into(),
            next,
            is_asking: false,
            delivered_rows,
        }
    }

    #[test]
    fn silence_is_told_after_three_seconds_since_its_oldest_row_and_ends_with_an_answer() {
        let (at, mut stalls) = (clock(), StallDetector::default());
        assert_eq!(stalls.look(seen(None, 10, 10), at(0)), None);
        // Rows come while nothing is answered.
        for second in 1..4 {
            assert_eq!(stalls.look(seen(10, 10 + second, 10), at(second)), None);
        }
        let silence = Some(Wait::ForAnything(at(1).on));
        for second in 4..20 {
            assert_eq!(stalls.look(seen(10, 14, 10), at(second)), silence);
        }
        assert_eq!(stalls.look(seen(None, 14, 14), at(20)), None);
    }

    #[test]
    fn rows_that_wait_while_others_flow_are_not_silence() {
        let (at, mut stalls) = (clock(), StallDetector::default());
        for second in 0..3 {
            let seen = seen(0, 10 * (second + 1), second);
            assert_eq!(stalls.look(seen, at(second)), None);
        }
        let some = Some(Wait::ForSome(at(0).on));
        for second in 3..9 {
            assert_eq!(stalls.look(seen(0, 10 * second, second), at(second)), some);
        }
        // What flowed stops too: nothing since its last row.
        assert_eq!(stalls.look(seen(0, 90, 8), at(10)), some);
        let silence = Some(Wait::ForAnything(at(8).on));
        assert_eq!(stalls.look(seen(0, 90, 8), at(11)), silence);
    }

    #[test]
    fn a_row_that_waits_for_a_day_takes_no_more_memory() {
        let (at, mut stalls) = (clock(), StallDetector::default());
        for second in 0..86_400 {
            stalls.look(seen(0, second + 1, second), at(second));
        }
        assert_eq!(stalls.handed_over.len(), LOOKS_MAX);
        let some = Some(Wait::ForSome(at(0).on));
        assert_eq!(stalls.look(seen(0, 90_000, 90_000), at(90_000)), some);
    }

    #[test]
    fn a_stream_that_flows_is_never_told() {
        let (at, mut stalls) = (clock(), StallDetector::default());
        for second in 0..100 {
            let seen = seen(10 * second, 10 * second + 10, 10 * second);
            assert_eq!(stalls.look(seen, at(second)), None);
        }
        assert!(stalls.handed_over.len() < 3);
    }

    #[test]
    fn a_topic_that_nobody_answers_for_is_silence() {
        let (at, mut stalls) = (clock(), StallDetector::default());
        let asking = InFlight {
            is_asking: true,
            ..InFlight::default()
        };
        assert_eq!(stalls.look(asking, at(0)), None);
        let silence = Some(Wait::ForAnything(at(0).on));
        assert_eq!(stalls.look(asking, at(5)), silence);
        assert_eq!(stalls.look(InFlight::default(), at(6)), None);
    }
}
