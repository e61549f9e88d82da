//! Marks in the rows themselves: a statement that finds its rows or not, and the look that follows.

use std::sync::Arc;

use super::database::Reply;
use super::event::{Event, Flaw, id_of, layout, seq_and_id, seqs_of};
use super::mutations::Mutation;
use super::world::{World, tell};
use crate::config::Mark;
use crate::core::{Delivered, RowFacts};
use crate::mark::FencingToken;
use crate::mark::evidence::{Snapshot, Unmarked, judge};
use crate::row::{Lsn, Origin, OutboxRow};

/// One `UPDATE` or `DELETE`.
pub struct RowMark {
    pub token: FencingToken,
    pub rows: Vec<Delivered>,
    /// What is recorded beside: the marks, and this position; nothing where no stream brings the rows again.
    pub resolved: Option<Lsn>,
    pub finds: Finds,
}

/// Which version of a row a statement finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finds {
    Any,
    AsRead,
}

impl Finds {
    fn finds(self, event: &Event, row: &Delivered) -> bool {
        match (self, row.origin) {
            (Self::AsRead, Origin::Table { xmin }) => event.xid == xmin,
            _ => true,
        }
    }
}

/// How far the mark of some rows has come.
pub struct RowMarking {
    statement: Arc<RowMark>,
    next: Next,
    /// Rows that stood unsent after the first statement.
    stood: Vec<Delivered>,
    /// Rows that somebody works on.
    locked: Vec<Delivered>,
    waiting: Vec<Delivered>,
    /// Rows that stand and can't be marked.
    refused: Vec<Delivered>,
}

/// Its next statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Mark,
    Look,
    MarkAgain,
    Judge,
}

impl RowMarking {
    pub fn new(statement: RowMark) -> Self {
        Self {
            statement: Arc::new(statement),
            next: Next::Mark,
            stood: Vec::new(),
            locked: Vec::new(),
            waiting: Vec::new(),
            refused: Vec::new(),
        }
    }

    pub fn statement(&self) -> Arc<RowMark> {
        self.statement.clone()
    }

    /// The rows that can't be marked.
    pub fn take_refused(&mut self) -> Vec<Delivered> {
        std::mem::take(&mut self.refused)
    }

    /// The rows whose mark is to be tried again.
    pub fn take_waiting(&mut self) -> Vec<Delivered> {
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.append(&mut self.locked);
        waiting
    }
}

impl World {
    /// The statement that marks these rows.
    pub fn row_mark(&self, relay: usize, rows: &[Delivered], is_again: bool) -> Option<RowMark> {
        let process = &self.relays[relay];
        let session = process.session.as_ref()?;
        let resolved = match self.mutation {
            Mutation::PassedIsResolved => process.core.passed(),
            _ => process.core.confirmable(),
        };
        let finds = match self.mutation {
            Mutation::MarkHitsAnotherVersion => Finds::Any,
            _ => Finds::AsRead,
        };
        let is_recorded =
            session.record.is_some() && !is_again && self.mutation != Mutation::MarkUnrecorded;
        Some(RowMark {
            token: session.token.clone(),
            rows: rows.to_vec(),
            resolved: is_recorded.then(|| resolved.unwrap_or_default()),
            finds,
        })
    }

