//! The way back: statements that mark rows or record what was put aside, and what becomes of them.

use std::sync::Arc;

use super::database::Reply;
use super::event::layout;
use super::mutations::Mutation;
use super::row_marks::{RowMark, RowMarking};
use super::session::End;
use super::world::{World, tell};
use crate::core::{Delivered, HeldRow};
use crate::mark::FencingToken;
use crate::mark::ledger::Checkpoint;
use crate::relay::Phase;
use crate::relay::machine::holds::{record, whole};
use crate::state::hold::{CopyPolicy, HoldCheckpoint};

/// A mark under way.
pub struct Marking {
    pub rows: Vec<Delivered>,
    pub work: Work,
    /// The mark of these rows was tried before.
    pub is_again: bool,
    /// The server has executed it, or never will on this connection.
    pub is_answered: bool,
    reply: Option<Reply>,
}

/// Which statement marks.
pub enum Work {
    Ledger(Arc<Checkpoint>),
    Rows(RowMarking),
}

impl Work {
    /// What may still be executed when nobody waits for it any more.
    pub fn late(&self) -> LateWork {
        match self {
            Self::Ledger(checkpoint) => LateWork::Ledger(checkpoint.clone()),
            Self::Rows(marking) => LateWork::Rows(marking.statement()),
        }
    }
}

/// Recording what was put aside, under way.
pub struct HoldWriter {
    pub asides: Vec<HeldRow>,
    keep: HoldCheckpoint,
    pub is_answered: bool,
    reply: Option<Reply>,
}

/// A mark whose relay has given its connection up.
pub struct Late(pub LateWork);

pub enum LateWork {
    Ledger(Arc<Checkpoint>),
    Rows(Arc<RowMark>),
}

impl World {
    pub fn start_mark(&mut self, relay: usize) {
        let process = &mut self.relays[relay];
        let Some(session) = &mut process.session else {
            return;
        };
        if !self.setting.has_marks() {
            return;
        }
        if session.marking.is_some() {
            return;
        }
        let is_again = !session.owing.is_empty() && self.rng.bool();
        let is_due = session.is_draining || process.core.is_pressed() || self.rng.u8(..3) == 0;
        let rows = match is_again {
            true => std::mem::take(&mut session.owing),
            false if process.core.unmarked() == 0 || !is_due => return,
            false => process.core.take_delivered(crate::core::MarkSelection::All),
        };
        let work = match &session.ledger {
            Some(ledger) => {
                let mut checkpoint = ledger.checkpoint(&rows);
                if self.mutation == Mutation::RolledBackCountedAsSent
                    && let Some(row) = checkpoint.segments.values_mut().next()
                {
                    row.sent.extend(&session.rolled_back.take());
                }
                Work::Ledger(Arc::new(checkpoint))
            }
            None => match self.row_mark(relay, &rows, is_again) {
                Some(mark) => Work::Rows(RowMarking::new(mark)),
                None => return,
            },
        };
        let process = &mut self.relays[relay];
        if self.mutation == Mutation::ConfirmBeforeMark {
            process.core.marked(&rows);
        }
        let marking = Some(Marking {
            rows,
            work,
            is_again,
            is_answered: false,
            reply: None,
        });
        if let Some(session) = &mut process.session {
            session.marking = marking;
        }
    }

    /// The server executes the mark, then the relay hears of it.
    pub fn advance_mark(&mut self, relay: usize) -> Option<End> {
        let session = self.relays[relay].session.as_ref()?;
        let marking = session.marking.as_ref()?;
        if !marking.is_answered {
            self.execute(relay);
            return None;
        }
        if session.lost.is_some() {
            return Some(End::Lost);
        }
        self.take_mark(relay)
    }

    /// One statement of a mark; those of the ledger are one.
    fn execute(&mut self, relay: usize) {
        let session = self.relays[relay].session.as_mut();
        let Some(mut marking) = session.and_then(|session| session.marking.take()) else {
            return;
        };
        marking.reply = match &mut marking.work {
            Work::Ledger(checkpoint) => Some(self.execute_mark(&checkpoint.clone())),
            Work::Rows(rows) => self.advance_rows(rows),
        };
        marking.is_answered = marking.reply.is_some();
        if let Some(session) = &mut self.relays[relay].session {
            session.marking = Some(marking);
        }
    }

    fn take_mark(&mut self, relay: usize) -> Option<End> {
        let process = &mut self.relays[relay];
        let session = process.session.as_mut()?;
        let mut marking = session.marking.take()?;
        match marking.reply {
            Some(Reply::Done) => {
                if let Work::Rows(rows) = &mut marking.work {
                    let is_again = marking.is_again;
                    self.take_row_mark(relay, &marking.rows, rows, is_again);
                    return None;
                }
                if let Some(ledger) = &mut session.ledger {
                    ledger.committed(&marking.rows);
                }
                process.marked(&marking.rows);
                tell!(self, "relay {relay} hears that its mark was committed");
                None
            }
            Some(Reply::NotLeader) => {
                process.core.mark_failed(&marking.rows);
                Some(End::Deposed)
            }
            None if marking.is_again => {
                session.owing.extend(marking.rows);
                None
            }
            None => {
                process.core.mark_failed(&marking.rows);
                None
            }
        }
    }

    pub fn execute_mark(&mut self, checkpoint: &Checkpoint) -> Reply {
        if !self.may_write(&checkpoint.token.clone()) {
            return Reply::NotLeader;
        }
        self.judge.sync(&self.server);
        for row in checkpoint.segments.values() {
            tell!(self, "marked {:?}", row.sent);
            self.judge.marked(&row.sent);
        }
        self.database.mark(checkpoint);
        self.wrote();
        Reply::Done
    }

