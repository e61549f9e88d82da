//! The seam between a session's machine and the world: inputs are made of what happened, effects are carried out.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use super::broker::Outgoing;
use super::event::{Event, encoded, event_of, id_of, topic};
use super::mutations::Mutation;
use super::relay::Told;
use super::world::{World, tell};
use crate::core::Questions;
use crate::mark::Statement;
use crate::mark::ledger::{Audit, numbers_of};
use crate::mark::{MarkError, MarkOutcome};
use crate::observe::status::Timestamp;
use crate::postgres::PostgresError;
use crate::publish::{self, Deliveries};
use crate::relay::End;
use crate::relay::machine::{Connection, Effect, Finding, Input, LeaseInSight, Moment};
use crate::row::OutboxRow;

/// Inputs that follow at once from effects.
type Inputs = VecDeque<Input>;

impl World {
    /// Lets the machine of a relay take what happened, and does what follows from it.
    pub fn give(&mut self, relay: usize, input: Input) {
        let mut inputs = self.forge_inputs(relay, input);
        while let Some(input) = inputs.pop_front() {
            let mut effects = std::mem::take(&mut self.effects);
            self.decide(relay, input, &mut effects);
            self.forge_effects(relay, &mut effects);
            for effect in effects.drain(..) {
                self.carry_out(relay, effect, &mut inputs);
            }
            self.effects = effects;
        }
    }

    fn decide(&mut self, relay: usize, input: Input, effects: &mut Vec<Effect>) {
        let has_moved_slot = !(self.moves_slot(relay) && self.is_far_behind());
        let process = &mut self.relays[relay];
        let Some(session) = &mut process.session else {
            return;
        };
        let (judge, mended) = (&self.judge, &self.broker.mended);
        let encode = |row: &OutboxRow| {
            let id = id_of(row);
            encoded(row, judge.event(id), mended.contains(&id))
        };
        let moment = Moment {
            now: self.now,
            lease: match self.mutation {
                Mutation::LeaseUnheard => LeaseInSight {
                    epoch: Some(session.token.epoch),
                    may_publish: true,
                    shutdown_notices: 0,
                },
                _ => LeaseInSight {
                    epoch: process.keeper.epoch(),
                    may_publish: process.keeper.publishes(self.now),
                    shutdown_notices: 0,
                },
            },
            has_moved_slot,
            is_unanswered: self.broker.is_down,
            encode: &encode,
        };
        session.machine.handle(input, &moment, effects);
    }

    fn carry_out(&mut self, relay: usize, effect: Effect, inputs: &mut Inputs) {
        match effect {
            Effect::Publish(outgoing) => self.publish(relay, outgoing, inputs),
            Effect::Ask(questions) => self.ask(relay, questions),
            Effect::Mark(statement) => self.begin_mark(relay, statement, inputs),
            Effect::Record(checkpoint) => self.begin_record(relay, checkpoint, inputs),
            Effect::Maintain(audits) => {
                inputs.extend(self.maintain(relay, audits));
            }
            Effect::AskForRequests => inputs.push_back(Input::Requested {
                is_asked_for: self.database.is_asked_for(),
            }),
            Effect::StartSuccessor(why) => self.start_successor(relay, why, inputs),
            Effect::TakeOver => self.take_over(relay),
            Effect::GiveUpProducer { within } => self.give_up_producer(relay, within, inputs),
            Effect::ShowFailure(text) => {
                tell!(self, "relay {relay}: {text}");
                let found = std::mem::take(&mut self.relays[relay].called_missed);
                self.relays[relay].found.extend(found);
            }
            Effect::TellHold(topic, hold) => {
                tell!(self, "relay {relay} holds {topic}: {}", hold.reason);
            }
            Effect::Refresh(_) | Effect::AskPosition | Effect::Remove(_) => {}
            Effect::End(end) => self.end(relay, end),
            effect => self.tell_source(relay, effect),
        }
    }

    fn tell_source(&mut self, relay: usize, effect: Effect) {
        let Some(session) = &mut self.relays[relay].session else {
            return;
        };
        match effect {
            Effect::Confirm(lsn) => session.confirm = session.confirm.max(lsn.0),
            Effect::Resolved => session.is_resolved = true,
            Effect::Hold(id) => drop(session.held.insert(id.to_string().parse().unwrap_or(0))),
            Effect::Owe(rows) => session.owed = rows,
            Effect::LookForMissed(progress) => session.looking = Some(progress),
            _ => {}
        }
    }

