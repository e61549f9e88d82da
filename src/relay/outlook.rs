//! What a running session shows: its status and gauges, once a second.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::lag::{HeldFacts, Measured, Question};
use super::marking::Failing;
use super::patience::{self, Moment, Wait};
use super::{End, Phase, Relay, Run};
use crate::core::OTHERS;
use crate::hold::{self, Requests};
use crate::kafka::{create_command, in_plain_words};
use crate::lease::since_boot;
use crate::mark::{MarkError, Marks};
use crate::publish::{Place, Ticket};
use crate::status::{
    HeldRows, HeldTopic, InFlight, LEASE_RAN_OUT, Role, State, StatusCell, because,
};

/// Blocked aggregates and held topics that the status names; metrics count all of them.
const HELD_SHOWN_MAX: usize = 100;
/// How often the table is asked for the rows that were not sent.
const LAG_EVERY_TICKS: u32 = 5;
/// How often it is asked how much it holds.
const KEPT_EVERY_TICKS: u32 = 60;
/// How long marks may fail before the status says so; within five seconds all in all.
const FAILING_IS_TOLD_AFTER: Duration = Duration::from_secs(3);
/// The core judges an outage by half minutes.
const HALF_MINUTE_TICKS: u32 = 30;
/// How long that may take; a table that is too busy for it is asked again later.
const LAG_WITHIN: Duration = Duration::from_secs(5);

const TOO_FEW_REPLICAS: &str = "NotEnoughReplicas: fewer replicas are in sync than `min.insync.replicas` of the topic asks for";