    /// One statement of a mark: it marks, or looks what became of rows that were not found.
    pub fn advance_rows(&mut self, marking: &mut RowMarking) -> Option<Reply> {
        let statement = marking.statement();
        match marking.next {
            Next::Mark => {
                if self.mutation == Mutation::FailedMarkIsPassing
                    && statement.rows.iter().any(|row| self.fails(row))
                {
                    return None;
                }
                let rows = self.leave_locked(&statement.rows, &mut marking.locked);
                let rows = self.leave_failing(rows, &mut marking.refused);
                let Some(marked) = self.mark_rows(&statement, &rows) else {
                    return Some(Reply::NotLeader);
                };
                marking.next = Next::Look;
                (marked == statement.rows.len()).then_some(Reply::Done)
            }
            Next::Look => {
                let stands = |row: &&Delivered| self.stands(&statement, row);
                marking.stood = statement.rows.iter().filter(stands).cloned().collect();
                marking.next = match marking.stood.is_empty() {
                    true => Next::Judge,
                    false => Next::MarkAgain,
                };
                None
            }
            Next::MarkAgain => {
                let rows = self.leave_locked(&marking.stood.clone(), &mut marking.locked);
                let rows = self.leave_failing(rows, &mut marking.refused);
                marking.next = Next::Judge;
                match self.mark_rows(&statement, &rows) {
                    Some(_) => None,
                    None => Some(Reply::NotLeader),
                }
            }
            Next::Judge => self.judge_rows(marking),
        }
    }

    /// A row that somebody works on for too long is left for later, and found by halving.
    fn leave_locked(&mut self, rows: &[Delivered], locked: &mut Vec<Delivered>) -> Vec<Delivered> {
        let is_locked = |row: &Delivered| self.server.is_locked(seq_and_id(row).1);
        let (left, rows): (Vec<_>, _) = rows.iter().cloned().partition(is_locked);
        locked.retain(|row| !rows.contains(row));
        for row in left {
            if !locked.contains(&row) {
                locked.push(row);
            }
        }
        rows
    }

    /// A row that a statement fails for is found by halving.
    fn leave_failing(&self, rows: Vec<Delivered>, refused: &mut Vec<Delivered>) -> Vec<Delivered> {
        let (left, rows): (Vec<_>, _) = rows.into_iter().partition(|row| self.fails(row));
        for row in left {
            if !refused.contains(&row) {
                refused.push(row);
            }
        }
        rows
    }

    fn fails(&self, row: &Delivered) -> bool {
        let (seq, id) = seq_and_id(row);
        self.resists(seq, id) == Some(Flaw::Unmarkable)
    }

    /// Why a row that stands can't be marked.
    pub fn resists(&self, seq: i64, id: u32) -> Option<Flaw> {
        let flaw = self.server.unsent(seq, id)?.flaw;
        let is_of_mark = matches!(flaw, Flaw::Unmarkable | Flaw::Unchanged);
        (is_of_mark && !self.broker.mended.contains(&id)).then_some(flaw)
    }

    fn stands(&self, statement: &RowMark, row: &Delivered) -> bool {
        let (seq, id) = seq_and_id(row);
        let standing = self.server.unsent(seq, id);
        standing.is_some_and(|event| statement.finds.finds(event, row))
    }

    /// Marks what it finds, all in one; says how many, or nothing where the lease is another's.
    pub fn mark_rows(&mut self, statement: &RowMark, rows: &[Delivered]) -> Option<usize> {
        if !self.may_write(&statement.token) {
            return None;
        }
        self.judge.sync(&self.server);
        let is_found = |row: &&Delivered| {
            let (seq, id) = seq_and_id(row);
            self.stands(statement, row) && self.resists(seq, id).is_none()
        };
        let found: Vec<Delivered> = rows.iter().filter(is_found).cloned().collect();
        for row in &found {
            let (seq, id) = seq_and_id(row);
            if let Some(event) = self.server.unsent(seq, id).copied() {
                let was_polled = matches!(row.origin, Origin::Table { .. });
                self.judge.marked_row(&event, was_polled);
            }
            match self.setting.mark {
                Mark::SentAt => self.server.set_sent(id),
                _ => self.server.take_row(seq),
            }
        }
        tell!(self, "marked {:?} of {:?}", seqs_of(&found), seqs_of(rows));
        if let Some(resolved) = statement.resolved {
            self.database.marks.note(&found, &[], resolved);
        }
        self.database.marks.paid(&found);
        self.wrote();
        Some(found.len())
    }

