//! PostgreSQL's writers, locks, snapshots, sequence and WAL as a seeded simulation that advances step by step.
//!
//! A writer locks its aggregate and the table before it draws its number; its commit record is written before its rows are
//! visible; they are visible before its locks go, one by one, and its successor starts as soon as they are visible. A crash
//! loses what was not flushed, and the sequence goes back as far as its own record was lost.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;

use super::event::{Event, Flaw};
use crate::outbox::Lsn;
use crate::source::holes::{LockReading, Snapshot, Xid};

/// Aggregates whose writers lock them.
pub const AGGREGATES: usize = 3;
const WRITERS: usize = 6;
/// Numbers that one record of the sequence covers; PostgreSQL: 32.
const SEQUENCE_AHEAD: i64 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    LockAggregate,
    AssignXid,
    LockTable,
    Draw,
    /// In a savepoint that is rolled back.
    DrawAndLose,
    ReleaseTable,
    /// From here on the writer is slow: long, prepared, or its backend is not scheduled.
    Linger,
    /// It survives a crash from here on.
    Prepare,
    WriteCommit,
    Flush,
    BecomeVisible,
    Abort,
    ReleaseXid,
}

/// What is left to do for a prepared transaction after a crash.
const COMMIT_PREPARED: [Step; 6] = [
    Step::Linger,
    Step::WriteCommit,
    Step::Flush,
    Step::BecomeVisible,
    Step::ReleaseXid,
    Step::ReleaseTable,
];

struct Writer {
    name: Box<str>,
    xid: Option<Xid>,
    aggregate: Option<usize>,
    steps: std::vec::IntoIter<Step>,
    events: Vec<Event>,
    slow: bool,
    prepared: bool,
    committed: Option<u64>,
    /// Committed and visible, or rolled back; locks may still be held.
    ended: bool,
}

/// One committed transaction with rows, as the WAL holds it.
pub struct Commit {
    pub lsn: u64,
    pub end: u64,
    pub events: Vec<Event>,
    /// The publication had the table when it was committed.
    pub is_published: bool,
}

/// How the writers of one schedule behave.
#[derive(Clone, Copy, Debug, Default)]
pub struct Habits {
    /// Of a hundred rows so many can't be published.
    pub flawed: u8,
    /// Of ten transactions so many commit without waiting for the flush.
    pub asynchronous: u8,
}

/// The server: sequence, rows, locks and WAL.
pub struct Server {
    /// The visible rows by number.
    pub rows: BTreeMap<i64, Event>,
    /// In the order of their commit records.
    pub commits: Vec<Commit>,
    /// The insert position.
    pub wal: u64,
    pub flushed: u64,
    /// No writer starts any more.
    pub closed: bool,
    /// The publication has the table.
    pub is_published: bool,
    pub habits: Habits,
    first: i64,
    drawn: i64,
    logged: Vec<(u64, i64)>,
    ids: u32,
    writers: Vec<Writer>,
    started: usize,
    aggregate_locks: BTreeSet<usize>,
    table_locks: BTreeSet<Box<str>>,
    xids: Xid,
    xid_locks: BTreeMap<Box<str>, Xid>,
    running: BTreeSet<Xid>,
}

impl Server {
    /// An empty table whose sequence gives `first` first.
    pub fn new(first: i64, habits: Habits) -> Self {
        Self {
            rows: BTreeMap::new(),
            commits: Vec::new(),
            wal: 1,
            flushed: 1,
            closed: false,
            is_published: true,
            habits,
            first,
            drawn: first - 1,
            logged: Vec::new(),
            ids: 0,
            writers: Vec::new(),
            started: 0,
            aggregate_locks: BTreeSet::new(),
            table_locks: BTreeSet::new(),
            xids: 0,
            xid_locks: BTreeMap::new(),
            running: BTreeSet::new(),
        }
    }

    /// Lets the writers take up to `most` steps.
    pub fn run(&mut self, rng: &mut Rng, most: usize) {
        for _ in 0..rng.usize(..=most) {
            if !self.closed && self.writers.len() < WRITERS {
                self.start(rng);
            }
            self.advance(rng);
        }
    }

    /// Lets the open transactions end.
    pub fn finish(&mut self, rng: &mut Rng) {
        while !self.writers.is_empty() {
            self.advance(rng);
        }
    }

    /// Lets the transactions that have written their commit become visible.
    pub fn show_committed(&mut self) {
        let committed: Vec<usize> = (0..self.writers.len())
            .filter(|index| self.writers[*index].committed.is_some())
            .collect();
        for index in committed {
            self.show(index);
        }
    }

