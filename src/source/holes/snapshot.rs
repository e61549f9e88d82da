//! Which transactions a PostgreSQL snapshot counts as running.

use std::collections::BTreeSet;

/// A full transaction id, epoch included.
pub(crate) type Xid = u64;

/// A value of `pg_current_snapshot()`: transactions that were running when a statement began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// The first id that was not yet given out, or not yet known to have ended.
    next: Xid,
    running: BTreeSet<Xid>,
}

impl Snapshot {
    /// A snapshot from its parts: the first unassigned id, and the running ones below it.
    #[cfg(test)]
    pub(crate) fn new(next: Xid, running: BTreeSet<Xid>) -> Self {
        Self { next, running }
    }

    /// Whether the rows of a top-level transaction were still invisible to the statement because it ran.
    pub(crate) fn is_running(&self, xid: Xid) -> bool {
        xid >= self.next || self.running.contains(&xid)
    }
}

impl std::str::FromStr for Snapshot {
    type Err = ParseSnapshotError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split(':');
        let (Some(_), Some(next), Some(running), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(ParseSnapshotError);
        };
        let xid = |digits: &str| digits.parse::<Xid>().map_err(|_| ParseSnapshotError);
        let listed = running.split(',').filter(|digits| !digits.is_empty());
        Ok(Self {
            next: xid(next)?,
            running: listed.map(xid).collect::<Result<_, _>>()?,
        })
    }
}

/// The text is not a snapshot such as `10:20:10,14`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a snapshot such as `10:20:10,14`")]
pub(crate) struct ParseSnapshotError;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_counts_listed_and_later_transactions_as_running() {
        let snapshot: Snapshot = "10:20:10,14".parse().unwrap();
        let running: Vec<Xid> = (8..22).filter(|&xid| snapshot.is_running(xid)).collect();
        assert_eq!(running, [10, 14, 20, 21]);
        assert!(!"10:10:".parse::<Snapshot>().unwrap().is_running(9));
    }

    #[test]
    fn garbage_is_not_a_snapshot() {
        for text in ["", ":", "1:2", "1:2:3:4", "1:x:", "1:2:a", "1:-2:"] {
            assert_eq!(text.parse::<Snapshot>(), Err(ParseSnapshotError), "{text}");
        }
    }
}
