//! Marks in the rows themselves: a statement that finds its rows or not, and the look that follows.

use super::event::{Event, Flaw, id_of, seq_and_id, seqs_of, text_of};
use super::mutations::Mutation;
use super::seam::not_leader;
use super::world::{World, tell};
use crate::config::Mark;
use crate::core::Delivered;
use crate::mark::evidence::{Snapshot, Unmarked, judge};
use crate::mark::{MarkError, MarkOutcome, Recording, RefusedMark, RowMarks, RowStatement};
use crate::row::{Origin, OutboxRow};

type Reply = Result<MarkOutcome, MarkError>;

/// How far the mark of some rows has come.
#[derive(Default)]
pub struct RowMarking {
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Next {
    #[default]
    Mark,
    Look,
    MarkAgain,
    Judge,
}

impl World {
    /// One statement of a mark: it marks, or looks what became of rows that were not found.
    pub fn advance_rows(
        &mut self,
        statement: &RowStatement,
        marking: &mut RowMarking,
    ) -> Option<Reply> {
        match marking.next {
            Next::Mark => {
                if self.mutation == Mutation::FailedMarkIsPassing
                    && statement.rows.iter().any(|row| self.fails(row))
                {
                    return None;
                }
                let rows = self.leave_locked(&statement.rows, &mut marking.locked);
                let rows = self.leave_failing(rows, &mut marking.refused);
                let Some(marked) = self.mark_rows(statement, &rows) else {
                    return Some(Err(not_leader()));
                };
                marking.next = Next::Look;
                let is_complete = marked == statement.rows.len();
                is_complete.then(|| self.heard(MarkOutcome::default()))
            }
            Next::Look => {
                let stands = |row: &&Delivered| self.stands(row);
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
                match self.mark_rows(statement, &rows) {
                    Some(_) => None,
                    None => Some(Err(not_leader())),
                }
            }
            Next::Judge => self.judge_rows(statement, marking),
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

    /// Whether a statement finds this version of the row.
    fn finds(&self, event: &Event, row: &Delivered) -> bool {
        match row.origin {
            Origin::Table { xmin } if self.mutation != Mutation::MarkHitsAnotherVersion => {
                event.xid == xmin
            }
            _ => true,
        }
    }

    fn stands(&self, row: &Delivered) -> bool {
        let (seq, id) = seq_and_id(row);
        let standing = self.server.unsent(seq, id);
        standing.is_some_and(|event| self.finds(event, row))
    }

    /// Marks what it finds, all in one; says how many, or nothing where the lease is another's.
    pub fn mark_rows(&mut self, statement: &RowStatement, rows: &[Delivered]) -> Option<usize> {
        if !self.may_write(&statement.token) {
            return None;
        }
        self.judge.sync(&self.server);
        let is_found = |row: &&Delivered| {
            let (seq, id) = seq_and_id(row);
            self.stands(row) && self.resists(seq, id).is_none()
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
        if let Recording::Marks(resolved) = statement.recording {
            self.database.marks.note(&found, &[], resolved);
        }
        self.database.marks.paid(&found);
        self.wrote();
        Some(found.len())
    }

    /// What became of the rows, by one look.
    fn judge_rows(&mut self, statement: &RowStatement, marking: &mut RowMarking) -> Option<Reply> {
        let snapshot = Snapshot::parse(&self.server.printed_snapshot())?;
        let mut gone = Vec::new();
        for row in &statement.rows {
            if marking.locked.contains(row) || marking.refused.contains(row) {
                continue;
            }
            let stands = self.stands(row);
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
            return Some(Err(not_leader()));
        }
        let mut waiting = std::mem::take(&mut marking.waiting);
        waiting.append(&mut marking.locked);
        if let Recording::Marks(resolved) = statement.recording {
            self.database.marks.note(&gone, &waiting, resolved);
        }
        self.database.marks.paid(&gone);
        self.wrote();
        let refused = std::mem::take(&mut marking.refused);
        let refused = refused.iter().filter_map(|row| self.refusal(row)).collect();
        Some(self.heard(MarkOutcome { waiting, refused }))
    }

    /// What is told of a row that can't be marked; nothing of one that a crash lost.
    fn refusal(&self, row: &Delivered) -> Option<RefusedMark> {
        let event = self.judge.event(seq_and_id(row).1)?;
        let aggregate = Some(text_of(event.partition()).to_owned());
        Some(RefusedMark {
            row: row.clone(),
            error: "it can't be marked".to_owned(),
            aggregate_type: aggregate.clone(),
            aggregate_id: aggregate,
        })
    }

    /// Whether a streamed row was marked by an earlier session, or settled.
    pub fn was_marked(&self, marks: &RowMarks, row: &OutboxRow) -> bool {
        let Some((record, below)) = marks.recorded() else {
            return false;
        };
        let (seq, id) = (row.seq.unwrap_or(0), id_of(row));
        let is_replayed = row.lsn <= below;
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

    /// A row that nobody but the table could tell of is kept whole.
    pub fn put_aside_whole(&mut self, row: &OutboxRow) {
        self.judge.put_aside(id_of(row));
    }
}
