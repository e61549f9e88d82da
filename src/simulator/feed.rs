//! The way down: batches are screened for repetitions, and rows are offered to the core.

use super::broker::Outgoing;
use super::event::{Event, id_of, version_of};
use super::mutations::Mutation;
use super::relay::Told;
use super::session::{End, Session, Source};
use super::world::{World, tell};
use crate::config::{FaultPolicy, Mark};
use crate::core::Ticket;
use crate::core::{Answered, Delivered, Offer, RowFacts};
use crate::mark::ledger::Meaning;
use crate::relay::Phase;
use crate::row::OutboxRow;
use crate::source::Batch;

impl World {
    /// Takes the next batch, without the rows that went out before.
    pub fn take_batch(&mut self, relay: usize) -> Option<End> {
        let has_read_all = self.has_read_all(relay);
        let session = self.relays[relay].session.as_mut()?;
        if !session.cursor.is_empty() || !session.feeds() || has_read_all {
            return None;
        }
        if session.lost.is_some() && self.rng.bool() {
            return Some(End::Lost);
        }
        let mut batch = session.batches.pop_front()?;
        if let Some(ledger) = &mut session.ledger
            && session.phase != Phase::CatchUp
        {
            ledger.note_rolled_back(&batch.rolled_back);
            session.rolled_back.extend(&batch.rolled_back);
        }
        self.screen(relay, &mut batch);
        let session = self.relays[relay].session.as_mut()?;
        let highest = batch.rows.iter().filter_map(|row| row.seq).max();
        session.top = session.top.max(highest.unwrap_or(0));
        session.cursor.take(batch);
        None
    }

    fn screen(&mut self, relay: usize, batch: &mut Batch) {
        let Some(session) = &self.relays[relay].session else {
            return;
        };
        let marked: Vec<bool> = match session.is_stream() {
            true => batch
                .rows
                .iter()
                .map(|row| self.was_marked(relay, row))
                .collect(),
            false => vec![false; batch.rows.len()],
        };
        let process = &mut self.relays[relay];
        let Some(session) = &mut process.session else {
            return;
        };
        let paid: Vec<bool> = batch
            .rows
            .iter()
            .map(|row| session.paid.take(row))
            .collect();
        let mut repeated = Vec::with_capacity(batch.rows.len());
        for ((row, was_marked), is_paid) in batch.rows.iter().zip(marked).zip(paid) {
            let seq = row.seq.unwrap_or(0);
            let mut is_known = match session.phase {
                Phase::Replay(_) => process.core.was_sent(row),
                _ => process.core.was_in_flight(row) || process.core.is_kept(row),
            };
            is_known |= was_marked || is_paid || session.held.contains(&id_of(row));
            let is_owed =
                |owed: &Delivered| owed.seq == row.seq && Some(&owed.id) == row.id.as_ref();
            is_known |= session.owed().any(is_owed);
            if session.is_stream() {
                let meaning = session.ledger.as_ref().map(|l| l.meaning(seq, row.lsn));
                is_known |= match meaning {
                    Some(Meaning::Sent) => true,
                    Some(Meaning::Ask { .. }) => self.database.is_sent(seq),
                    Some(Meaning::Reused) => {
                        let text = format!("number {seq} is called another row's");
                        self.judge.breaks("generation", text);
                        true
                    }
                    Some(Meaning::New) | None => false,
                };
                is_known |= process.read_before.has(row);
            } else if session.mark == Mark::None {
                process.read_before.note(row);
            }
            repeated.push(is_known);
        }
        batch.remove(&repeated);
    }

    /// Feeds rows until one has to wait or the batch ends.
    pub fn feed_rows(&mut self, relay: usize) -> Option<End> {
        loop {
            let process = &mut self.relays[relay];
            let session = process.session.as_mut()?;
            if let Some(lsn) = session.cursor.boundary_reached() {
                process.core.boundary(lsn);
            }
            if !session.feeds() {
                break;
            }
            let mended = &self.broker.mended;
            let judge = &self.judge;
            let encode = |row: &OutboxRow| {
                let id = id_of(row);
                let event = judge.event(id);
                event.map_or_else(
                    || Ok(super::event::topic(0).clone()),
                    |event| event.encoded(mended.contains(&id)),
                )
            };
            let Some((row, encoded)) = session.cursor.next(encode) else {
                break;
            };
            let facts = RowFacts::of(&super::event::layout(), &row);
            match process.core.offer(&facts, encoded.as_ref()) {
                Offer::Publish(ticket) => self.publish(relay, ticket, &row),
                Offer::Aside(ticket) => self.note_aside(relay, ticket, row),
                Offer::AtFault { ticket, .. } => {
                    if self.setting.policy == FaultPolicy::Continue {
                        self.judge.excuse(id_of(&row));
                    }
                    self.note_aside(relay, ticket, row);
                }
                Offer::Halt(reason) => {
                    self.judge.breaks("L1", reason);
                    return None;
                }
                Offer::Ask(ticket) => {
                    session.rows.insert(ticket, row);
                }
                Offer::Wait => {
                    session.cursor.wait(row, encoded);
                    break;
                }
            }
            self.relays[relay].session.as_mut()?.cursor.row_left();
        }
        let process = &mut self.relays[relay];
        let questions = process.core.take_questions();
        let questions = (questions.urgent.into_iter())
            .chain(questions.usual)
            .chain(questions.watched);
        process.told.extend(questions.map(Told::Asked));
        self.feed_swept(relay);
        self.caught_up(relay)
    }