    fn end(&mut self, relay: usize, end: End) {
        if self.mutation == Mutation::SweepWithoutHold && matches!(end, End::Reread(_)) {
            return self.sweep_without_hold(relay);
        }
        self.end_session(relay, end);
    }

    fn publish(&mut self, relay: usize, outgoing: Vec<publish::Outgoing>, inputs: &mut Inputs) {
        if self.mutation == Mutation::MarkBeforeAck {
            let tickets = outgoing.iter().map(|outgoing| outgoing.ticket).collect();
            inputs.push_back(delivered(tickets));
        }
        for publish::Outgoing {
            ticket,
            record,
            partition,
        } in outgoing
        {
            let (id, version) = event_of(&record);
            let topic = usize::from(record.topic != *topic(0));
            let Some(event) = self.judge.event(id) else {
                let text = format!("row {id} is handed over and was lost in a crash");
                return self.judge.breaks("S1", text);
            };
            let event = Event { version, ..event };
            tell!(self, "relay {relay} hands row {id} over, ticket {ticket}");
            self.relays[relay].found.remove(&id);
            let found = &self.relays[relay].found;
            if let Some(before) = self.judge.passes_found(event, found, &self.server) {
                let text = format!("row {id} passes row {before}, which was found missed");
                self.judge.breaks("S4", text);
            }
            if let Some(producer) = self.relays[relay].producer {
                let outgoing = Outgoing {
                    ticket,
                    event,
                    topic,
                    partition,
                };
                self.broker.send(producer, outgoing);
            }
        }
    }

    fn ask(&mut self, relay: usize, questions: Questions) {
        let told = &mut self.relays[relay].told;
        let Questions {
            usual,
            urgent,
            watched,
        } = questions;
        // A table of hashes gives them in another order each time.
        let mut later: Vec<_> = usual.into_iter().chain(watched).collect();
        later.sort_unstable();
        for topic in urgent.into_iter().chain(later) {
            let is_asked = told
                .iter()
                .any(|told| matches!(told, Told::Asked(asked) if *asked == topic));
            if !is_asked {
                told.push_back(Told::Asked(topic));
            }
        }
    }

    /// Compacts the ledger, and compares complete segments with the table.
    fn maintain(&mut self, relay: usize, audits: Vec<Audit>) -> Option<Input> {
        let session = self.relays[relay].session.as_ref()?;
        if session.lost.is_some() {
            return Some(Input::Maintained(Err(lost()), Connection::Closed));
        }
        let token = session.token.clone();
        if !self.may_write(&token) {
            return Some(Input::Maintained(Err(not_leader()), Connection::Open));
        }
        self.database.compact();
        self.wrote();
        let mut findings = Vec::new();
        for audit in audits {
            let standing = self.server.rows.range(numbers_of(audit.segment));
            let missed = audit.missed(&standing.map(|(seq, _)| *seq).collect());
            tell!(
                self,
                "the audit of segment {} misses {missed:?}",
                audit.segment
            );
            if missed.is_empty() {
                self.database.close(audit.segment);
            }
            findings.push(Finding {
                segment: audit.segment,
                missed,
            });
        }
        Some(Input::Maintained(Ok(findings), Connection::Open))
    }

    fn start_successor(&mut self, relay: usize, why: &str, inputs: &mut Inputs) {
        if self.mutation == Mutation::SuccessorNotAwaited {
            // It works at once, beside what the old one has in flight.
            self.relays[relay].producer = Some(self.broker.start(relay));
            return inputs.push_back(Input::SuccessorFailed);
        }
        tell!(self, "{why}: another producer of relay {relay} starts");
        self.relays[relay].is_outdated = false;
        self.relays[relay].successor = Some(self.broker.start(relay));
        inputs.push_back(Input::SuccessorStarted);
    }

    /// What the old producer would have said is not heard any more.
    fn take_over(&mut self, relay: usize) {
        tell!(self, "the other producer of relay {relay} takes over");
        let process = &mut self.relays[relay];
        let successor = process.successor.take();
        let outdated = std::mem::replace(&mut process.producer, successor);
        process.told.clear();
        if let Some(outdated) = outdated {
            self.end_in_broker(outdated);
        }
    }

