//! Which numbers retention looks at next, and when. Pure.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::Removed;
use crate::row::ranges::RangeSet;

/// The highest row is never removed, so the largest number never is.
const NUMBERS: RangeInclusive<i64> = i64::MIN..=i64::MAX - 1;
/// Numbers looked at together: the first time, at least, and at most.
const WIDTH_FIRST: u64 = 1_000;
const WIDTH_MIN: u64 = 16;
const WIDTH_MAX: u64 = 10_000;
/// A batch that takes less than the first is followed by a larger one, one that takes more than the second by a smaller one.
const QUICK: Duration = Duration::from_millis(50);
const SLOW: Duration = Duration::from_millis(200);
/// After each batch so many times its duration passes: retention takes a tenth of the time.
const REST_FACTOR: u32 = 9;
const REST_MIN: Duration = Duration::from_millis(5);

/// The numbers that a removal may touch.
pub(crate) struct Scope<'a> {
    /// Of which it is known what became of them.
    pub settled: &'a RangeSet,
    /// Of these, the ones whose rows stay, whatever their age.
    pub spared: &'a [&'a RangeSet],
}

impl Scope<'_> {
    /// The lowest numbers within bounds that are not `done`, so many at most.
    fn take(&self, done: &RangeSet, bounds: RangeInclusive<i64>, width: u64) -> RangeSet {
        let mut taken = RangeSet::new();
        let mut room = width;
        for settled in self.settled.within(bounds) {
            for mut part in done.gaps(settled) {
                while room > 0 && !part.is_empty() {
                    let free = self.free(&part);
                    let (first, last) = (*free.start(), *free.end());
                    let last = last.min(first.saturating_add_unsigned(room - 1));
                    taken.insert_range(first..=last);
                    room -= if first <= last {
                        last.abs_diff(first) + 1
                    } else {
                        0
                    };
                    part = (*free.end()).saturating_add(1)..=*part.end();
                }
                if room == 0 {
                    return taken;
                }
            }
        }
        taken
    }

    /// The first piece of a range that nothing spares; empty, with the end of what is spared, where it begins spared.
    fn free(&self, part: &RangeInclusive<i64>) -> RangeInclusive<i64> {
        let (first, mut last) = (*part.start(), *part.end());
        for spared in self.spared {
            let Some(next) = spared.within(first..=last).next() else {
                continue;
            };
            if *next.start() == first {
                return *next.end() + 1..=*next.end();
            }
            last = *next.start() - 1;
        }
        first..=last
    }
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Ask how far the table goes, from this number on.
    Bounds(i64),
    /// Remove what is old enough of these.
    Remove(RangeSet),
}

/// Goes over the table from its lowest row up to the first ones that are not old enough, again and again.
#[derive(Debug)]
pub(crate) struct Pass {
    /// Numbers without a row, for good.
    done: RangeSet,
    /// What was settled when the table was asked how far it goes.
    asked: RangeSet,
    /// Where this pass goes on, and where it ends; `None` between two passes.
    bounds: Option<RangeInclusive<i64>>,
    width: u64,
}

impl Default for Pass {
    fn default() -> Self {
        Self {
            done: RangeSet::new(),
            asked: RangeSet::new(),
            bounds: None,
            width: WIDTH_FIRST,
        }
    }
}

impl Pass {
    /// What is to be done next; nothing where this pass is over.
    pub(crate) fn next(&mut self, scope: &Scope<'_>) -> Option<Step> {
        let Some(bounds) = self.bounds.clone() else {
            let lowest = scope.take(&self.done, NUMBERS, 1).first()?;
            self.asked = scope.settled.clone();
            for spared in scope.spared {
                self.asked.subtract(spared);
            }
            return Some(Step::Bounds(lowest));
        };
        let batch = scope.take(&self.done, bounds, self.width);
        if batch.is_empty() {
            self.bounds = None;
            return None;
        }
        Some(Step::Remove(batch))
    }

    /// Takes how far the table goes: what was settled below its lowest row has none. Its highest row stays.
    pub(crate) fn took_bounds(&mut self, bounds: Option<(i64, i64)>) -> Passing {
        let asked = self.asked.take();
        let Some((first, last)) = bounds else {
            return Passing::Over;
        };
        if let Some(below) = first.checked_sub(1) {
            self.done.extend(&asked.within(i64::MIN..=below).collect());
        }
        self.bounds = Some(first..=last.saturating_sub(1));
        Passing::On
    }

    /// Takes what became of a batch.
    pub(crate) fn took(
        &mut self,
        batch: &RangeSet,
        removed: &Removed,
        elapsed: Duration,
    ) -> Passing {
        self.done.extend(&batch.difference(&removed.left));
        self.width = match elapsed {
            quick if quick < QUICK => (self.width * 2).min(WIDTH_MAX),
            slow if slow > SLOW => (self.width / 2).max(WIDTH_MIN),
            _ => self.width,
        };
        let end = self
            .bounds
            .as_ref()
            .map_or(i64::MIN, |bounds| *bounds.end());
        let next = batch.last().unwrap_or(end).saturating_add(1);
        self.bounds = Some(next..=end);
        // Rows come roughly in the order of their age.
        if removed.gone.is_empty() && removed.has_young {
            self.bounds = None;
            return Passing::Over;
        }
        Passing::On
    }

    /// A batch could not be removed: the next one is smaller, and another pass tries this one again.
    pub(crate) fn failed(&mut self) {
        self.width = (self.width / 4).max(WIDTH_MIN);
        self.bounds = None;
        self.asked.take();
    }

    /// Forgets which numbers have no row: some may have got one.
    pub(crate) fn forget(&mut self) {
        self.done.take();
    }
}

/// Whether a pass goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Passing {
    On,
    Over,
}

