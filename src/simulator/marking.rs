//! The statements of a session under way: the server executes them, then the relay hears of it, or never does.

use std::collections::VecDeque;
use std::sync::Arc;

use super::mutations::Mutation;
use super::row_marks::RowMarking;
use super::seam::{lost, not_leader};
use super::world::{World, tell};
use crate::mark::ledger::Checkpoint;
use crate::mark::{FencingToken, MarkError, MarkOutcome, Statement};
use crate::postgres::{PostgresError, ServerError};
use crate::relay::machine::{Connection, Input};
use crate::state::hold::HoldCheckpoint;

/// A mark under way.
pub struct Marking {
    pub statement: Arc<Statement>,
    /// How far it has come, where it is more than one statement.
    rows: RowMarking,
    /// The server has executed it, or never will on this connection.
    pub is_answered: bool,
    reply: Option<Result<MarkOutcome, MarkError>>,
}

/// Recording what was put aside, under way.
pub struct Recording {
    checkpoint: HoldCheckpoint,
    pub is_answered: bool,
    reply: Option<Result<u64, MarkError>>,
}

impl World {
    /// Sends the statement that marks.
    pub fn begin_mark(
        &mut self,
        relay: usize,
        statement: Arc<Statement>,
        inputs: &mut VecDeque<Input>,
    ) {
        if self.mutation == Mutation::ConfirmBeforeMark {
            self.late.push(statement);
            let outcome = Ok(MarkOutcome::default());
            return inputs.push_back(Input::Marked(outcome, Connection::Open));
        }
        if let Some(session) = &mut self.relays[relay].session {
            session.marking = Some(Marking {
                statement,
                rows: RowMarking::default(),
                is_answered: false,
                reply: None,
            });
        }
    }

    /// The server executes the mark, then the relay hears of it.
    pub fn advance_mark(&mut self, relay: usize) {
        let Some(session) = &mut self.relays[relay].session else {
            return;
        };
        let Some(mut marking) = session.marking.take() else {
            return;
        };
        if marking.is_answered {
            let is_lost = session.lost.is_some();
            let (result, connection) = match marking.reply {
                Some(reply) if !is_lost => (reply, Connection::Open),
                _ => (Err(lost()), Connection::Closed),
            };
            return self.give(relay, Input::Marked(result, connection));
        }
        marking.reply = match &*marking.statement.clone() {
            Statement::Ledger(checkpoint) => Some(self.execute_mark(checkpoint)),
            Statement::Rows(statement) => self.advance_rows(statement, &mut marking.rows),
        };
        marking.is_answered = marking.reply.is_some();
        if let Some(session) = &mut self.relays[relay].session {
            session.marking = Some(marking);
        }
    }

    pub fn execute_mark(&mut self, checkpoint: &Checkpoint) -> Result<MarkOutcome, MarkError> {
        if !self.may_write(&checkpoint.token) {
            return Err(not_leader());
        }
        self.judge.sync(&self.server);
        for row in checkpoint.segments.values() {
            tell!(self, "marked {:?}", row.sent);
            self.judge.marked(&row.sent);
        }
        self.database.mark(checkpoint);
        self.wrote();
        self.heard(MarkOutcome::default())
    }

    /// The answer to a statement that took effect, which may be lost.
    pub fn heard<T>(&mut self, answer: T) -> Result<T, MarkError> {
        match self.rng.u8(..16) {
            0 => Err(canceled()),
            _ => Ok(answer),
        }
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

    /// Sends the statement that records what was put aside.
    pub fn begin_record(
        &mut self,
        relay: usize,
        mut checkpoint: HoldCheckpoint,
        inputs: &mut VecDeque<Input>,
    ) {
        // A table of hashes gives them in another order each time.
        checkpoint
            .entries
            .sort_by(|one, other| (one.row_seq, &one.row_id).cmp(&(other.row_seq, &other.row_id)));
        if self.mutation == Mutation::HeldBeforeRecord {
            return inputs.push_back(Input::Recorded(Ok(0), Connection::Open));
        }
        for entry in &checkpoint.entries {
            let ids = self.judge.ids_of(&entry.held);
            ids.iter().for_each(|id| {
                self.relays[relay].found.remove(id);
            });
        }
        if let Some(session) = &mut self.relays[relay].session {
            session.recording = Some(Recording {
                checkpoint,
                is_answered: false,
                reply: None,
            });
        }
    }

    /// The server executes it, then the relay hears of it.
    pub fn advance_record(&mut self, relay: usize) {
        let Some(session) = &mut self.relays[relay].session else {
            return;
        };
        let Some(recording) = session.recording.take() else {
            return;
        };
        if !recording.is_answered {
            return self.execute_record(relay, recording);
        }
        let (result, connection) = match recording.reply {
            Some(reply) if session.lost.is_none() => (reply, Connection::Open),
            _ => (Err(lost()), Connection::Closed),
        };
        self.give(relay, Input::Recorded(result, connection));
    }

    fn execute_record(&mut self, relay: usize, mut recording: Recording) {
        let checkpoint = &recording.checkpoint;
        recording.is_answered = true;
        recording.reply = Some(Err(not_leader()));
        if self.may_write(&checkpoint.token) {
            for entry in &checkpoint.entries {
                self.judge.put_aside_numbers(&entry.held);
            }
            for kept in &checkpoint.kept {
                self.put_aside_whole(&kept.row);
            }
            self.database.keep(checkpoint, &self.server);
            self.database.block(checkpoint);
            recording.reply = Some(self.heard(0));
            self.wrote();
            tell!(self, "recorded {:?} as put aside", checkpoint.entries);
        }
        if let Some(session) = &mut self.relays[relay].session {
            session.recording = Some(recording);
        }
    }

    /// A session that ends waits a while for what it records as put aside; whether it is known to be recorded.
    pub fn finish_record(&mut self, relay: usize) -> bool {
        let is_connected = self.relays[relay]
            .session
            .as_ref()
            .is_some_and(|session| session.lost.is_none());
        if !is_connected || self.rng.u8(..8) == 0 {
            return false;
        }
        let take = |world: &mut Self| world.relays[relay].session.as_mut()?.recording.take();
        match take(self) {
            Some(recording) if !recording.is_answered => self.execute_record(relay, recording),
            Some(recording) => return matches!(recording.reply, Some(Ok(_))),
            None => return false,
        }
        take(self).is_some_and(|recording| matches!(recording.reply, Some(Ok(_))))
    }
}

/// What a statement says that was canceled, or was not heard to the end.
fn canceled() -> MarkError {
    MarkError::Sql {
        what: "run a statement",
        source: PostgresError::Server(ServerError::new("57014", "canceled")),
    }
}