    fn give_up_producer(&mut self, relay: usize, within: Duration, inputs: &mut Inputs) {
        tell!(
            self,
            "relay {relay} gives its producer up within {within:?}"
        );
        let most = if within.is_zero() { 4 } else { 12 };
        let delivered = self.last_reports(relay, most);
        // Before anything else happens: whatever ends the session first, its rows are dropped.
        inputs.push_front(Input::ProducerGivenUp {
            end: (delivered.is_some() && self.mutation != Mutation::DropUnheard)
                .then(super::relay::nothing_failed),
            delivered: delivered.into_iter().flatten().collect(),
        });
    }

    fn forge_inputs(&mut self, relay: usize, input: Input) -> Inputs {
        let input = match (self.mutation, input) {
            (Mutation::SettleOutOfOrder, Input::Delivered(Deliveries { tickets, .. })) => {
                let last = tickets.iter().max().copied();
                delivered(last.map_or_else(Vec::new, |last| (0..=last).collect()))
            }
            (Mutation::ReportLost, Input::Delivered(reports)) if reports.tickets.len() > 2 => {
                return Inputs::new();
            }
            (Mutation::OwedUnheard, Input::Marked(Ok(outcome), connection)) => Input::Marked(
                Ok(MarkOutcome {
                    waiting: Vec::new(),
                    ..outcome
                }),
                connection,
            ),
            (Mutation::RefusalUnheard, Input::Marked(Ok(outcome), connection)) => Input::Marked(
                Ok(MarkOutcome {
                    refused: Vec::new(),
                    ..outcome
                }),
                connection,
            ),
            (Mutation::LookUpForgotten, Input::Arrived(mut arrival)) => {
                arrival.known.fill(false);
                Input::Arrived(arrival)
            }
            (Mutation::ResolvedTooEarly, input) => {
                if let Some(session) = &mut self.relays[relay].session {
                    session.is_resolved = true;
                }
                input
            }
            (_, input) => input,
        };
        Inputs::from([input])
    }

    fn forge_effects(&mut self, relay: usize, effects: &mut Vec<Effect>) {
        match self.mutation {
            Mutation::PublishedTwice | Mutation::PublishedOutOfOrder => {
                for effect in effects.iter_mut() {
                    if let Effect::Publish(outgoing) = effect {
                        self.mutation.forge_outgoing(outgoing);
                    }
                }
            }
            Mutation::PassedIsResolved | Mutation::MarkUnrecorded => {
                let passed = self.relays[relay].core().passed();
                for effect in effects.iter_mut() {
                    if let Effect::Mark(statement) = effect {
                        self.mutation.forge_statement(statement, passed);
                    }
                }
            }
            Mutation::RolledBackCountedAsSent => {
                let session = self.relays[relay].session.as_mut();
                for effect in effects.iter_mut() {
                    if let (Effect::Mark(statement), Some(session)) = (effect, &session)
                        && let Some(Statement::Ledger(checkpoint)) =
                            std::sync::Arc::get_mut(statement)
                        && let Some(row) = checkpoint.segments.values_mut().next()
                    {
                        row.sent.extend(&session.rolled_back);
                    }
                }
            }
            Mutation::StopWithinTransaction if self.is_nearly_settled(relay) => {
                effects.push(Effect::End(End::Stopped));
            }
            _ => {}
        }
    }

    /// Without marks a drain is over but for the rest of a transaction.
    fn is_nearly_settled(&self, relay: usize) -> bool {
        let Some(session) = &self.relays[relay].session else {
            return false;
        };
        let core = &session.machine.memory().core;
        session.machine.is_draining()
            && !self.setting.has_marks()
            && core.sent() + core.unmarked() + core.aside() == 0
            && !session.has_statement()
    }

    /// The time on the wall.
    pub fn wall_clock(&self) -> Timestamp {
        Timestamp(SystemTime::UNIX_EPOCH + self.now)
    }
}

/// Reports of these rows.
pub fn delivered(tickets: Vec<u64>) -> Input {
    Input::Delivered(Deliveries { tickets, bytes: 0 })
}

/// What a statement says over a connection that is gone.
pub fn lost() -> MarkError {
    MarkError::Sql {
        what: "run a statement",
        source: PostgresError::Closed,
    }
}

/// What it says when another relay holds the lease.
pub fn not_leader() -> MarkError {
    MarkError::NotLeader {
        outbox: "public.outbox".to_owned(),
    }
}