    /// Sends or puts aside the rows that have heard of their topic; now and then they have waited for too long.
    pub fn feed_answered(&mut self, relay: usize) {
        let process = &mut self.relays[relay];
        if process.core.asking() > 0 && self.rng.u8(..40) == 0 {
            process.core.give_up_asking();
        }
        let answered = process.core.take_answered(|_| None);
        for (ticket, answer) in answered {
            let session = self.relays[relay].session.as_mut();
            let Some(row) = session.and_then(|session| session.rows.remove(&ticket)) else {
                continue;
            };
            match answer {
                Answered::Publish => self.publish(relay, ticket, &row),
                Answered::Aside => self.note_aside(relay, ticket, row),
            }
        }
    }

    fn publish(&mut self, relay: usize, ticket: Ticket, row: &OutboxRow) {
        let id = id_of(row);
        let Some(event) = self.judge.event(id).map(|event| Event {
            version: version_of(row),
            ..event
        }) else {
            let text = format!("row {id} is handed over and was lost in a crash");
            return self.judge.breaks("S1", text);
        };
        tell!(self, "relay {relay} hands row {id} over, ticket {ticket}");
        self.relays[relay].found.remove(&id);
        if let Some(before) =
            self.judge
                .passes_found(event, &self.relays[relay].found, &self.server)
        {
            let text = format!("row {id} passes row {before}, which was found missed");
            self.judge.breaks("S4", text);
        }
        let Some(producer) = self.relays[relay].producer else {
            return;
        };
        self.broker.send(producer, Outgoing { ticket, event });
        if self.mutation == Mutation::MarkBeforeAck {
            self.relays[relay].core.delivered(&[ticket]);
        }
    }

    pub fn note_aside(&mut self, relay: usize, ticket: Ticket, row: OutboxRow) {
        tell!(
            self,
            "relay {relay} puts row {} aside, ticket {ticket}",
            id_of(&row)
        );
        let process = &mut self.relays[relay];
        process.read_before.forget(row.seq);
        process.found.remove(&id_of(&row));
        if let Some(session) = &mut process.session {
            if matches!(session.source, Source::Pages(_)) {
                session.held.insert(id_of(&row));
            }
            session.rows.insert(ticket, row);
        }
    }

    /// The defect of a sweep that goes on beside the stream.
    fn feed_swept(&mut self, relay: usize) {
        let process = &mut self.relays[relay];
        let Some(session) = &mut process.session else {
            return;
        };
        if !session.cursor.is_empty() {
            return;
        }
        let Some(row) = session.swept.pop_front() else {
            return;
        };
        let facts = RowFacts::of(&super::event::layout(), &row);
        let topic = self
            .judge
            .event(id_of(&row))
            .map(|event| event.encoded(true));
        let Some(Ok(topic)) = topic else { return };
        if let Offer::Publish(ticket) = process.core.offer(&facts, Ok(&topic)) {
            self.publish(relay, ticket, &row);
        }
    }

    fn has_read_all(&self, relay: usize) -> bool {
        let is_read =
            |session: &Session| session.phase != Phase::Steady && session.cursor.caught_up();
        let is_read = self.relays[relay].session.as_ref().is_some_and(is_read);
        is_read && !(self.moves_slot(relay) && self.is_far_behind())
    }

    /// A catch-up or a replay is over when all that stood there was read and is settled.
    fn caught_up(&self, relay: usize) -> Option<End> {
        let process = &self.relays[relay];
        let session = process.session.as_ref()?;
        let is_over =
            self.has_read_all(relay) && session.cursor.is_empty() && process.core.is_settled();
        if !is_over || session.has_statement() {
            return None;
        }
        match &session.phase {
            Phase::CatchUp => Some(End::CaughtUp),
            Phase::Replay(copies) => Some(End::Replayed(copies.entries().to_vec())),
            Phase::Steady => None,
        }
    }
}
