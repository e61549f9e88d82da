//! Sets of `seq` numbers, kept as ranges.
//!
//! Owns the arithmetic and PostgreSQL's `int8multirange` text. Never enumerates a range: a million rolled-back numbers cost
//! as much as one.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;

#[cfg(test)]
mod tests;

/// A set of `i64` numbers as disjoint ranges that do not touch.
///
/// A `BTreeMap` from first to last rather than a sorted `Vec`: holes are filled and sent rows forgotten in the middle, where a
/// vector would move everything behind them; the tail is reached in a few steps either way.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct RangeSet {
    ranges: BTreeMap<i64, i64>,
}

impl RangeSet {
    /// The empty set.
    pub const fn new() -> Self {
        Self {
            ranges: BTreeMap::new(),
        }
    }

    /// Adds one number.
    pub fn insert(&mut self, number: i64) {
        self.insert_range(number..=number);
    }

    /// Adds every number of a range; an empty range adds nothing.
    pub(crate) fn insert_range(&mut self, range: RangeInclusive<i64>) {
        let (mut first, mut last) = (*range.start(), *range.end());
        if first > last {
            return;
        }
        if self.append(first, last) {
            return;
        }
        while let Some((&start, &end)) = self.ranges.range(..=last.saturating_add(1)).next_back() {
            if end < first.saturating_sub(1) {
                break;
            }
            self.ranges.remove(&start);
            first = first.min(start);
            last = last.max(end);
        }
        self.ranges.insert(first, last);
    }

    /// Extends the highest range, the usual case: numbers arrive in ascending order.
    fn append(&mut self, first: i64, last: i64) -> bool {
        let Some(mut tail) = self.ranges.last_entry() else {
            return false;
        };
        let touches = *tail.key() <= first && first.saturating_sub(1) <= *tail.get();
        if touches {
            let end = tail.get_mut();
            *end = last.max(*end);
        }
        touches
    }

    /// Removes one number.
    pub(crate) fn remove(&mut self, number: i64) {
        self.remove_range(number..=number);
    }

    /// Removes every number of a range.
    pub(crate) fn remove_range(&mut self, range: RangeInclusive<i64>) {
        let (first, last) = (*range.start(), *range.end());
        if first > last {
            return;
        }
        while let Some((&start, &end)) = self.ranges.range(..=last).next_back() {
            if end < first {
                break;
            }
            self.ranges.remove(&start);
            if end > last {
                self.ranges.insert(last + 1, end);
            }
            if start < first {
                self.ranges.insert(start, first - 1);
                break;
            }
        }
    }

    /// Adds every number of another set.
    pub(crate) fn extend(&mut self, other: &Self) {
        for range in other.ranges() {
            self.insert_range(range);
        }
    }

    /// Removes every number of another set.
    pub(crate) fn subtract(&mut self, other: &Self) {
        for range in other.ranges() {
            self.remove_range(range);
        }
    }

    /// The numbers that stand here or in `other`.
    pub fn union(&self, other: &Self) -> Self {
        let mut union = self.clone();
        union.extend(other);
        union
    }

    /// The numbers that stand here and not in `other`.
    pub(crate) fn difference(&self, other: &Self) -> Self {
        let mut difference = Self::new();
        for range in self.ranges() {
            for gap in other.gaps(range) {
                difference.insert_range(gap);
            }
        }
        difference
    }

    /// The numbers that stand here and in `other`.
    pub(crate) fn intersection(&self, other: &Self) -> Self {
        let mut shared = Self::new();
        for range in self.ranges() {
            for part in other.within(range) {
                shared.insert_range(part);
            }
        }
        shared
    }

    /// Whether a number stands in the set.
    pub(crate) fn contains(&self, number: i64) -> bool {
        self.ranges
            .range(..=number)
            .next_back()
            .is_some_and(|(_, &end)| number <= end)
    }