    /// Writes records that are no business of ours.
    pub fn write(&mut self, bytes: u64) {
        self.wal += bytes;
    }

    pub fn flush(&mut self) {
        self.flushed = self.wal;
    }

    /// The numbers that open transactions have drawn for rows.
    pub fn drawn_open(&self) -> impl Iterator<Item = i64> {
        let open = self.writers.iter().filter(|writer| !writer.ended);
        open.flat_map(|writer| writer.events.iter().map(|event| event.seq))
    }

    /// Loses what was not flushed; prepared transactions stay.
    pub fn crash(&mut self) {
        let flushed = self.flushed;
        self.wal = flushed;
        self.commits.retain(|commit| commit.end <= flushed);
        self.rows.clear();
        for event in self.commits.iter().flat_map(|commit| &commit.events) {
            self.rows.insert(event.seq, *event);
        }
        self.logged.retain(|(lsn, _)| *lsn <= flushed);
        self.drawn = self.logged.last().map_or(self.first - 1, |(_, last)| *last);
        self.writers.retain(|writer| {
            let is_durable = writer.committed.is_some_and(|end| end <= flushed);
            writer.prepared && !is_durable && !writer.ended
        });
        self.aggregate_locks.clear();
        self.table_locks.clear();
        self.xid_locks.clear();
        self.running.clear();
        for writer in &mut self.writers {
            writer.committed = None;
            writer.steps = COMMIT_PREPARED.to_vec().into_iter();
            self.aggregate_locks.extend(writer.aggregate);
            self.table_locks.insert(writer.name.clone());
            if let Some(xid) = writer.xid {
                self.xid_locks.insert(writer.name.clone(), xid);
                self.running.insert(xid);
            }
        }
    }

    /// Reads the locks as the query does: a snapshot first, then the table's locks one by one, then the transaction ids'.
    pub fn read_locks(&mut self, rng: &mut Rng) -> LockReading {
        let snapshot = self.snapshot();
        let mut names: BTreeSet<Box<str>> = BTreeSet::new();
        let everyone: Vec<Box<str>> = self.writers.iter().map(|w| w.name.clone()).collect();
        for name in everyone {
            self.run(rng, 1);
            if self.table_locks.contains(&name) {
                names.insert(name);
            }
        }
        names.extend(self.table_locks.iter().cloned());
        let xid = |name| self.xid_locks.get(name).copied();
        let holders = names.iter().map(|name| (name.clone(), xid(name)));
        LockReading {
            holders: holders.collect(),
            snapshot,
            position: Lsn(self.wal),
        }
    }

    /// What a statement that begins now sees as running.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::new(self.xids + 1, self.running.clone())
    }

    fn start(&mut self, rng: &mut Rng) {
        self.started += 1;
        let aggregate = (rng.u8(..10) < 8).then(|| rng.usize(..AGGREGATES));
        self.writers.push(Writer {
            name: format!("{}/{}", rng.u8(..9), self.started).into(),
            xid: None,
            aggregate,
            steps: self.transaction(rng, aggregate.is_some()).into_iter(),
            events: Vec::new(),
            slow: false,
            prepared: false,
            committed: None,
            ended: false,
        });
    }

    fn advance(&mut self, rng: &mut Rng) {
        let index = rng.usize(..self.writers.len().max(1));
        let Some(writer) = self.writers.get(index) else {
            return;
        };
        let waits = writer.slow && rng.u8(..10) > 0;
        let next = writer.steps.as_slice().first().copied();
        let blocked = matches!(next, Some(Step::LockAggregate))
            && writer
                .aggregate
                .is_some_and(|a| self.aggregate_locks.contains(&a));
        if waits || blocked {
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
            Step::DrawAndLose => drop(self.next_number()),
            Step::ReleaseTable => drop(self.table_locks.remove(&name)),
            Step::Linger => writer.slow = true,
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
            _ => Flaw::None,
        };
        let writer = &mut self.writers[index];
        writer.events.push(Event {
            id: self.ids,
            seq,
            aggregate: writer.aggregate,
            flaw,
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
            is_published: self.is_published,
        });
    }

    fn show(&mut self, index: usize) {
        let writer = &self.writers[index];
        if writer.ended {
            return;
        }
        for event in &writer.events {
            self.rows.insert(event.seq, *event);
        }
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
        (writer.slow, writer.ended) = (false, true);
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