    /// Every statement checks the lease itself.
    pub fn may_write(&mut self, token: &FencingToken) -> bool {
        let holds = self.database.holds_lease(token);
        let writes = holds || self.mutation == Mutation::LeaseUnchecked;
        if writes && !holds {
            let text = format!("a statement of epoch {} took effect", token.epoch);
            self.judge.breaks("S3", text);
        }
        writes
    }

    pub fn start_keep(&mut self, relay: usize) {
        let process = &mut self.relays[relay];
        let Some(session) = &mut process.session else {
            return;
        };
        if session.hold_writer.is_some() || process.core.aside() == 0 {
            return;
        }
        let asides = process.core.take_aside();
        let keep = HoldCheckpoint {
            token: session.token.clone(),
            generation: 1,
            layout: layout(),
            whole: match session.phase {
                Phase::Replay(_) => CopyPolicy::All,
                _ => whole(session.mark, session.is_stream()),
            },
            entries: Vec::new(),
            kept: Vec::new(),
            mark: None,
        };
        let keep = record(keep, &asides, &session.rows, process.core.held());
        session.hold_writer = Some(HoldWriter {
            asides,
            keep,
            is_answered: false,
            reply: None,
        });
    }

    pub fn advance_keep(&mut self, relay: usize) -> Option<End> {
        let session = self.relays[relay].session.as_ref()?;
        let is_answered = session.hold_writer.as_ref()?.is_answered;
        if !is_answered {
            self.execute_keep(relay);
            return None;
        }
        if session.lost.is_some() {
            return Some(End::Lost);
        }
        self.take_keep(relay)
    }

    /// One statement, whose answer can be lost.
    fn execute_keep(&mut self, relay: usize) {
        let Some(session) = &mut self.relays[relay].session else {
            return;
        };
        let Some(mut keeping) = session.hold_writer.take() else {
            return;
        };
        keeping.is_answered = true;
        keeping.reply = Some(Reply::NotLeader);
        if self.may_write(&keeping.keep.token.clone()) {
            for aside in &keeping.asides {
                self.judge
                    .put_aside(aside.id.to_string().parse().unwrap_or(0));
            }
            self.database.keep(&keeping.keep, &self.server);
            self.database.block(&keeping.keep);
            let is_heard = self.rng.u8(..12) > 0;
            keeping.reply = is_heard.then_some(Reply::Done);
            self.wrote();
            let numbers: Vec<_> = keeping
                .asides
                .iter()
                .filter_map(|aside| aside.seq)
                .collect();
            tell!(
                self,
                "recorded {numbers:?} as put aside, the relay hears of it: {is_heard}"
            );
        }
        if let Some(session) = &mut self.relays[relay].session {
            session.hold_writer = Some(keeping);
        }
    }

    fn take_keep(&mut self, relay: usize) -> Option<End> {
        let process = &mut self.relays[relay];
        let session = process.session.as_mut()?;
        let keeping = session.hold_writer.take()?;
        match keeping.reply {
            Some(Reply::Done) => {
                process.core.kept(&keeping.asides);
                if let Some(ledger) = &mut session.ledger {
                    ledger.note_kept(&keeping.asides.iter().filter_map(|a| a.seq).collect());
                }
                for aside in &keeping.asides {
                    session.rows.remove(&aside.ticket);
                }
                None
            }
            Some(Reply::NotLeader) => Some(End::Deposed),
            None => {
                process.core.keep_failed(keeping.asides);
                None
            }
        }
    }

    /// A session that ends aborts its mark, and waits a while for what it records as put aside.
    pub fn finish_statements(&mut self, relay: usize) {
        let is_connected = self.relays[relay]
            .session
            .as_ref()
            .is_some_and(|session| session.lost.is_none());
        if is_connected && self.rng.u8(..8) > 0 {
            for _ in 0..2 {
                let _: Option<End> = self.advance_keep(relay);
            }
        }
        let process = &mut self.relays[relay];
        let Some(session) = &mut process.session else {
            return;
        };
        process.core.mark_failed(&session.owing);
        if let Some(marking) = session.marking.take() {
            process.core.mark_failed(&marking.rows);
            if !marking.is_answered {
                self.late.push(Late(marking.work.late()));
            }
        }
    }

    /// Compacts the ledger, and compares complete segments with the table.
    pub fn maintain(&mut self, relay: usize) -> Option<End> {
        let session = self.relays[relay].session.as_mut()?;
        if session.lost.is_some() {
            return Some(End::Lost);
        }
        let ledger = session.ledger.as_ref()?;
        let (token, audits) = (session.token.clone(), ledger.audits("outbox", "seq"));
        if !self.may_write(&token) {
            return Some(End::Deposed);
        }
        self.database.compact();
        self.wrote();
        for audit in audits {
            let numbers = crate::mark::ledger::numbers_of(audit.segment);
            let standing = self.server.rows.range(numbers).map(|(seq, _)| *seq);
            let missed = audit.missed(&standing.collect());
            if !missed.is_empty() {
                tell!(
                    self,
                    "the audit of segment {} misses {missed:?}",
                    audit.segment
                );
                return Some(End::Reread);
            }
            tell!(self, "segment {} is closed", audit.segment);
            self.database.close(audit.segment);
            let session = self.relays[relay].session.as_mut()?;
            session.ledger.as_mut()?.closed(audit.segment);
        }
        None
    }
}
