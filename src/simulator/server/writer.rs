//! What writers do, step by step: they lock, draw, commit, and are seen.

use fastrand::Rng;

use super::rework::{Rework, Work, job};
use super::{AGGREGATES, Commit, SEQUENCE_AHEAD, Server};
use crate::simulator::event::{Event, Flaw};
use crate::source::holes::Xid;

/// How long a slow writer waits, and one whose standby does not answer.
const LINGERS: u8 = 10;
const IS_UNSEEN: u8 = 40;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    LockAggregate,
    AssignXid,
    LockTable,
    Draw,
    /// It takes back what it inserted last.
    Undo,
    Remove,
    Change,
    /// In a savepoint that is rolled back.
    DrawAndLose,
    ReleaseTable,
    /// From here on the writer is slow: long, prepared, or its backend is not scheduled.
    Linger,
    /// It survives a crash from here on.
    Prepare,
    WriteCommit,
    Flush,
    /// Durable, sent by walsenders and seen by nobody: a synchronous standby does not answer.
    AwaitStandby,
    BecomeVisible,
    Abort,
    ReleaseXid,
}

/// What is left to do for a prepared transaction after a crash.
pub(super) const COMMIT_PREPARED: [Step; 6] = [
    Step::Linger,
    Step::WriteCommit,
    Step::Flush,
    Step::BecomeVisible,
    Step::ReleaseXid,
    Step::ReleaseTable,
];

pub(super) struct Writer {
    pub(super) name: Box<str>,
    pub(super) xid: Option<Xid>,
    pub(super) aggregate: Option<usize>,
    pub(super) steps: std::vec::IntoIter<Step>,
    pub(super) events: Vec<Event>,
    pub(super) rework: Rework,
    /// It takes one in so many of its turns.
    pub(super) pace: u8,
    pub(super) prepared: bool,
    pub(super) committed: Option<u64>,
    /// Committed and visible, or rolled back; locks may still be held.
    pub(super) ended: bool,
}

impl Writer {
    /// Its commit is durable, and a standby keeps it from being seen.
    pub(super) fn is_unseen(&self) -> bool {
        self.pace == IS_UNSEEN
    }
}

impl Server {
    pub(super) fn start(&mut self, rng: &mut Rng) {
        self.started += 1;
        let work = self.habits.work(rng);
        let is_serialised = work == Work::Insert && rng.u8(..10) < 8;
        let aggregate = is_serialised.then(|| rng.usize(..AGGREGATES));
        let steps = match work {
            Work::Insert => self.transaction(rng, is_serialised),
            Work::Remove => job(rng, Step::Remove),
            Work::Change => job(rng, Step::Change),
        };
        self.writers.push(Writer {
            name: format!("{}/{}", rng.u8(..9), self.started).into(),
            xid: None,
            aggregate,
            steps: steps.into_iter(),
            events: Vec::new(),
            rework: Rework::default(),
            pace: 1,
            prepared: false,
            committed: None,
            ended: false,
        });
    }

    pub(super) fn advance(&mut self, rng: &mut Rng) {
        let index = rng.usize(..self.writers.len().max(1));
        let Some(writer) = self.writers.get(index) else {
            return;
        };
        let waits = self.is_stalled && writer.is_unseen() || rng.u8(..writer.pace) > 0;
        let next = writer.steps.as_slice().first().copied();
        if waits || self.is_blocked(writer) {
            return;
        }
        match next {
            Some(step) => {
                self.writers[index].steps.next();
                self.take(rng, index, step);
            }
            None => drop(self.writers.swap_remove(index)),
        }
    }

    pub(super) fn is_blocked(&self, writer: &Writer) -> bool {
        matches!(writer.steps.as_slice().first(), Some(Step::LockAggregate))
            && writer
                .aggregate
                .is_some_and(|aggregate| self.aggregate_locks.contains(&aggregate))
    }

    fn take(&mut self, rng: &mut Rng, index: usize, step: Step) {
        let writer = &mut self.writers[index];
        let name = writer.name.clone();
        match step {
            Step::LockAggregate => self.aggregate_locks.extend(writer.aggregate),
            Step::AssignXid => {
                self.xids += 1;
                writer.xid = Some(self.xids);
                self.running.insert(self.xids);
                self.xid_locks.insert(name, self.xids);
            }
            Step::LockTable => drop(self.table_locks.insert(name)),
            Step::Draw => self.draw(rng, index),
            Step::Undo => writer
                .rework
                .undone
                .extend(writer.events.last().map(|event| event.id)),
            Step::Remove => self.remove(rng, index),
            Step::Change => self.change(rng, index),
            Step::DrawAndLose => drop(self.next_number()),
            Step::ReleaseTable => drop(self.table_locks.remove(&name)),
            Step::Linger => writer.pace = LINGERS,
            Step::AwaitStandby => writer.pace = IS_UNSEEN,
            Step::Prepare => {
                writer.prepared = true;
                self.wal += 4;
                self.flush();
            }
            Step::WriteCommit => self.commit(index),
            Step::Flush => self.flush(),
            Step::BecomeVisible => self.show(index),
            Step::Abort => {
                writer.events.clear();
                self.unlock(index);
                let writer = &mut self.writers[index];
                writer.rework = Rework::default();
            }
            Step::ReleaseXid => drop(self.xid_locks.remove(&name)),
        }
    }