    /// What became of the rows, by one look.
    fn judge_rows(&mut self, marking: &mut RowMarking) -> Option<Reply> {
        let statement = marking.statement();
        let snapshot = Snapshot::parse(&self.server.printed_snapshot())?;
        let mut gone = Vec::new();
        for row in &statement.rows {
            if marking.locked.contains(row) || marking.refused.contains(row) {
                continue;
            }
            let stands = self.stands(&statement, row);
            let became = match self.mutation {
                Mutation::AbsenceIsEvidence if !stands => Unmarked::Gone,
                _ => judge(row, stands, &snapshot),
            };
            tell!(self, "row {} without a mark: {became:?}", row.id);
            match became {
                Unmarked::Gone => gone.push(row.clone()),
                Unmarked::Waits(origin) => marking.waiting.push(Delivered {
                    origin,
                    ..row.clone()
                }),
                Unmarked::Refused if !marking.stood.contains(row) => {
                    marking.waiting.push(row.clone());
                }
                Unmarked::Refused => {
                    let (seq, id) = seq_and_id(row);
                    if self.resists(seq, id).is_none() {
                        self.judge
                            .breaks("mark", format!("row {id} is called refused"));
                    }
                    marking.refused.push(row.clone());
                }
            }
        }
        for row in &gone {
            self.judge.gone(seq_and_id(row).1, &self.server);
        }
        if !self.may_write(&statement.token) {
            return Some(Reply::NotLeader);
        }
        if let Some(resolved) = statement.resolved {
            let owed = marking.waiting.iter().chain(&marking.locked);
            let owed: Vec<_> = owed.cloned().collect();
            self.database.marks.note(&gone, &owed, resolved);
        }
        self.database.marks.paid(&gone);
        self.wrote();
        Some(Reply::Done)
    }

    /// The mark was heard of; what waits is owed.
    pub fn take_row_mark(
        &mut self,
        relay: usize,
        rows: &[Delivered],
        marking: &mut RowMarking,
        is_again: bool,
    ) {
        let (waiting, refused) = (marking.take_waiting(), marking.take_refused());
        let process = &mut self.relays[relay];
        let waits = |row: &Delivered| {
            let same = |other: &Delivered| (other.ticket, &other.id) == (row.ticket, &row.id);
            waiting.iter().chain(&refused).any(same)
        };
        let marked: Vec<_> = rows.iter().filter(|row| !waits(row)).cloned().collect();
        process.marked(&marked);
        process.core.mark_waits(&waiting);
        if let Some(session) = &mut process.session {
            session.owing.extend(waiting);
            if is_again {
                session.paid.add(&marked);
            }
        }
        for row in &refused {
            self.refuse(relay, row);
        }
    }

    /// The aggregate of a row that was published and can't be marked is blocked.
    fn refuse(&mut self, relay: usize, row: &Delivered) {
        let (seq, id) = seq_and_id(row);
        let Some(stub) = self.judge.event(id).map(|event| event.row(row.lsn.0)) else {
            return;
        };
        tell!(self, "row {id}, number {seq}, can't be marked");
        let aggregate = RowFacts::of(&layout(), &stub).aggregate;
        let core = &mut self.relays[relay].core;
        match core.refuse_mark(row, aggregate, "", "it can't be marked") {
            Ok(ticket) => self.note_aside(relay, ticket, stub),
            Err(reason) => self.judge.breaks("L1", reason),
        }
    }

    /// Whether a streamed row was marked by an earlier session, or settled.
    pub fn was_marked(&self, relay: usize, row: &OutboxRow) -> bool {
        let Some(session) = &self.relays[relay].session else {
            return false;
        };
        let Some(record) = &session.record else {
            return false;
        };
        let (seq, id) = (row.seq.unwrap_or(0), id_of(row));
        let is_replayed = row.lsn <= session.replayed_below;
        if self.mutation == Mutation::AbsenceIsEvidence {
            return is_replayed && self.server.unsent(seq, id).is_none();
        }
        let stands = self
            .server
            .rows
            .get(&seq)
            .is_some_and(|event| event.id == id);
        record.has(row) || is_replayed && stands && self.server.unsent(seq, id).is_none()
    }
}
