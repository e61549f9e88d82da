//! Whether rows at fault are single ones or an outage: halting beats blocking thousands of aggregates.

use std::collections::HashSet;

use super::Aggregate;
use super::row::ByAggregate;

/// Fewer failing aggregates than this are never an outage (docs/design.md, "What is put aside").
const FAILING_MIN: usize = 100;
/// Aggregates told apart in one half of the window; bounds memory at about 1 MB.
const SEEN_MAX: usize = 20_000;

/// The aggregates of the last one to two half windows, and which of them failed.
#[derive(Debug)]
pub(super) struct OutageBreaker {
    share: f64,
    now: Half,
    before: Half,
    is_closed: bool,
}

#[derive(Debug, Default)]
struct Half {
    seen: HashSet<Aggregate, ByAggregate>,
    failing: HashSet<Aggregate, ByAggregate>,
}

impl OutageBreaker {
    /// Closes when this share of the aggregates seen fails.
    pub(super) fn new(share: f64) -> Self {
        Self {
            share,
            now: Half::default(),
            before: Half::default(),
            is_closed: false,
        }
    }

    pub(super) fn saw(&mut self, aggregate: Aggregate) {
        if self.now.seen.len() < SEEN_MAX {
            self.now.seen.insert(aggregate);
        }
    }

    /// Takes a failing aggregate; `false` when so many fail that it is an outage, until `turn` finds it over.
    pub(super) fn admits(&mut self, aggregate: Aggregate) -> bool {
        self.now.failing.insert(aggregate);
        let seen = self.now.seen.union(&self.before.seen).count();
        let failing = self.now.failing.union(&self.before.failing).count();
        let is_outage = failing >= FAILING_MIN && failing as f64 >= self.share * seen as f64;
        self.is_closed |= is_outage;
        !self.is_closed
    }

    /// Begins the next half of the window: half a minute has passed.
    ///
    /// Rows went out and none failed for a whole half: the outage is over.
    pub(super) fn turn(&mut self) {
        let is_well = self.now.failing.is_empty() && !self.now.seen.is_empty();
        self.is_closed &= !is_well;
        self.before = std::mem::take(&mut self.now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_failing_aggregates_are_no_outage_whatever_their_share() {
        let mut breaker = OutageBreaker::new(0.5);
        let admitted = (0..99).map(|n| {
            breaker.saw(Aggregate(n));
            breaker.admits(Aggregate(n))
        });
        assert!(
            admitted
                .collect::<Vec<_>>()
                .iter()
                .all(|admitted| *admitted)
        );
        breaker.saw(Aggregate(99));
        assert!(!breaker.admits(Aggregate(99)));
    }

    #[test]
    fn many_failing_among_more_that_flow_are_no_outage() {
        let mut breaker = OutageBreaker::new(0.5);
        (0..1_000).for_each(|n| breaker.saw(Aggregate(n)));
        assert!((0..499).all(|n| breaker.admits(Aggregate(n))));
        assert!(!(0..500).all(|n| breaker.admits(Aggregate(n))));
    }

    #[test]
    fn it_stays_closed_until_rows_went_out_for_half_a_minute_without_a_fault() {
        let mut breaker = OutageBreaker::new(0.5);
        let fail_all = |breaker: &mut OutageBreaker| {
            (0..100).for_each(|n| {
                breaker.saw(Aggregate(n));
                breaker.admits(Aggregate(n));
            });
        };
        fail_all(&mut breaker);
        breaker.turn();
        assert!(!breaker.admits(Aggregate(500)), "one more fault is enough");
        breaker.turn();
        breaker.turn();
        assert!(
            !breaker.admits(Aggregate(501)),
            "nothing went out meanwhile"
        );
        breaker.turn();
        breaker.saw(Aggregate(1));
        breaker.turn();
        breaker.turn();
        assert!(breaker.admits(Aggregate(502)));
    }
}
