//! PostgreSQL's writers, locks, snapshots and WAL as a seeded simulation that advances step by step.
//!
//! A writer locks its aggregate and the table before it draws its number; its commit record is written before its rows are
//! visible; they are visible before its locks go, one by one, and its successor starts as soon as they are visible.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;

use super::{LockReading, Snapshot, Xid};
use crate::outbox::Lsn;

const AGGREGATES: usize = 3;
const WRITERS: usize = 6;

#[derive(Clone, Copy, Debug)]
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
    WriteCommit,
    BecomeVisible,
    Abort,
    ReleaseXid,
}

struct Writer {
    name: Box<str>,
    xid: Option<Xid>,
    aggregate: Option<usize>,
    steps: std::vec::IntoIter<Step>,
    numbers: Vec<i64>,
    slow: bool,
}

/// A visible row, and where it stands among the rows of its aggregate.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub aggregate: Option<usize>,
    pub version: usize,
}

/// The server: sequence, rows, locks and WAL.
#[derive(Default)]
pub struct Server {
    pub rows: BTreeMap<i64, Row>,
    /// The numbers in the order of their commit records.
    pub stream: Vec<(u64, i64)>,
    pub wal: u64,
    /// No writer starts any more.
    pub closed: bool,
    drawn: i64,
    writers: Vec<Writer>,
    started: usize,
    aggregate_locks: BTreeSet<usize>,
    table_locks: BTreeSet<Box<str>>,
    xids: Xid,
    xid_locks: BTreeMap<Box<str>, Xid>,
    running: BTreeSet<Xid>,
}

impl Server {
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
            steps: transaction(rng, aggregate.is_some()).into_iter(),
            numbers: Vec::new(),
            slow: false,
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
                self.take(index, step);
            }
            None => drop(self.writers.swap_remove(index)),
        }
    }

    fn take(&mut self, index: usize, step: Step) {
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
            Step::Draw => {
                self.drawn += 1;
                writer.numbers.push(self.drawn);
            }
            Step::DrawAndLose => self.drawn += 1,
            Step::ReleaseTable => drop(self.table_locks.remove(&name)),
            Step::Linger => writer.slow = true,
            Step::WriteCommit => {
                self.wal += 1;
                let records = writer.numbers.iter().map(|&seq| (self.wal, seq));
                self.stream.extend(records);
            }
            Step::BecomeVisible => self.show(index),
            Step::Abort => self.unlock(index),
            Step::ReleaseXid => drop(self.xid_locks.remove(&name)),
        }
    }

    fn show(&mut self, index: usize) {
        let writer = &self.writers[index];
        for &seq in &writer.numbers {
            let row = Row {
                aggregate: writer.aggregate,
                version: self.rows.len(),
            };
            self.rows.insert(seq, row);
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
        writer.slow = false;
    }
}

/// The steps of one transaction; the aggregate comes first, and its lock usually brings the transaction id.
fn transaction(rng: &mut Rng, serialised: bool) -> Vec<Step> {
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
    for _ in 0..rng.usize(1..=2) {
        steps.push(Step::Draw);
        if rng.u8(..10) == 0 {
            steps.push(Step::DrawAndLose);
        }
    }
    if rng.u8(..10) < 4 {
        steps.push(Step::Linger);
    }
    if rng.u8(..10) < 3 {
        steps.push(Step::Abort);
    } else {
        steps.extend([Step::WriteCommit, Step::BecomeVisible]);
    }
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
