//! Segments: a million numbers each, the unit that is compacted, closed and retired.
//!
//! The one home of their arithmetic, in Rust and in SQL, which agree for every `bigint`: division rounds down, and what
//! lies beyond the type's ends is left out.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use crate::row::ranges::RangeSet;

/// Numbers in one segment.
pub const SEGMENT_ROWS: i64 = 1_000_000;

/// The segment of a number.
pub fn segment_of(seq: i64) -> i64 {
    seq.div_euclid(SEGMENT_ROWS)
}

/// The numbers of a segment; the first and the last segment end where the type does.
pub fn numbers_of(segment: i64) -> RangeInclusive<i64> {
    let first = segment.saturating_mul(SEGMENT_ROWS);
    let last = segment.saturating_add(1).saturating_mul(SEGMENT_ROWS);
    // Where the end was cut off, it is a number of the segment itself.
    let last = match segment < segment_of(i64::MAX) {
        true => last - 1,
        false => i64::MAX,
    };
    first..=last
}

/// The segments in which a set has numbers.
pub(super) fn segments_of(numbers: &RangeSet) -> BTreeSet<i64> {
    let segments = numbers
        .ranges()
        .map(|range| segment_of(*range.start())..=segment_of(*range.end()));
    segments.flatten().collect()
}

/// [`segment_of`] for SQL, whose own division rounds towards zero.
pub(crate) fn segment_sql(number: &str) -> String {
    format!(
        "(({number})::int8 / {SEGMENT_ROWS} - (({number})::int8 % {SEGMENT_ROWS} < 0)::int4::int8)"
    )
}

/// [`numbers_of`] for SQL, as an `int8range`.
pub(crate) fn segment_numbers_sql(segment: &str) -> String {
    let (lowest, highest) = (segment_of(i64::MIN), segment_of(i64::MAX));
    format!(
        "int8range(CASE WHEN ({segment}) > {lowest} THEN ({segment}) * {SEGMENT_ROWS} END, \
         CASE WHEN ({segment}) < {highest} THEN (({segment}) + 1) * {SEGMENT_ROWS} END)"
    )
}

/// One number for SQL, as an `int8range`: the largest one has no number behind it, where the range could end.
pub(crate) fn number_sql(number: &str) -> String {
    format!(
        "int8range(({number})::int8, nullif(({number})::int8, {}) + 1)",
        i64::MAX
    )
}

/// The segments from the one of the first number of a bounded or unbounded `int8range` to the one of its last, for SQL.
pub(crate) fn segments_sql(range: &str) -> (String, String) {
    let first = segment_sql(&format!("coalesce(lower({range}), {})", sql_min()));
    let last = segment_sql(&format!("coalesce(upper({range}) - 1, {})", i64::MAX));
    (first, last)
}

/// The lowest number for SQL, where a minus before the digits would negate one too many.
fn sql_min() -> String {
    format!("('{}'::int8)", i64::MIN)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Near zero, near the ends of segments, and near the ends of the type, as well as anywhere.
    fn number() -> impl Strategy<Value = i64> {
        prop_oneof![
            any::<i64>(),
            -3_000_000..3_000_000_i64,
            (-5..5_i64, -2..2_i64).prop_map(|(segment, offset)| segment * SEGMENT_ROWS + offset),
            (0..3_000_000_i64).prop_map(|distance| i64::MIN + distance),
            (0..3_000_000_i64).prop_map(|distance| i64::MAX - distance),
        ]
    }

    /// What the text of [`segment_sql`] computes: SQL's `/` and `%` are Rust's.
    fn computed_by_sql(number: i64) -> i64 {
        number / SEGMENT_ROWS - i64::from(number % SEGMENT_ROWS < 0)
    }

    proptest! {
        #[test]
        fn every_number_is_one_of_its_segment_and_of_no_other(number in number()) {
            let segment = segment_of(number);
            prop_assert!(numbers_of(segment).contains(&number));
            for other in [segment - 1, segment + 1] {
                let is_one = (segment_of(i64::MIN)..=segment_of(i64::MAX)).contains(&other);
                prop_assert!(!is_one || !numbers_of(other).contains(&number));
            }
        }

        #[test]
        fn sql_and_rust_know_the_same_segment(number in number()) {
            prop_assert_eq!(computed_by_sql(number), segment_of(number));
        }

        #[test]
        fn segments_follow_each_other_without_a_gap(number in number()) {
            let numbers = numbers_of(segment_of(number));
            if let Some(next) = numbers.end().checked_add(1) {
                prop_assert_eq!(*numbers_of(segment_of(number) + 1).start(), next);
            }
        }
    }

    #[test]
    fn the_first_and_the_last_segment_end_where_the_type_does() {
        assert_eq!(*numbers_of(segment_of(i64::MAX)).end(), i64::MAX);
        assert_eq!(*numbers_of(segment_of(i64::MIN)).start(), i64::MIN);
        assert_eq!(numbers_of(-1), -1_000_000..=-1);
        assert_eq!(numbers_of(0), 0..=999_999);
    }
}
