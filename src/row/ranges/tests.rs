//! A `RangeSet` against a `BTreeSet` of the same numbers.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Insert(i64, i64),
    Remove(i64, i64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let ends = || (0..60_i64, 0..8_i64);
    let insert = ends().prop_map(|(start, more)| Step::Insert(start, start + more));
    let remove = ends().prop_map(|(start, more)| Step::Remove(start, start + more));
    prop::collection::vec(prop_oneof![2 => insert, 1 => remove], 0..40)
}

fn both(steps: &[Step]) -> (RangeSet, BTreeSet<i64>) {
    let (mut set, mut numbers) = (RangeSet::new(), BTreeSet::new());
    for step in steps {
        match *step {
            Step::Insert(start, end) => {
                set.insert_range(start..=end);
                numbers.extend(start..=end);
            }
            Step::Remove(start, end) => {
                set.remove_range(start..=end);
                numbers.retain(|number| !(start..=end).contains(number));
            }
        }
    }
    (set, numbers)
}

fn numbers_of(ranges: impl Iterator<Item = RangeInclusive<i64>>) -> Vec<i64> {
    ranges.flatten().collect()
}

proptest! {
    #[test]
    fn a_range_set_holds_what_a_set_of_numbers_holds(steps in steps()) {
        let (set, numbers) = both(&steps);
        let expected: Vec<i64> = numbers.iter().copied().collect();
        prop_assert_eq!(numbers_of(set.ranges()), expected.clone());
        prop_assert_eq!(set.len(), numbers.len() as u64);
        prop_assert_eq!(set.first(), numbers.first().copied());
        prop_assert_eq!(set.last(), numbers.last().copied());
        prop_assert_eq!(set.is_empty(), numbers.is_empty());
        prop_assert!((-2..80).all(|number| set.contains(number) == numbers.contains(&number)));
        let touching = set.ranges().zip(set.ranges().skip(1)).any(|(a, b)| a.end() + 1 >= *b.start());
        prop_assert!(!touching);
        prop_assert_eq!(expected.into_iter().collect::<RangeSet>(), set);
    }

    #[test]
    fn gaps_and_parts_split_any_bounds(steps in steps(), from in -5..70_i64, length in -3..70_i64) {
        let (set, numbers) = both(&steps);
        let bounds = from..=from + length;
        let (inside, outside): (Vec<i64>, Vec<i64>) = bounds.clone().partition(|number| numbers.contains(number));
        prop_assert_eq!(numbers_of(set.within(bounds.clone())), inside);
        prop_assert_eq!(numbers_of(set.gaps(bounds)), outside);
    }

    #[test]
    fn two_sets_combine_as_sets_of_numbers_do(left in steps(), right in steps()) {
        let ((a, x), (b, y)) = (both(&left), both(&right));
        prop_assert_eq!(a.union(&b), x.union(&y).copied().collect::<RangeSet>());
        prop_assert_eq!(a.difference(&b), x.difference(&y).copied().collect::<RangeSet>());
        prop_assert_eq!(a.intersection(&b), x.intersection(&y).copied().collect::<RangeSet>());
        let mut rest = a.clone();
        rest.subtract(&b);
        prop_assert_eq!(rest, a.difference(&b));
    }

    #[test]
    fn a_multirange_survives_its_text(steps in steps()) {
        let (set, _) = both(&steps);
        prop_assert_eq!(RangeSet::parse_multirange(&set.to_multirange_text()), Ok(set));
    }

    #[test]
    fn garbage_is_refused_without_a_panic(text in "[\\{\\}\\[\\](),0-9 -]{0,24}|.{0,12}") {
        let _ = RangeSet::parse_multirange(&text);
    }
}

#[test]
fn the_text_is_what_postgresql_prints() {
    let set: RangeSet = [1, 2, 3, 4, 7].into_iter().collect();
    assert_eq!(set.to_multirange_text(), "{[1,5),[7,8)}");
    assert_eq!(RangeSet::new().to_multirange_text(), "{}");
    assert_eq!(RangeSet::parse_multirange("{}"), Ok(RangeSet::new()));
}

#[test]
fn what_postgresql_does_not_print_is_refused() {
    for text in [
        "",
        "{",
        "}",
        "{[1,5)",
        "{(1,5)}",
        "{[1,5]}",
        "{[5,1)}",
        "{[1,1)}",
        "{[1,5),}",
        "{,[1,5)}",
        "{[1,5)[7,8)}",
        "{[,5)}",
        "{[1,-9223372036854775808)}",
        "{[1,9223372036854775808)}",
    ] {
        assert_eq!(
            RangeSet::parse_multirange(text),
            Err(ParseMultirangeError),
            "{text}"
        );
    }
}

#[test]
fn the_ends_of_i64_are_ordinary_numbers() {
    let mut set = RangeSet::new();
    set.insert_range(i64::MIN..=i64::MAX);
    assert_eq!(set.len(), u64::MAX);
    assert_eq!(set.gaps(i64::MIN..=i64::MAX).count(), 0);
    set.remove(i64::MAX);
    set.remove(i64::MIN);
    set.remove(0);
    assert_eq!(set.range_count(), 2);
    assert_eq!(
        numbers_of(set.gaps(i64::MIN..=i64::MAX)),
        [i64::MIN, 0, i64::MAX]
    );
    set.insert(i64::MAX);
    assert_eq!(
        RangeSet::parse_multirange(&set.to_multirange_text()),
        Ok(set)
    );
}

#[test]
fn a_million_numbers_in_order_are_one_range() {
    let set: RangeSet = (1..=1_000_000).collect();
    assert_eq!((set.range_count(), set.len()), (1, 1_000_000));
}
