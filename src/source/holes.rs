//! Which missing numbers may still become rows, when to look them up, and when they are rolled back.
//!
//! Owns the rule for holes of one turn of polling. Does no I/O and reads no clock: the caller reads rows, locks and holes in
//! the order that [`Holes`] describes, each as a statement of its own.

use std::collections::BTreeMap;

use crate::row::Lsn;
use crate::row::ranges::RangeSet;

pub(crate) use snapshot::{Snapshot, Xid};

mod snapshot;

#[cfg(test)]
mod tests;

/// A transaction as `pg_locks.virtualtransaction` names it, such as `3/1234`.
///
/// Unique until the server restarts, also after `PREPARE TRANSACTION`.
pub(crate) type VirtualTransaction = Box<str>;

/// The transactions that may still fill holes, read after the rows in a statement of its own.
#[derive(Clone, Debug, Default)]
pub(crate) struct LockReading {
    /// Who holds `RowExclusiveLock` on the outbox or a partition of it, with its top-level transaction id if it has one.
    pub holders: BTreeMap<VirtualTransaction, Option<Xid>>,
    /// The snapshot of the statement that read the locks.
    pub snapshot: Snapshot,
    /// The WAL insert position read after the locks; used by [`Death::NeedsStream`] only.
    pub position: Lsn,
}

/// Whether this turn read rows above the highest one seen before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrivals {
    /// None: nothing can overtake a row that stands in a hole.
    Nothing,
    /// At least one, which may succeed a row that stands in a hole.
    Rows,
}

/// What proves that a number will never be a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RollbackProof {
    /// The table alone: no holder is left and one last look-up finds nothing.
    OnLocks,
    /// Besides, the stream has passed the WAL position read when no holder was left. Nothing is looked up before: the stream
    /// brings the rows.
    NeedsStream,
}

/// What to look up this turn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The holes to look up in one statement, after the lock reading that the plan came from.
    pub look_up: RangeSet,
    /// Those of them that are rolled back if this look-up does not find them.
    pub last: RangeSet,
}

/// Holes that wait for the same transactions.
#[derive(Clone, Debug)]
struct Group {
    numbers: RangeSet,
    waits: Waits,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Waits {
    /// Not yet compared with a lock reading; a look-up before it does not count.
    FirstReading,
    /// For the holders of its first lock reading that are left.
    Holders(BTreeMap<VirtualTransaction, Option<Xid>>),
    /// For the stream to pass a position, read when no holder was left.
    StreamPast(Lsn),
}

/// The holes: numbers below the highest seen that are neither rows nor settled nor rolled back.
///
/// One turn: read rows; [`note`](Self::note) the new holes; read the locks and ask [`plan`](Self::plan), or, if the locks were
/// read too recently, [`plan_without_locks`](Self::plan_without_locks); look up what the plan says; if that found rows, look
/// up again as long as [`widen`](Self::widen) says so; give what the last look-up found to [`answer`](Self::answer); publish
/// rows and finds by `seq`.
///
/// Why nothing is missed: INSERT locks the table before it draws its number, and a commit is visible no later than its locks
/// go. So whoever drew a hole's number is among the holders of the first reading, or has ended and is seen by the look-up
/// after it.
///
/// Why nothing overtakes: what is visible to the rows' statement has ended for the lock reading's snapshot, hence is looked up
/// this turn. What became visible later is published only if every hole that its transaction can have filled was looked up in
/// the same snapshot, and its successors drew numbers above those of this turn.
#[derive(Clone, Debug)]
pub(crate) struct Holes {
    groups: Vec<Group>,
    proof: RollbackProof,
}

impl Holes {
    /// No holes yet.
    pub(crate) const fn new(proof: RollbackProof) -> Self {
        Self {
            groups: Vec::new(),
            proof,
        }
    }

    /// Takes holes found by one reading of rows: they form a group.
    pub(crate) fn note(&mut self, numbers: RangeSet) {
        if numbers.is_empty() {
            return;
        }
        match self.groups.last_mut() {
            Some(group) if group.waits == Waits::FirstReading => group.numbers.extend(&numbers),
            _ => self.groups.push(Group {
                numbers,
                waits: Waits::FirstReading,
            }),
        }
    }

    /// Drops holes that were filled in another way, by the stream for instance.
    pub(crate) fn forget(&mut self, numbers: &RangeSet) {
        for group in &mut self.groups {
            group.numbers.subtract(numbers);
        }
        self.groups.retain(|group| !group.numbers.is_empty());
    }

    /// Takes the holes as they are now: the new ones form a group, and those that were filled go.
    pub(crate) fn track(&mut self, open: &RangeSet) {
        let known = self.numbers();
        self.forget(&known.difference(open));
        self.note(open.difference(&known));
    }

    /// The plan of a turn that does not read the locks: every hole, because a successor of any could be among the new rows.
    ///
    /// It does not count as the first look-up, and nothing dies of it.
    pub(crate) fn plan_without_locks(&self) -> Plan {
        let mut plan = Plan::default();
        if self.proof == RollbackProof::OnLocks {
            plan.look_up = self.numbers();
        }
        plan
    }

