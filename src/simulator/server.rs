//! PostgreSQL's writers, locks, snapshots, sequence and WAL as a seeded simulation that advances step by step.
//!
//! A writer locks its aggregate and the table before it draws its number; its commit record is written before its rows are
//! visible; they are visible before its locks go, one by one, and its successor starts as soon as they are visible. A crash
//! loses what was not flushed, and the sequence goes back as far as its own record was lost. Where a synchronous standby does not
//! answer, a commit is durable and sent long before anybody sees it.

pub mod rework;
mod writer;

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;

use super::event::Event;
use crate::row::Lsn;
use crate::source::holes::{LockReading, Snapshot, Xid};
use rework::Rework;
use writer::{COMMIT_PREPARED, Writer};

/// Aggregates whose writers lock them.
pub const AGGREGATES: usize = 3;
const WRITERS: usize = 6;
/// Numbers that one record of the sequence covers; PostgreSQL: 32.
const SEQUENCE_AHEAD: i64 = 3;

/// One committed transaction with rows, as the WAL holds it.
pub struct Commit {
    pub lsn: u64,
    pub end: u64,
    pub events: Vec<Event>,
    pub rework: Rework,
    /// The publication had the table when it was committed.
    pub is_published: bool,
}

/// How the writers of one schedule behave.
#[derive(Clone, Copy, Debug, Default)]
pub struct Habits {
    /// Of a hundred rows so many can't be published.
    pub flawed: u8,
    /// Of a hundred rows so many can't be marked in themselves.
    pub unmarkable: u8,
    /// Of ten transactions so many commit without waiting for the flush.
    pub asynchronous: u8,
    /// Of twenty transactions so many remove rows, and of ten rows so many go in their own transaction.
    pub removing: u8,
    /// Of twenty transactions so many change rows.
    pub changing: u8,
    /// Of ten transactions so many stay unseen for long after their flush.
    pub unseen: u8,
}

/// The server: sequence, rows, locks and WAL.
pub struct Server {
    /// The visible rows by number.
    pub rows: BTreeMap<i64, Event>,
    /// Rows that others than the relay removed, their own transactions too.
    pub removed: BTreeSet<u32>,
    /// Rows whose `sent_at` is set, and rows that the relay deleted.
    sent: BTreeSet<u32>,
    taken: BTreeSet<u32>,
    /// In the order of their commit records.
    pub commits: Vec<Commit>,
    /// The insert position.
    pub wal: u64,
    pub flushed: u64,
    /// No writer starts any more.
    pub closed: bool,
    /// No standby answers: what is unseen stays so.
    pub is_stalled: bool,
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
    row_locks: BTreeSet<u32>,
    xids: Xid,
    xid_locks: BTreeMap<Box<str>, Xid>,
    running: BTreeSet<Xid>,
}

impl Server {
    /// An empty table whose sequence gives `first` first.
    pub fn new(first: i64, habits: Habits) -> Self {
        Self {
            rows: BTreeMap::new(),
            removed: BTreeSet::new(),
            sent: BTreeSet::new(),
            taken: BTreeSet::new(),
            commits: Vec::new(),
            wal: 1,
            flushed: 1,
            closed: false,
            is_stalled: false,
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
            row_locks: BTreeSet::new(),
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

    /// Lets the open transactions end, but for those that wait for a standby and who waits for them.
    pub fn finish_seen(&mut self, rng: &mut Rng) {
        self.is_stalled = true;
        let is_stuck =
            |server: &Self, writer: &Writer| writer.is_unseen() || server.is_blocked(writer);
        while !self.writers.iter().all(|writer| is_stuck(self, writer)) {
            self.advance(rng);
        }
        self.is_stalled = false;
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
        self.removed.clear();
        for commit in std::mem::take(&mut self.commits) {
            self.apply(&commit.events, &commit.rework);
            self.commits.push(commit);
        }
        self.rows.retain(|_, event| !self.taken.contains(&event.id));
        self.logged.retain(|(lsn, _)| *lsn <= flushed);
        self.drawn = self.logged.last().map_or(self.first - 1, |(_, last)| *last);
        self.writers.retain(|writer| {
            let is_durable = writer.committed.is_some_and(|end| end <= flushed);
            writer.prepared && !is_durable && !writer.ended
        });
        self.aggregate_locks.clear();
        self.table_locks.clear();
        self.row_locks.clear();
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

    /// The same as the server prints it.
    pub fn printed_snapshot(&self) -> String {
        let xmax = self.xids + 1;
        let xmin = self.running.first().copied().unwrap_or(xmax);
        let running: Vec<String> = self.running.iter().map(Xid::to_string).collect();
        format!("{xmin}:{xmax}:{}", running.join(","))
    }

    /// What a statement that begins now sees as running.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::new(self.xids + 1, self.running.clone())
    }
}
