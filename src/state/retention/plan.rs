//! Which partitions of a table by ranges of `seq` are to be made, and which may go. Pure.

use crate::row::ranges::RangeSet;

/// So many empty partitions stand ahead of the newest number.
pub(crate) const AHEAD: i64 = 4;
/// Made at once.
const MADE_MAX: usize = 4;

/// One partition, but for the default one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Partition {
    /// Qualified and quoted, ready for SQL.
    pub name: String,
    pub bounds: Bounds,
}

/// From the first number, which is in, up to the last one, which is not; without a first number it begins anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Bounds {
    pub from: Option<i64>,
    pub to: i64,
}

impl Bounds {
    /// Reads what PostgreSQL prints, such as `FOR VALUES FROM ('1') TO ('5')`; nothing for the default partition.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (from, to) = text
            .strip_prefix("FOR VALUES FROM (")?
            .strip_suffix(')')?
            .split_once(") TO (")?;
        let number = |text: &str| text.trim_matches('\'').parse().ok();
        let from = match from {
            "MINVALUE" => None,
            from => Some(number(from)?),
        };
        Some(Self {
            from,
            to: number(to)?,
        })
    }

    /// The same for SQL.
    pub(crate) fn sql(self) -> String {
        let from = match self.from {
            None => "MINVALUE".to_owned(),
            Some(from) => format!("'{from}'"),
        };
        format!("FOR VALUES FROM ({from}) TO ('{}')", self.to)
    }

    /// Its numbers; `first` is the lowest that the sequence gives.
    pub(crate) fn numbers(self, first: i64) -> std::ops::RangeInclusive<i64> {
        self.from.map_or(first, |from| from.max(first))..=self.to.saturating_sub(1)
    }
}

/// The partitions to make so that `AHEAD` of them stand above the newest number.
///
/// All are as wide as the last one. Where that was passed already, rows stand in the default partition: the next one begins
/// above what is being written.
pub(crate) fn to_make(partitions: &[Partition], newest: i64) -> Vec<Bounds> {
    let Some(last) = partitions
        .iter()
        .map(|one| one.bounds)
        .max_by_key(|one| one.to)
    else {
        return Vec::new();
    };
    let width = last.to.checked_sub(last.from.unwrap_or(0));
    let Some(width) = width.filter(|width| *width > 0) else {
        return Vec::new();
    };
    let mut from = last.to;
    if newest >= from {
        from = newest
            .div_euclid(width)
            .saturating_add(2)
            .saturating_mul(width);
    }
    let mut made = Vec::new();
    // The numbers of the last one end with the type's, or before.
    while let Some(to) = from.checked_add(width)
        && from.saturating_sub(newest) <= width.saturating_mul(AHEAD)
        && made.len() < MADE_MAX
    {
        made.push(Bounds {
            from: Some(from),
            to,
        });
        from = to;
    }
    made
}

/// Whether every number of a partition is settled and none of them spared, and the table's highest row stands above it.
pub(crate) fn may_go(
    numbers: std::ops::RangeInclusive<i64>,
    removable: &RangeSet,
    highest: i64,
) -> bool {
    *numbers.end() < highest && removable.gaps(numbers).next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(from: Option<i64>, to: i64) -> Partition {
        Partition {
            name: "p".to_owned(),
            bounds: Bounds { from, to },
        }
    }

    #[test]
    fn bounds_are_read_as_they_are_printed_and_nothing_else_is() {
        for text in [
            "FOR VALUES FROM ('100') TO ('200')",
            "FOR VALUES FROM (MINVALUE) TO ('-5')",
        ] {
            assert_eq!(Bounds::parse(text).unwrap().sql(), text);
        }
        for text in [
            "DEFAULT",
            "FOR VALUES FROM ('1') TO (MAXVALUE)",
            "FOR VALUES FROM ('1') TO ('2'); DROP TABLE x",
            "FOR VALUES FROM ('1', '2') TO ('3', '4')",
        ] {
            assert_eq!(Bounds::parse(text), None, "{text}");
        }
    }

    #[test]
    fn four_partitions_stand_ahead_of_the_newest_number() {
        let standing = [partition(None, 100), partition(Some(100), 200)];
        let made = |newest| -> Vec<i64> {
            let made = to_make(&standing, newest).into_iter();
            made.map(|bounds| bounds.from.unwrap()).collect()
        };
        assert_eq!(made(-300), Vec::<i64>::new());
        assert_eq!(made(50), [200, 300, 400]);
        assert_eq!(made(150), [200, 300, 400, 500]);
        assert_eq!(
            made(777),
            [900, 1_000, 1_100],
            "777 stands in the default partition"
        );
    }

    #[test]
    fn a_partition_with_a_number_that_is_open_or_spared_or_with_the_highest_row_stays() {
        let removable = RangeSet::parse_multirange("{[1,150),[151,400)}").unwrap();
        let may_go = |from, to, highest| {
            let bounds = Bounds { from, to };
            may_go(bounds.numbers(1), &removable, highest)
        };
        assert!(may_go(None, 100, 300));
        assert!(!may_go(Some(100), 200, 300));
        assert!(may_go(Some(200), 300, 300));
        assert!(!may_go(Some(200), 300, 299));
    }
}