    fn next_number(&mut self) -> i64 {
        self.drawn += 1;
        if self
            .logged
            .last()
            .is_none_or(|(_, last)| self.drawn > *last)
        {
            self.wal += 2;
            self.logged
                .push((self.wal, self.drawn + SEQUENCE_AHEAD - 1));
        }
        self.drawn
    }

    fn draw(&mut self, rng: &mut Rng, index: usize) {
        let seq = self.next_number();
        self.ids += 1;
        let flaw = match rng.u8(..100) {
            roll if roll * 2 < self.habits.flawed => Flaw::Rejected,
            roll if roll < self.habits.flawed => Flaw::Refused,
            roll if roll >= 100 - self.habits.unmarkable => match roll % 2 {
                0 => Flaw::Unmarkable,
                _ => Flaw::Unchanged,
            },
            _ => Flaw::None,
        };
        let writer = &mut self.writers[index];
        writer.events.push(Event {
            id: self.ids,
            seq,
            aggregate: writer.aggregate,
            flaw,
            xid: writer.xid.map_or(0, |xid| xid as u32),
            version: 0,
        });
    }

    fn commit(&mut self, index: usize) {
        let (lsn, end) = (self.wal, self.wal + 4);
        self.wal = end;
        let writer = &mut self.writers[index];
        writer.committed = Some(end);
        self.commits.push(Commit {
            lsn,
            end,
            events: writer.events.clone(),
            rework: writer.rework.clone(),
            is_published: self.is_published,
        });
    }

    pub(super) fn show(&mut self, index: usize) {
        let writer = &mut self.writers[index];
        if writer.ended {
            return;
        }
        let events = std::mem::take(&mut writer.events);
        let rework = writer.rework.clone();
        self.apply(&events, &rework);
        self.unlock(index);
    }

    fn unlock(&mut self, index: usize) {
        let writer = &mut self.writers[index];
        if let Some(xid) = &writer.xid {
            self.running.remove(xid);
        }
        if let Some(aggregate) = &writer.aggregate {
            self.aggregate_locks.remove(aggregate);
        }
        for event in writer.rework.of_others() {
            self.row_locks.remove(&event.id);
        }
        (writer.pace, writer.ended) = (1, true);
    }

    /// The steps of one transaction; the aggregate comes first, and its lock usually brings the transaction id.
    fn transaction(&self, rng: &mut Rng, serialised: bool) -> Vec<Step> {
        let mut steps = Vec::new();
        let early_xid = rng.bool();
        if serialised {
            steps.push(Step::LockAggregate);
        }
        if early_xid {
            steps.push(Step::AssignXid);
        }
        if rng.u8(..10) == 0 {
            steps.extend([Step::LockTable, Step::DrawAndLose, Step::ReleaseTable]);
        }
        steps.push(Step::LockTable);
        if !early_xid {
            steps.push(Step::AssignXid);
        }
        for _ in 0..rng.usize(1..=3) {
            steps.push(Step::Draw);
            if rng.u8(..10) < self.habits.removing {
                steps.push(Step::Undo);
            }
            if rng.u8(..10) == 0 {
                steps.push(Step::DrawAndLose);
            }
        }
        let prepared = rng.u8(..20) == 0;
        if rng.u8(..10) < 4 {
            steps.push(Step::Linger);
        }
        if prepared {
            steps.extend([Step::Prepare, Step::Linger]);
        }
        if rng.u8(..10) < 3 {
            steps.push(Step::Abort);
            steps.extend([Step::ReleaseXid, Step::ReleaseTable]);
            return steps;
        }
        steps.push(Step::WriteCommit);
        if prepared || rng.u8(..10) >= self.habits.asynchronous {
            steps.push(Step::Flush);
            if rng.u8(..10) < self.habits.unseen {
                steps.push(Step::AwaitStandby);
            }
        }
        steps.push(Step::BecomeVisible);
        if rng.u8(..10) < 3 {
            steps.push(Step::Linger);
        }
        if rng.bool() {
            steps.extend([Step::ReleaseXid, Step::ReleaseTable]);
        } else {
            steps.extend([Step::ReleaseTable, Step::ReleaseXid]);
        }
        steps
    }
}