impl Run<'_> {
    /// Writes down where the session stands.
    pub(super) fn look_out(&mut self) {
        self.relay.status.beat();
        let wait = self.relay.look_at_waits();
        self.relay.ask_if_silent();
        self.show_broker(wait);
        let (state, reason) = self.standing(wait);
        let core = &self.relay.core;
        let held = core.held().aggregates().map(|(_, held)| HeldRows {
            aggregate_type: held.aggregate_type.clone(),
            event_id: held.row.to_string(),
            rows: held.rows,
            reason: held.error.clone(),
        });
        let held: Vec<_> = held.take(HELD_SHOWN_MAX).collect();
        let blocked = core.held().aggregates().count() as u64;
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
        let is_turn_of_lag = self.ticks.is_multiple_of(LAG_EVERY_TICKS);
        let holes_open = is_turn_of_lag.then(|| self.holes_open()).flatten();
        let is_draining = self.drain_until.is_some();
        self.relay.status.update(|status| {
            (status.held, status.held_topics, status.in_flight) = (held, topics, in_flight);
            status.blocked_aggregates = Some(blocked);
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
        self.ask_for_lag(sent_seq);
        self.ask_for_requests();
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
            let is_one = Place::parse(topic).is_none() && ***topic != **OTHERS;
            HeldTopic {
                topic: topic.to_string(),
                rows: hold.rows,
                reason: hold.reason.clone(),
                command: is_one.then(|| create_command(&self.relay.config.kafka, topic)),
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
            self.session.tenure.outbox.clone(),
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
        let reason = "a release or a replay was asked for";
        requests.is_asked_for.then(|| self.released(reason))
    }

    /// Ends the session for rows that were held: the table is read for them, unless it tells no order.
    pub(super) fn released(&self, reason: &str) -> End {
        match self.session.order_is_told {
            true => End::Reread(reason.to_owned()),
            false => End::Released(reason.to_owned()),
        }
    }

    /// Observes how long what was handed over together took until its last row was acknowledged.
    pub(super) fn observe_delivery(&mut self, tickets: &[Ticket]) {
        let Some(newest) = tickets.iter().max() else {
            return;
        };
        while let Some((last, at)) = self.handed_over.front() {
            if last > newest {
                return;
            }
            self.relay.metrics.delivery(at.elapsed());
            self.handed_over.pop_front();
        }
    }

    /// Marks that have failed so long that it must be said.
    fn failing_long(&self) -> Option<&Failing> {
        let failing = self.failing.as_ref();
        failing.filter(|failing| failing.since.elapsed() >= FAILING_IS_TOLD_AFTER)
    }

    /// Whether rows that are committed now go out now, and why not.
    fn standing(&self, wait: Option<Wait>) -> (State, String) {
        let epoch = self.session.tenure.epoch;
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
            None => (State::Publishing, self.catching_up().to_owned()),
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

    /// What a session does that reads the table before the stream.
    fn catching_up(&self) -> &'static str {
        match (&self.session.phase, self.feed.caught_up()) {
            (Phase::CatchUp, false) => "catching up from the table",
            (Phase::CatchUp, true) => {
                "the table is read, and the slot moves behind it as far as no older transaction is open"
            }
            (Phase::Replay(_) | Phase::Steady, _) => "",
        }
    }

    /// Shows whether Kafka answers; says so when that changes.
    fn show_broker(&mut self, wait: Option<Wait>) {
        if self.relay.producer.is_none() {
            return;
        }
        let silence = match wait {
            Some(Wait::ForAnything(since)) => {
                let nothing = format!("it has acknowledged nothing since {since}");
                Some(because(&nothing, self.relay.refusal().as_deref()))
            }
            Some(Wait::ForSome(_)) | None => None,
        };
        let error = self.relay.broker_error().or(silence);
        let was_up = std::mem::replace(&mut self.relay.kafka_is_up, error.is_none());
        match error {
            Some(error) => {
                if was_up {
                    if let Some(times) = self.relay.outages.begin(since_boot()) {
                        warn!(times, error, "Kafka does not answer; rows wait in order");
                    }
                    self.relay.status.failed(error.as_str());
                }
                self.relay.status.update(|status| {
                    status.kafka.is_up = Some(false);
                    status.kafka.error = Some(error);
                });
            }
            None => {
                if let Some(lasted) = self.relay.outages.end(since_boot()) {
                    let elapsed_ms = lasted.as_millis() as u64;
                    info!(elapsed_ms, "Kafka answers again");
                }
                self.relay.status.broker_answers();
            }
        }
    }

    /// Asks the table, beside everything else, what was not sent yet.
    fn ask_for_lag(&mut self, sent_seq: Option<i64>) {
        self.ticks += 1;
        if self.ticks % LAG_EVERY_TICKS != 1
            || self
                .lag_question
                .as_ref()
                .is_some_and(|task| !task.is_finished())
        {
            return;
        }
        let (sql, status) = (Arc::clone(&self.session.sql), self.relay.status.clone());
        let held = self.relay.core.held();
        let held = HeldFacts {
            rows: held.rows(),
            first: held.numbers().first(),
        };
        let layout = &self.session.layout;
        let mut question = Question::new(&self.relay.config, layout, sent_seq, held);
        if self.ticks % KEPT_EVERY_TICKS == 1 {
            question = question.with_kept(layout);
        }
        self.lag_question = Some(tokio::spawn(async move {
            match timeout(LAG_WITHIN, question.ask(&sql.client)).await {
                Ok(Ok(measured)) => show(&status, &measured),
                Ok(Err(_)) | Err(_) => debug!("the table did not say how far behind it is"),
            }
        }));
    }
}

impl Relay {
    /// To be called about once a second.
    pub(super) fn look_at_waits(&mut self) -> Option<Wait> {
        let core = &self.core;
        let seen = patience::InFlight {
            oldest_sent: core.oldest_sent(),
            next: core.next_ticket(),
            is_asking: core.asking() > 0,
            delivered_rows: self.delivered_rows,
        };
        let wait = self.patience.look(seen, Moment::now());
        self.silent = wait.and(seen.oldest_sent);
        wait
    }

    /// What a broker says against records that are sent again and again.
    fn refusal(&self) -> Option<String> {
        let producer = self.producer.as_ref()?;
        let lacks = producer.publisher.lacks_replicas();
        lacks.then(|| TOO_FEW_REPLICAS.to_owned())
    }

    fn broker_error(&self) -> Option<String> {
        let producer = self.producer.as_ref()?;
        let said = producer.publisher.broker_error().borrow().clone();
        said.map(|said| in_plain_words(&said))
    }
}

fn show(status: &StatusCell, measured: &Measured) {
    status.update(|status| {
        status.lag.rows = measured.rows;
        status.lag.rows_at_least = measured.rows_at_least;
        status.kept = measured.kept.or(status.kept);
    });
    let oldest = [measured.oldest_at, measured.oldest_held_at]
        .into_iter()
        .flatten()
        .min();
    status.oldest(oldest, measured.oldest_at);
}
