//! What a running session shows: its status and gauges, once a second.

use std::time::Duration;

use tracing::{info, warn};

use super::machine::{End, Failing, InSight, Input, Phase, Wait};
use super::outage::{Said, Seen};
use super::{Relay, Run};
use crate::core::{OTHERS, TopicPartition};
use crate::mark::{MarkError, Marks};
use crate::observe::status::{
    HeldRows, HeldTopic, InFlight, LEASE_RAN_OUT, Role, State, Timestamp, because,
};
use crate::state::hold::Requests;
use crate::state::lease::since_boot;

/// Blocked aggregates and held topics that the status names; metrics count all of them.
const HELD_SHOWN_MAX: usize = 100;
/// How long marks may fail before the status says so; within five seconds all in all.
const FAILING_IS_TOLD_AFTER: Duration = Duration::from_secs(3);

impl Run<'_> {
    /// Takes a second that has passed, and shows where the session stands.
    pub(super) async fn pass_second(&mut self, on: Timestamp) -> Option<End> {
        self.relay.status.beat();
        let end = self.take(Input::SecondPassed(on)).await;
        if end.is_some() {
            return end;
        }
        let seen = self.machine.memory().in_sight();
        self.relay.show_broker(seen);
        self.report(seen);
        self.ask_for_lag();
        self.ticks += 1;
        self.renew_producer().await
    }

    /// Writes down where the session stands.
    fn report(&mut self, seen: InSight) {
        let has_progress = seen.delivered_rows != self.delivered_before;
        self.delivered_before = seen.delivered_rows;
        let (state, reason) = self.state(seen.wait, has_progress);
        let core = &self.machine.memory().core;
        let held = core.held().aggregates().map(|(_, held)| HeldRows {
            aggregate_type: held.aggregate_type.clone(),
            event_id: held.row.to_string(),
            rows: held.rows,
            reason: held.error.clone(),
        });
        let held: Vec<_> = held.take(HELD_SHOWN_MAX).collect();
        let (mut blocked, mut blocked_rows) = (0, 0);
        for (_, held) in core.held().aggregates() {
            (blocked, blocked_rows) = (blocked + 1, blocked_rows + held.rows);
        }
        let (topics, topics_left_out) = self.held_topics();
        let rows_of_topics = core.held().topics().map(|(_, hold)| hold.rows).sum();
        let in_flight = InFlight {
            rows: core.rows() as u64,
            bytes: core.bytes() as u64,
        };
        let confirmed = core.confirmable();
        let server = self.source.server_lsn();
        let lag_bytes = confirmed.map(|confirmed| server.0.saturating_sub(confirmed.0));
        let lag_bytes = self.source.slot_lag_bytes().or(lag_bytes);
        let sent_seq = match self.machine.marks() {
            Marks::Ledger(ledger) => ledger.tail().map(|tail| tail.seq),
            Marks::Rows(_) | Marks::None => None,
        };
        let holes_open = self
            .is_turn_of_lag()
            .then(|| self.machine.holes_open())
            .flatten();
        let is_draining = self.machine.is_draining();
        self.relay.status.update(|status| {
            (status.held, status.held_topics, status.in_flight) = (held, topics, in_flight);
            status.blocked_aggregates = Some(blocked);
            status.blocked_rows = Some(blocked_rows);
            status.held_topics_left_out = topics_left_out;
            status.held_topic_rows = Some(rows_of_topics);
            status.position.confirmed_lsn = confirmed.map(|lsn| lsn.to_string());
            status.position.sent_seq = sent_seq;
            status.lag.bytes = lag_bytes;
            status.holes_open = holes_open.or(status.holes_open);
            if !is_draining {
                (status.role, status.state) = (Role::Leader, state);
                status.reason = reason;
            }
        });
    }

    /// Some of the topics that are held, those with most rows first, and how many more there are.
    fn held_topics(&self) -> (Vec<HeldTopic>, u64) {
        let held = self.machine.memory().core.held();
        let mut holds: Vec<_> = held.topics().collect();
        holds.sort_by(|(name, hold), (other_name, other)| {
            other.rows.cmp(&hold.rows).then(name.cmp(other_name))
        });
        let among_others = held.topics_among_others();
        let shown = holds.iter().take(HELD_SHOWN_MAX).map(|(topic, hold)| {
            let is_one = TopicPartition::parse(topic).is_none() && **topic != *OTHERS;
            HeldTopic {
                topic: topic.to_string(),
                rows: hold.rows,
                reason: hold.reason.clone(),
                command: self.relay.remedy(topic, hold).filter(|_| is_one),
            }
        });
        let shown: Vec<_> = shown.collect();
        let left_out = holds.len() - shown.len() + among_others;
        (shown, left_out as u64)
    }

    pub(super) fn take_requests(&self, answer: Result<Requests, MarkError>) -> Input {
        let Ok(requests) = answer else {
            return Input::Requested {
                is_asked_for: false,
            };
        };
        self.relay
            .status
            .update(|status| status.dead_letters = Some(requests.dead_letters));
        Input::Requested {
            is_asked_for: requests.is_asked_for,
        }
    }

    /// Marks that have failed so long that it must be said.
    fn failing_long(&self) -> Option<&Failing> {
        let now = self.relay.clock.now();
        let failing = self.machine.failing();
        failing.filter(|failing| now.saturating_sub(failing.since) >= FAILING_IS_TOLD_AFTER)
    }

    /// Whether rows that are committed now go out now, and why not.
    fn state(&self, wait: Option<Wait>, has_progress: bool) -> (State, String) {
        let epoch = self.machine.terms().token.epoch;
        let lease = self.lease.borrow();
        if !lease.may_publish(epoch) {
            let reason = because(LEASE_RAN_OUT, lease.last_error.as_deref());
            return (State::Waiting, reason);
        }
        if let Some(failing) = self.failing_long() {
            let reason = format!("rows can't be marked as sent: {}", failing.error);
            return (State::Waiting, reason);
        }
        match wait {
            None if self.relay.outages.is_away()
                && self.machine.memory().core.sent() > 0
                && !has_progress =>
            {
                let error = self.relay.producers.broker_error();
                let refusal = self.relay.producers.refusal();
                let reason = because("Kafka acknowledges nothing", refusal.as_deref());
                let reason =
                    error.map_or(reason, |error| format!("Kafka does not answer: {error}"));
                (State::Waiting, reason)
            }
            None => self.state_of_topics(),
            Some(Wait::ForSome(since)) => {
                let why = self.relay.producers.refusal();
                let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
                let reason =
                    format!("rows that were sent at {since} wait for Kafka{why}; others flow");
                (State::Publishing, reason)
            }
            Some(Wait::ForAnything(since)) => {
                let error = self
                    .relay
                    .producers
                    .refusal()
                    .or(self.relay.producers.broker_error());
                let error = error.map(|error| format!(": {error}")).unwrap_or_default();
                let reason = format!("Kafka has acknowledged nothing since {since}{error}");
                (State::Waiting, reason)
            }
        }
    }

    /// The same where nothing waits for an answer: rows may wait for their topics, all of them.
    fn state_of_topics(&self) -> (State, String) {
        let held = self.machine.memory().core.held();
        let rows: u64 = held.topics().map(|(_, hold)| hold.rows).sum();
        if rows == 0 || held.available().next().is_some() {
            return (State::Publishing, self.catching_up().to_owned());
        }
        let reason = format!(
            "none of the topics can be written: {rows} rows wait for them; `held_topics` in /status says why"
        );
        (State::Waiting, reason)
    }

    /// What a session does that reads the table before the stream.
    fn catching_up(&self) -> &'static str {
        match (&self.machine.terms().phase, self.machine.has_caught_up()) {
            (Phase::CatchUp, false) => "reading rows that existed before the slot",
            (Phase::CatchUp, true) => {
                "the table is read, and the slot moves behind it as far as no older transaction is open"
            }
            (Phase::Replay(_) | Phase::Steady, _) => "",
        }
    }
}