/// How long retention rests after a batch that took so long.
pub(crate) fn rest(elapsed: Duration) -> Duration {
    (elapsed * REST_FACTOR).max(REST_MIN)
}

/// How long retention rests between two passes over a table whose rows are kept so long.
pub(crate) fn between_passes(keep: Duration) -> Duration {
    (keep / 10).clamp(Duration::from_secs(1), Duration::from_secs(60))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn set(text: &str) -> RangeSet {
        RangeSet::parse_multirange(text).unwrap()
    }

    #[test]
    fn a_batch_is_the_lowest_settled_numbers_that_nothing_spares() {
        let scope = Scope {
            settled: &set("{[1,10),[20,30)}"),
            spared: &[&set("{[3,5)}"), &set("{[1,2),[22,100)}")],
        };
        let take = |width| {
            scope
                .take(&set("{[6,7)}"), 1..=100, width)
                .to_multirange_text()
        };
        assert_eq!(take(2), "{[2,3),[5,6)}");
        assert_eq!(take(100), "{[2,3),[5,6),[7,10),[20,22)}");
        assert_eq!(
            scope.take(&RangeSet::new(), 8..=20, 9).to_multirange_text(),
            "{[8,10),[20,21)}"
        );
    }

    /// What one row of the table is.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Row {
        Old,
        Young,
        /// Neither sent nor rolled back: it stands, or will.
        Unsettled,
        Held,
        Dead,
    }

    fn row() -> impl Strategy<Value = Row> {
        prop_oneof![
            8 => Just(Row::Old), 2 => Just(Row::Young), 1 => Just(Row::Unsettled), 1 => Just(Row::Held), 1 => Just(Row::Dead),
        ]
    }

    fn of(rows: &BTreeMap<i64, Row>, kinds: &[Row]) -> RangeSet {
        let of_kind = rows.iter().filter(|(_, row)| kinds.contains(row));
        of_kind.map(|(seq, _)| *seq).collect()
    }

    /// Does what the statement does: it removes old rows of the batch, and only these.
    fn remove(rows: &mut BTreeMap<i64, Row>, batch: &RangeSet) -> Removed {
        let mut removed = Removed::default();
        rows.retain(|seq, row| {
            let is_gone = batch.contains(*seq) && *row == Row::Old;
            if is_gone {
                removed.gone.insert(*seq);
            }
            if batch.contains(*seq) && *row == Row::Young {
                removed.left.insert(*seq);
                removed.has_young = true;
            }
            !is_gone
        });
        removed
    }

    fn pass(pass: &mut Pass, rows: &mut BTreeMap<i64, Row>, settled: &RangeSet) {
        let held = of(rows, &[Row::Held]);
        loop {
            let scope = Scope {
                settled,
                spared: &[&held],
            };
            match pass.next(&scope) {
                None => return,
                Some(Step::Bounds(from)) => {
                    let standing = of(rows, &[Row::Old, Row::Young, Row::Unsettled, Row::Held]);
                    let first = standing.within(from..=i64::MAX).next();
                    let bounds = first.map(|first| *first.start()).zip(standing.last());
                    if pass.took_bounds(bounds) == Passing::Over {
                        return;
                    }
                }
                Some(Step::Remove(batch)) => {
                    assert!(batch.difference(settled).is_empty());
                    assert!(batch.intersection(&held).is_empty());
                    let removed = remove(rows, &batch);
                    if pass.took(&batch, &removed, Duration::ZERO) == Passing::Over {
                        return;
                    }
                }
            }
        }
    }

    proptest! {
        /// Late rows commit and are sent between two passes, and held ones are released: what was passed by goes too.
        #[test]
        fn passes_remove_every_old_row_that_was_sent_but_the_highest(
            rows in prop::collection::vec(row(), 1..200),
            width in 1_u64..20,
        ) {
            let mut rows: BTreeMap<i64, Row> = (1..).zip(rows).collect();
            let top = rows.len() as i64 + 1;
            rows.insert(top, Row::Old);
            let mut passes = Pass { width, ..Pass::default() };
            let mut settled: RangeSet = std::iter::once(1..=top).collect();
            settled.subtract(&of(&rows, &[Row::Unsettled]));
            pass(&mut passes, &mut rows, &settled);
            for row in rows.values_mut() {
                *row = match *row {
                    Row::Dead => Row::Dead,
                    _ => Row::Old,
                };
            }
            settled.insert_range(1..=top);
            pass(&mut passes, &mut rows, &settled);
            prop_assert_eq!(of(&rows, &[Row::Old]).to_multirange_text(), format!("{{[{top},{})}}", top + 1));
        }
    }

    #[test]
    fn retention_takes_a_tenth_of_the_time_and_is_never_idle_for_more_than_a_minute() {
        let elapsed = Duration::from_millis(30);
        assert_eq!(rest(elapsed), Duration::from_millis(270));
        assert_eq!(
            between_passes(Duration::from_secs(604_800)),
            Duration::from_secs(60)
        );
        assert_eq!(
            between_passes(Duration::from_secs(2)),
            Duration::from_secs(1)
        );
    }

    #[test]
    fn a_batch_that_fails_or_takes_long_is_followed_by_a_smaller_one() {
        let mut pass = Pass::default();
        pass.failed();
        assert_eq!(pass.width, WIDTH_FIRST / 4);
        for _ in 0..20 {
            pass.took(
                &RangeSet::new(),
                &Removed::default(),
                Duration::from_secs(1),
            );
        }
        assert_eq!(pass.width, WIDTH_MIN);
        for _ in 0..20 {
            pass.took(&RangeSet::new(), &Removed::default(), Duration::ZERO);
        }
        assert_eq!(pass.width, WIDTH_MAX);
    }
}
