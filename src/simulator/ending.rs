//! How a session ends, and what the supervisor makes of it.

use super::mutations::Mutation;
use super::session::{Loss, Source};
use super::world::{World, tell};
use crate::relay::End;
use crate::relay::machine::Effect;
use crate::relay::supervise::Attempt;
use crate::relay::supervise::verdict::{NextStep, reason, verdict};

impl World {
    /// Ends a session, and draws the consequences that outlive it.
    pub fn end_session(&mut self, relay: usize, end: End) {
        tell!(self, "the session of relay {relay} ends: {end:?}");
        let was_recorded = self.finish_record(relay);
        let process = &mut self.relays[relay];
        let Some(mut session) = process.session.take() else {
            return;
        };
        process.left_replaying = session.replays().to_vec();
        if let Some(marking) = session.marking.take()
            && !marking.is_answered
        {
            self.late.push(marking.statement);
        }
        let catches_up = session.is_catch_up();
        let mut effects = Vec::new();
        process.memory = Some(session.machine.leave(was_recorded, &mut effects));
        for effect in effects {
            if let Effect::Confirm(lsn) = effect {
                session.confirm = session.confirm.max(lsn.0);
            }
        }
        let is_stopped = matches!(end, End::Stopped);
        let is_late = is_stopped && session.stop_until.is_some_and(|until| self.now >= until);
        let is_told = session.lost.is_none() && !matches!(end, End::Deposed);
        let is_stream = matches!(session.source, Source::Stream(_));
        self.leave_source(
            session.connection,
            (is_told && is_stream).then_some(session.confirm),
        );
        if is_late {
            self.grant_rows(relay, catches_up);
        }
        self.relays[relay].left_in_order = is_stopped && !is_late;
        let is_in_order = is_stopped && is_told && is_stream && !is_late;
        if !self.setting.has_marks() && !is_in_order {
            self.grant_without_marks(catches_up);
            self.grant_replay(relay);
        }
        if let (Mutation::NumbersOutliveCrash, Source::Numbers(turns)) =
            (self.mutation, session.source)
            && session.lost == Some(Loss::Server)
        {
            self.relays[relay].learned = Some(turns);
        }
        self.follow(relay, end);
    }

    /// What the supervisor makes of a session's end.
    fn follow(&mut self, relay: usize, end: End) {
        let process = &mut self.relays[relay];
        if let Some(successor) = process.successor.take() {
            self.end_in_broker(successor);
        }
        let process = &mut self.relays[relay];
        let replayed = process.memory_mut().replayed.take_marked();
        process.carry_over.replayed.extend(replayed);
        process.carry_over.follow(&end, self.setting.mark);
        match end {
            End::Deposed => self.depose(relay),
            _ => self.relays[relay].memory_mut().core.source_ended(),
        }
        let attempt = Attempt::Ended(end);
        match verdict(&attempt, self.setting.mark) {
            NextStep::Stop if !self.relays[relay].is_stopping => {
                self.judge.breaks("L1", "nobody asked to stop".to_owned());
            }
            NextStep::Halt => self.judge.breaks("L1", reason(&attempt)),
            _ => {}
        }
    }

    /// The last confirmation, which an end in order brings to the server.
    fn leave_source(&mut self, connection: u64, confirm: Option<u64>) {
        if let Some(lsn) = confirm {
            self.confirm_lsn(lsn, connection);
        }
        if let Some(slot) = &mut self.database.slot
            && slot.reader == Some(connection)
        {
            slot.reader = None;
        }
    }

    /// The connection is gone; what it asked for may take effect all the same.
    pub fn abandon_statements(&mut self, relay: usize) {
        let Some(session) = &mut self.relays[relay].session else {
            return;
        };
        if let Some(marking) = &mut session.marking
            && !marking.is_answered
        {
            marking.is_answered = true;
            self.late.push(marking.statement.clone());
        }
        if let Some(recording) = &mut session.recording {
            recording.is_answered = true;
        }
    }
}