    /// The ranges in ascending order.
    pub(crate) fn ranges(&self) -> impl DoubleEndedIterator<Item = RangeInclusive<i64>> + '_ {
        self.ranges.iter().map(|(&start, &end)| start..=end)
    }

    /// The parts of the set that lie in `bounds`, in ascending order.
    pub(crate) fn within(
        &self,
        bounds: RangeInclusive<i64>,
    ) -> impl Iterator<Item = RangeInclusive<i64>> + '_ {
        let (from, to) = (*bounds.start(), *bounds.end());
        let below = self
            .ranges
            .range(..from)
            .next_back()
            .filter(|&(_, &end)| from <= to && from <= end);
        let inside = (from <= to).then(|| self.ranges.range(from..=to));
        below
            .into_iter()
            .chain(inside.into_iter().flatten())
            .map(move |(&start, &end)| start.max(from)..=end.min(to))
    }

    /// The ranges in `bounds` that the set lacks, in ascending order.
    pub(crate) fn gaps(
        &self,
        bounds: RangeInclusive<i64>,
    ) -> impl Iterator<Item = RangeInclusive<i64>> + '_ {
        let (from, to) = (*bounds.start(), *bounds.end());
        let mut next = (from <= to).then_some(from);
        let mut present = self.within(bounds);
        std::iter::from_fn(move || {
            loop {
                let start = next?;
                let Some(range) = present.next() else {
                    next = None;
                    return Some(start..=to);
                };
                next = range.end().checked_add(1).filter(|&after| after <= to);
                if *range.start() > start {
                    return Some(start..=range.start() - 1);
                }
            }
        })
    }

    /// The lowest number.
    pub(crate) fn first(&self) -> Option<i64> {
        self.ranges.first_key_value().map(|(&start, _)| start)
    }

    /// The highest number.
    pub(crate) fn last(&self) -> Option<i64> {
        self.ranges.last_key_value().map(|(_, &end)| end)
    }

    /// Whether no number stands in the set.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many numbers stand in the set; `u64::MAX` where it would be one more.
    pub fn len(&self) -> u64 {
        self.ranges().fold(0, |sum, range| {
            sum.saturating_add(range.end().abs_diff(*range.start()))
                .saturating_add(1)
        })
    }

    /// How many ranges the set takes.
    #[cfg(test)]
    pub(crate) fn range_count(&self) -> usize {
        self.ranges.len()
    }

    /// Removes every number and returns them.
    pub(crate) fn take(&mut self) -> Self {
        std::mem::take(self)
    }

    /// The set as PostgreSQL prints an `int8multirange`: `{[1,5),[7,8)}`.
    ///
    /// A range that ends at the largest `i64` has no exclusive end; PostgreSQL refuses it too, and it is printed without one.
    pub fn to_multirange_text(&self) -> String {
        use fmt::Write as _;
        let mut text = String::with_capacity(2 + self.ranges.len() * 16);
        text.push('{');
        for (index, (start, end)) in self.ranges.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let written = match end.checked_add(1) {
                Some(after) => write!(text, "{comma}[{start},{after})"),
                None => write!(text, "{comma}[{start},)"),
            };
            written.expect("writing to a String does not fail");
        }
        text.push('}');
        text
    }

    /// Reads what PostgreSQL prints for an `int8multirange`, in canonical form.
    ///
    /// Errors: anything else, a range without a lower bound included.
    pub fn parse_multirange(text: &str) -> Result<Self, ParseMultirangeError> {
        let inner = text
            .trim()
            .strip_prefix('{')
            .and_then(|rest| rest.strip_suffix('}'))
            .ok_or(ParseMultirangeError)?;
        let mut set = Self::new();
        let mut rest = inner;
        while !rest.is_empty() {
            let (range, after) = parse_range(rest).ok_or(ParseMultirangeError)?;
            set.insert_range(range);
            rest = match after.strip_prefix(',') {
                Some("") => return Err(ParseMultirangeError),
                Some(next) => next,
                None if after.is_empty() => after,
                None => return Err(ParseMultirangeError),
            };
        }
        Ok(set)
    }
}

/// Reads `[1,5)` off the front of a text.
fn parse_range(text: &str) -> Option<(RangeInclusive<i64>, &str)> {
    let (range, after) = text.strip_prefix('[')?.split_once(')')?;
    let (start, end) = range.split_once(',')?;
    let start: i64 = start.parse().ok()?;
    let last = match end {
        "" => i64::MAX,
        end => end.parse::<i64>().ok()?.checked_sub(1)?,
    };
    (start <= last).then_some((start..=last, after))
}

/// The text is not an `int8multirange` in canonical form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an int8multirange such as `{{[1,5),[7,8)}}`")]
pub struct ParseMultirangeError;

impl fmt::Debug for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_multirange_text())
    }
}

impl FromIterator<i64> for RangeSet {
    fn from_iter<T: IntoIterator<Item = i64>>(numbers: T) -> Self {
        let mut set = Self::new();
        let mut run: Option<(i64, i64)> = None;
        for number in numbers {
            match &mut run {
                Some((_, last)) if last.checked_add(1) == Some(number) => *last = number,
                _ => {
                    if let Some((first, last)) = run.replace((number, number)) {
                        set.insert_range(first..=last);
                    }
                }
            }
        }
        if let Some((first, last)) = run {
            set.insert_range(first..=last);
        }
        set
    }
}

impl FromIterator<RangeInclusive<i64>> for RangeSet {
    fn from_iter<T: IntoIterator<Item = RangeInclusive<i64>>>(ranges: T) -> Self {
        let mut set = Self::new();
        for range in ranges {
            set.insert_range(range);
        }
        set
    }
}