impl Relay {
    /// Shows whether Kafka answers; says so when that changes.
    pub(super) fn show_broker(&mut self, seen: InSight) {
        if self.producers.working().is_none() {
            return;
        }
        let silence = match seen.wait {
            Some(Wait::ForAnything(since)) => {
                let nothing = format!("it has acknowledged nothing since {since}");
                Some(because(&nothing, self.producers.refusal().as_deref()))
            }
            Some(Wait::ForSome(_)) | None => None,
        };
        let error = self.producers.broker_error().or(silence);
        let seen = Seen {
            is_troubled: error.is_some(),
            is_awaited: seen.is_awaited,
            delivered_rows: seen.delivered_rows,
        };
        let was_away = self.outages.is_away();
        let said = self.outages.look(seen, since_boot());
        if !self.outages.is_away() {
            self.status.broker_answers();
        } else if let Some(error) = &error {
            self.status.update(|status| {
                status.kafka.is_up = Some(false);
                status.kafka.error = Some(error.clone());
            });
            if !was_away {
                self.status.failed(error.as_str());
            }
        }
        match said {
            Some(Said::Away { times }) => {
                let error = error.unwrap_or_default();
                warn!(times, error, "Kafka does not answer; rows wait in order");
            }
            Some(Said::Back { lasted }) => {
                let elapsed_ms = lasted.as_millis() as u64;
                info!(elapsed_ms, "Kafka answers again");
            }
            None => {}
        }
    }
}
