//! What a running session shows: its status and gauges, once a second.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::marking::Failing;
use super::outage::{Said, Seen};
use super::stall_detector::{self, Timestamps, Wait};
use super::{End, Phase, Relay, Run};
use crate::core::OTHERS;
use crate::core::{Ticket, TopicPartition};
use crate::kafka::in_plain_words;
use crate::mark::{MarkError, Marks};
use crate::observe::status::{HeldRows, HeldTopic, InFlight, LEASE_RAN_OUT, Role, State, because};
use crate::state::hold::{self, Requests};
use crate::state::lease::since_boot;

/// Blocked aggregates and held topics that the status names; metrics count all of them.
const HELD_SHOWN_MAX: usize = 100;
/// How long marks may fail before the status says so; within five seconds all in all.
const FAILING_IS_TOLD_AFTER: Duration = Duration::from_secs(3);
/// The core judges an outage by half minutes.
const HALF_MINUTE_TICKS: u32 = 30;

const TOO_FEW_REPLICAS: &str = "NotEnoughReplicas: fewer replicas are in sync than `min.insync.replicas` of the topic asks for";

impl Run<'_> {
    /// Writes down where the session stands.
    pub(super) fn report(&mut self) {
        self.relay.status.beat();
        let wait = self.relay.look_at_waits();
        self.relay.ask_if_silent();
        let has_progress = self.relay.delivered_rows != self.delivered_before;
        self.delivered_before = self.relay.delivered_rows;
        let (state, reason) = self.state(wait, has_progress);
        let core = &self.relay.core;
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
        let server = self.session.source.server_lsn();
        let lag_bytes = confirmed.map(|confirmed| server.0.saturating_sub(confirmed.0));
        let lag_bytes = self.session.source.slot_lag_bytes().or(lag_bytes);
        let sent_seq = match &self.session.marks {
            Marks::Ledger(ledger) => ledger.tail().map(|tail| tail.seq),
            Marks::Rows(_) | Marks::None => None,
        };
        let holes_open = self.is_turn_of_lag().then(|| self.holes_open()).flatten();
        let is_draining = self.drain_until.is_some();
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
        self.ask_for_lag();
        self.ask_for_requests();
        self.ticks += 1;
        if self.ticks.is_multiple_of(HALF_MINUTE_TICKS) {
            self.relay.core.half_minute_passed();
        }
    }

    /// Some of the topics that are held, those with most rows first, and how many more there are.
    fn held_topics(&self) -> (Vec<HeldTopic>, u64) {
        let held = self.relay.core.held();
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

    /// Asks, beside everything else, whether somebody wants something released or replayed.
    fn ask_for_requests(&mut self) {
        let is_busy = self.requests.is_some() || self.drain_until.is_some();
        if is_busy || matches!(self.session.phase, Phase::Replay(_)) {
            return;
        }
        let (sql, outbox) = (
            Arc::clone(&self.session.sql),
            self.session.token.outbox.clone(),
        );
        self.requests = Some(tokio::spawn(async move {
            hold::requests(&sql.client, &outbox).await
        }));
    }

    pub(super) fn take_requests(&self, answer: Result<Requests, MarkError>) -> Option<End> {
        let requests = answer.ok()?;
        self.relay
            .status
            .update(|status| status.dead_letters = Some(requests.dead_letters));
        let reason = "a release or a replay was requested";
        requests.is_asked_for.then(|| self.released(reason))
    }

    /// Ends the session for rows that were held: the table is read for them, unless it tells no order.
    pub(super) fn released(&self, reason: &str) -> End {
        match self.session.order_is_told {
            true => End::Reread(reason.to_owned()),
            false => End::Released(reason.to_owned()),
        }
    }

    /// Observes how long what was handed over together took until all of it was acknowledged.
    pub(super) fn observe_delivery(&mut self, tickets: &[Ticket]) {
        for took in self.handed_over.acknowledged(tickets, Instant::now()) {
            self.relay.metrics.delivery(took);
        }
    }

    /// Marks that have failed so long that it must be said.
    fn failing_long(&self) -> Option<&Failing> {
        let failing = self.failing.as_ref();
        failing.filter(|failing| failing.since.elapsed() >= FAILING_IS_TOLD_AFTER)
    }

    /// Whether rows that are committed now go out now, and why not.
    fn state(&self, wait: Option<Wait>, has_progress: bool) -> (State, String) {
        let epoch = self.session.token.epoch;
        let lease = self.session.lease.borrow();
        if !lease.may_publish(epoch) {
            let reason = because(LEASE_RAN_OUT, lease.last_error.as_deref());
            return (State::Waiting, reason);
        }
        if let Some(failing) = self.failing_long() {
            let reason = format!("rows can't be marked as sent: {}", failing.error);
            return (State::Waiting, reason);
        }
        match wait {
            None if self.relay.outages.is_away() && self.relay.core.sent() > 0 && !has_progress => {
                let error = self.relay.broker_error();
                let refusal = self.relay.refusal();
                let reason = because("Kafka acknowledges nothing", refusal.as_deref());
                let reason =
                    error.map_or(reason, |error| format!("Kafka does not answer: {error}"));
                (State::Waiting, reason)
            }
            None => self.state_of_topics(),
            Some(Wait::ForSome(since)) => {
                let why = self.relay.refusal();
                let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
                let reason =
                    format!("rows that were sent at {since} wait for Kafka{why}; others flow");
                (State::Publishing, reason)
            }
            Some(Wait::ForAnything(since)) => {
                let error = self.relay.refusal().or(self.relay.broker_error());
                let error = error.map(|error| format!(": {error}")).unwrap_or_default();
                let reason = format!("Kafka has acknowledged nothing since {since}{error}");
                (State::Waiting, reason)
            }
        }
    }

    /// The same where nothing waits for an answer: rows may wait for their topics, all of them.
    fn state_of_topics(&self) -> (State, String) {
        let held = self.relay.core.held();
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
        match (&self.session.phase, self.feed.caught_up()) {
            (Phase::CatchUp, false) => "reading rows that existed before the slot",
            (Phase::CatchUp, true) => {
                "the table is read, and the slot moves behind it as far as no older transaction is open"
            }
            (Phase::Replay(_) | Phase::Steady, _) => "",
        }
    }
}