    /// The plan of a turn that read the locks after its rows.
    ///
    /// `passed` is how far the stream has come; without a stream it is not looked at.
    pub(crate) fn plan(&mut self, reading: &LockReading, arrivals: Arrivals, passed: Lsn) -> Plan {
        let mut plan = Plan::default();
        for group in &mut self.groups {
            let step = match self.proof {
                RollbackProof::OnLocks => group.advance(reading, arrivals),
                RollbackProof::NeedsStream => group.advance_with_stream(reading, passed),
            };
            if step != Step::Rest {
                plan.look_up.extend(&group.numbers);
            }
            if step == Step::LastLookUp {
                plan.last.extend(&group.numbers);
            }
        }
        self.merge();
        plan
    }

    /// The plan to look up instead when the rows found may have siblings in holes that were not looked up.
    ///
    /// A transaction that ends between the lock reading and the look-up shows its rows in the groups that were looked up, and
    /// would show the lower ones of another group a turn too late. `seen` is the snapshot of the look-up. `None` when the
    /// look-up stands; the plan grows with every call, so this ends.
    pub(crate) fn widen(&self, plan: &Plan, seen: &Snapshot) -> Option<Plan> {
        let mut wider = plan.clone();
        for group in &self.groups {
            if group.may_have_ended(seen) && !group.is_in(plan) {
                wider.look_up.extend(&group.numbers);
            }
        }
        (wider != *plan).then_some(wider)
    }

    /// Takes what the look-up of a plan found and returns the numbers that are rolled back.
    pub(crate) fn answer(&mut self, plan: &Plan, found: &RangeSet) -> RangeSet {
        let rolled_back = plan.last.difference(found);
        if !found.is_empty() {
            self.forget(found);
        }
        if !rolled_back.is_empty() {
            self.forget(&rolled_back);
        }
        rolled_back
    }

    /// Whether there is no hole.
    pub(crate) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Every hole.
    pub(crate) fn numbers(&self) -> RangeSet {
        let mut numbers = RangeSet::new();
        for group in &self.groups {
            numbers.extend(&group.numbers);
        }
        numbers
    }

    /// How many holes there are, as many as a look-up of all of them visits at most.
    pub(crate) fn len(&self) -> u64 {
        let lengths = self.groups.iter().map(|group| group.numbers.len());
        lengths.fold(0, u64::saturating_add)
    }

    /// How many groups there are: distinct sets of holders that are waited for.
    #[cfg(test)]
    pub(crate) fn group_count(&self) -> usize {
        self.groups.len()
    }

    /// Whether a hole waits for this transaction.
    pub(crate) fn waits_for(&self, holder: &str) -> bool {
        self.groups.iter().any(|group| match &group.waits {
            Waits::Holders(holders) => holders.contains_key(holder),
            Waits::FirstReading | Waits::StreamPast(_) => false,
        })
    }

    /// Joins groups that wait for the same transactions, so that their number stays that of the open transactions' sets.
    fn merge(&mut self) {
        let mut merged: Vec<Group> = Vec::with_capacity(self.groups.len());
        for group in self.groups.drain(..) {
            match merged.iter_mut().find(|other| other.waits == group.waits) {
                Some(other) => other.numbers.extend(&group.numbers),
                None => merged.push(group),
            }
        }
        self.groups = merged;
    }
}

/// What a lock reading means for one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Rest,
    LookUp,
    LastLookUp,
}

impl Group {
    fn advance(&mut self, reading: &LockReading, arrivals: Arrivals) -> Step {
        let Waits::Holders(waits) = &mut self.waits else {
            self.waits = Waits::Holders(reading.holders.clone());
            return Step::LookUp;
        };
        let before = waits.len();
        waits.retain(|holder, _| reading.holders.contains_key(holder));
        let (left, ended) = (waits.len(), waits.len() < before);
        for (holder, xid) in waits {
            *xid = reading.holders.get(holder).copied().flatten();
        }
        if left == 0 {
            Step::LastLookUp
        } else if ended || (arrivals == Arrivals::Rows && self.may_have_ended(&reading.snapshot)) {
            Step::LookUp
        } else {
            Step::Rest
        }
    }

    fn advance_with_stream(&mut self, reading: &LockReading, passed: Lsn) -> Step {
        match &mut self.waits {
            Waits::FirstReading => self.waits = Waits::Holders(reading.holders.clone()),
            Waits::Holders(waits) => waits.retain(|holder, _| reading.holders.contains_key(holder)),
            Waits::StreamPast(position) if *position <= passed => return Step::LastLookUp,
            Waits::StreamPast(_) => {}
        }
        if matches!(&self.waits, Waits::Holders(waits) if waits.is_empty()) {
            self.waits = Waits::StreamPast(reading.position);
        }
        Step::Rest
    }

    /// Whether a row of the group can be visible to a snapshot: a holder has no transaction id yet, or one that no longer runs.
    ///
    /// A lock says less: it is held until a little after the commit, two-phase or not, is visible, and no successor waits for
    /// that.
    fn may_have_ended(&self, seen: &Snapshot) -> bool {
        let ended = |xid: &Option<Xid>| xid.is_none_or(|xid| !seen.is_running(xid));
        match &self.waits {
            Waits::Holders(holders) => holders.values().any(ended),
            Waits::FirstReading => true,
            Waits::StreamPast(_) => false,
        }
    }

    /// Groups are looked up as a whole.
    fn is_in(&self, plan: &Plan) -> bool {
        let first = self.numbers.first();
        first.is_some_and(|first| plan.look_up.contains(first))
    }
}