impl Relay {
    /// To be called about once a second.
    pub(super) fn look_at_waits(&mut self) -> Option<Wait> {
        let core = &self.core;
        let seen = stall_detector::InFlight {
            oldest_sent: core.oldest_sent(),
            next: core.next_ticket(),
            is_asking: core.asking() > 0,
            delivered_rows: self.delivered_rows,
        };
        let wait = self.stalls.look(seen, Timestamps::now());
        self.silent = wait.and(seen.oldest_sent);
        self.show_broker(wait);
        wait
    }

    /// What a broker says against records that are sent again and again.
    fn refusal(&self) -> Option<String> {
        let producer = self.producer.as_ref()?;
        let lacks = producer.publisher.lacks_replicas();
        lacks.then(|| TOO_FEW_REPLICAS.to_owned())
    }

    /// Shows whether Kafka answers; says so when that changes.
    fn show_broker(&mut self, wait: Option<Wait>) {
        if self.producer.is_none() {
            return;
        }
        let silence = match wait {
            Some(Wait::ForAnything(since)) => {
                let nothing = format!("it has acknowledged nothing since {since}");
                Some(because(&nothing, self.refusal().as_deref()))
            }
            Some(Wait::ForSome(_)) | None => None,
        };
        let error = self.broker_error().or(silence);
        let seen = Seen {
            is_troubled: error.is_some(),
            is_awaited: self.core.sent() > 0 || self.core.asking() > 0,
            delivered_rows: self.delivered_rows,
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

    fn broker_error(&self) -> Option<String> {
        let producer = self.producer.as_ref()?;
        let said = producer.publisher.broker_error().borrow().clone();
        said.map(|said| in_plain_words(&said))
    }
}
