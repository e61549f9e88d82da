//! The thread that drives one producer: feed, poll, report, and end at the first failure.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::producer::{Producer, PurgeConfig};
use rdkafka::types::RDKafkaErrorCode;
use tokio::sync::{mpsc::UnboundedSender, oneshot};
use tracing::debug;

use super::cut_off::CutOff;
use super::first_ack_gate::FirstAckGate;
use super::lanes::Lanes;
use super::log_lines::{Event, Line};
use super::reports::{Broker, Failure, Harvest};
use super::trials::{InFlight, Trials};
use super::{Fault, Outgoing, PublisherEvent, SessionEnd, Ticket, fault};
use crate::core::SmallBatches;
use crate::kafka::KafkaError;
use crate::kafka::native;

/// Records handed to librdkafka between two polls.
const FEED_MAX: usize = 1_000;
/// Pause between two looks at the reports; `poll` itself never returns early, so it is not used to wait.
const TURN: Duration = Duration::from_millis(1);
/// The same when no report has come for `QUIET_AFTER`: a broker is away.
const TURN_QUIET: Duration = Duration::from_millis(10);
const QUIET_AFTER: Duration = Duration::from_millis(500);
/// The same when nothing waits and nothing is in flight: only errors and logs can come.
const TURN_IDLE: Duration = Duration::from_millis(500);
/// How long a question for leaders may take; a producer that ends meanwhile is closed behind it.
const REFRESH_MAX: Duration = Duration::from_secs(5);
/// How long requests in flight may still be answered once the session has failed: a round trip.
const HARVEST_MAX: Duration = Duration::from_millis(300);
/// How long the records before one that was never sent may take; a frozen broker's `socket.timeout.ms`.
const REFUSED_DRAIN_MAX: Duration = Duration::from_secs(10);

/// What the relay asks of the thread.
#[derive(Debug)]
pub(super) enum Command {
    Publish(Vec<Outgoing>),
    Refresh(Arc<str>),
    End {
        deadline: Instant,
        reply: oneshot::Sender<SessionEnd>,
    },
}

/// What ties the thread to the relay.
pub(super) struct Ties {
    pub(super) broker: Broker,
    pub(super) commands: Receiver<Command>,
    pub(super) events: UnboundedSender<PublisherEvent>,
}

/// The end that the relay asked for.
struct Ending {
    deadline: Instant,
    /// `None` when the publisher was dropped.
    reply: Option<oneshot::Sender<SessionEnd>>,
}

/// A record that librdkafka did not take: nothing behind it is sent.
struct Refused {
    ticket: Ticket,
    code: RDKafkaErrorCode,
    at: Instant,
}

/// One producer and what it has in flight.
pub(super) struct ProducerThread {
    lanes: Lanes,
    broker: Broker,
    commands: Receiver<Command>,
    events: UnboundedSender<PublisherEvent>,
    pending: VecDeque<Outgoing>,
    first_acks: FirstAckGate,
    /// Records that librdkafka has taken and not reported.
    outstanding: usize,
    failed: Vec<Failure>,
    bootstrap_servers: String,
    /// A thread asks for leaders.
    is_refreshing: Arc<AtomicBool>,
    /// The record that was handed over last.
    last: Ticket,
    trials: Trials,
    /// Why the session ends, where a broker cuts off what it is sent.
    cut_off: Option<CutOff>,
    refused: Option<Refused>,
    /// A producer cannot go on.
    is_dead: bool,
    ending: Option<Ending>,
    reported_at: Instant,
    /// Nothing can be handed over before something is reported.
    must_wait: bool,
}

impl ProducerThread {
    pub(super) fn new(
        config: &ClientConfig,
        small: SmallBatches,
        ties: Ties,
        trials: Trials,
    ) -> Result<Self, KafkaError> {
        let Ties {
            broker,
            commands,
            events,
        } = ties;
        let bootstrap_servers = config.get("bootstrap.servers").unwrap_or_default();
        let bootstrap_servers = bootstrap_servers.to_owned();
        Ok(Self {
            lanes: Lanes::new(config, small, &broker)?,
            broker,
            commands,
            events,
            pending: VecDeque::new(),
            first_acks: FirstAckGate::default(),
            outstanding: 0,
            failed: Vec::new(),
            bootstrap_servers,
            is_refreshing: Arc::default(),
            last: 0,
            trials,
            cut_off: None,
            refused: None,
            is_dead: false,
            ending: None,
            reported_at: Instant::now(),
            must_wait: false,
        })
    }

    /// Works until a report fails or the relay ends the session.
    pub(super) fn run(mut self) {
        loop {
            self.take_commands();
            self.feed();
            let is_fatal = self.report();
            let drained = self.pending.is_empty() && self.outstanding == 0;
            let is_over = is_fatal || !self.failed.is_empty() || self.is_refusal_due();
            if is_over || self.is_cut_off() {
                return self.fail();
            }
            match &self.ending {
                Some(_) if drained => return self.finish(),
                Some(ending) if Instant::now() >= ending.deadline => return self.finish(),
                _ => {}
            }
        }
    }

    fn take_commands(&mut self) {
        let pause = self.pause();
        if self.ending.is_some() {
            // The sender is gone, so waiting for a command would spin.
            std::thread::sleep(pause);
            return;
        }
        let mut command = self.commands.recv_timeout(pause);
        loop {
            match command {
                Ok(Command::Publish(records)) => self.pending.extend(records),
                Ok(Command::Refresh(topic)) => self.refresh(topic),
                Ok(Command::End { deadline, reply }) => {
                    let reply = Some(reply);
                    self.ending = Some(Ending { deadline, reply });
                    return;
                }
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => {
                    let (deadline, reply) = (Instant::now(), None);
                    self.ending = Some(Ending { deadline, reply });
                    return;
                }
            }
            command = self.commands.recv_timeout(Duration::ZERO);
        }
    }

    /// Asks for a topic's leaders, which librdkafka takes note of, on a thread of its own: the answer may take long.
    fn refresh(&self, topic: Arc<str>) {
        if self.is_refreshing.swap(true, Ordering::Relaxed) {
            return;
        }
        let (producer, is_refreshing) =
            (self.lanes.producer_of(&topic), self.is_refreshing.clone());
        let servers = self.bootstrap_servers.clone();
        let ask = move || {
            let client = producer.client();
            let answer = client.fetch_metadata(Some(&topic), REFRESH_MAX);
            debug!(%topic, error = ?answer.as_ref().err(), "asked for leaders");
            if answer.is_err() {
                native::add_brokers(client, &servers);
            }
            is_refreshing.store(false, Ordering::Relaxed);
        };
        if super::spawn("refresh", ask).is_err() {
            self.is_refreshing.store(false, Ordering::Relaxed);
        }
    }

    fn pause(&self) -> Duration {
        let can_feed = !self.pending.is_empty() && !self.must_wait && self.refused.is_none();
        match can_feed {
            true => Duration::ZERO,
            false => pause(
                self.pending.len() + self.outstanding,
                self.reported_at.elapsed(),
            ),
        }
    }

    fn feed(&mut self) {
        self.must_wait = false;
        let now = Instant::now();
        if self.outstanding == 0 {
            self.reported_at = now;
        }
        for _ in 0..FEED_MAX {
            if self.refused.is_some() {
                return;
            }
            let Some(outgoing) = self.pending.front() else {
                return;
            };
            if self.first_acks.holds_back(outgoing) {
                self.must_wait = true;
                return;
            }
            match self.lanes.send(outgoing) {
                Ok(()) => {
                    self.outstanding += 1;
                    self.last = outgoing.ticket;
                    self.first_acks.sent(outgoing, now);
                }
                Err(RDKafkaErrorCode::QueueFull) => {
                    self.must_wait = true;
                    return;
                }
                Err(code) => {
                    let (ticket, at) = (outgoing.ticket, Instant::now());
                    self.refused = Some(Refused { ticket, code, at });
                }
            }
            self.pending.pop_front();
        }
    }

    /// Serves callbacks and tells the relay of what was delivered; whether the producer is dead.
    fn report(&mut self) -> bool {
        let Harvest {
            delivered,
            failed,
            is_fatal,
            lines,
            ..
        } = self.lanes.harvest();
        self.outstanding -= delivered.tickets.len() + failed.len();
        self.failed.extend(failed);
        self.is_dead |= is_fatal;
        self.take_lines(lines);
        if !delivered.tickets.is_empty() {
            self.first_acks.delivered(&delivered.tickets);
            self.trials.delivered(&delivered.tickets);
            self.reported_at = Instant::now();
            self.broker.answered();
            // The relay is gone when nobody listens; the dropped publisher ends the session.
            let _ = self.events.send(PublisherEvent::Delivered(delivered));
        }
        self.is_dead
    }

    /// Takes what the log said of connections; nearly always nothing.
    fn take_lines(&mut self, lines: Vec<Line>) {
        if lines.is_empty() {
            return;
        }
        if lines.iter().any(|line| line.event == Event::TooFewReplicas) {
            self.broker.lacks_replicas();
        }
        let in_flight = InFlight {
            records: self.outstanding,
            last: self.last,
            topic: self.lanes.last_topic().cloned(),
        };
        self.trials.take(lines, &in_flight, Instant::now());
    }

    /// A broker closes the connection on what it is sent, and on nothing else.
    fn is_cut_off(&mut self) -> bool {
        if self.ending.is_none() {
            self.cut_off = self.trials.proved(Instant::now());
        }
        self.cut_off.is_some()
    }

    /// A record was not taken, and what stands before it has been reported or takes too long.
    fn is_refusal_due(&self) -> bool {
        let is_due =
            |refused: &Refused| self.outstanding == 0 || refused.at.elapsed() >= REFUSED_DRAIN_MAX;
        self.refused.as_ref().is_some_and(is_due)
    }

    /// Ends a session that failed: nothing more is sent, every report that can still come is taken.
    fn fail(mut self) {
        self.pending.clear();
        // What is queued would go out as soon as its topic is back: a hole. What is in flight is
        // most likely acknowledged within a round trip.
        self.lanes.purge(PurgeConfig::default().queue());
        self.harvest(HARVEST_MAX);
        self.lanes.purge(PurgeConfig::default().queue().inflight());
        self.harvest(HARVEST_MAX);
        let end = self.session_end();
        match self.ending.take().and_then(|ending| ending.reply) {
            Some(reply) => drop(reply.send(end)),
            None => drop(self.events.send(PublisherEvent::Ended(end))),
        }
    }

    /// Ends a session as the relay asked.
    fn finish(mut self) {
        let left = self.pending.len() + self.outstanding;
        self.pending.clear();
        if self.outstanding > 0 {
            self.lanes.purge(PurgeConfig::default().queue().inflight());
            self.harvest(HARVEST_MAX);
        }
        let mut end = self.session_end();
        end.reason = format!("the relay ended the session with {left} records unacknowledged");
        if let Some(reply) = self.ending.take().and_then(|ending| ending.reply) {
            let _ = reply.send(end);
        }
    }

    /// Takes reports until none is missing or the time is up: after a fatal error some never come (Kafka 4.1.1, 7 of 12 runs).
    fn harvest(&mut self, limit: Duration) {
        let deadline = Instant::now() + limit;
        self.report();
        while self.outstanding > 0 && Instant::now() < deadline {
            std::thread::sleep(TURN);
            self.report();
        }
    }

    fn session_end(&mut self) -> SessionEnd {
        if let Some(cut_off) = &self.cut_off {
            return fault::of_cut_off(cut_off, &self.failed, self.lanes.usual_batch_bytes());
        }
        let small_batches =
            fault::small_batches(&self.failed, |topic| self.lanes.batch_bytes(topic));
        let mut failed: Vec<(Ticket, Fault)> = Vec::new();
        for failure in self.failed.drain(..) {
            let is_of_batch = small_batches.contains_key(&*failure.topic)
                && fault::is_of_batch(&failure, self.lanes.batch_bytes(&failure.topic));
            let fault = fault::of(failure.code).filter(|_| !is_of_batch);
            failed.extend(fault.map(|fault| (failure.ticket, fault)));
        }
        if let Some(Refused { ticket, code, .. }) = self.refused.take() {
            failed.extend(fault::of(code).map(|fault| (ticket, fault)));
        }
        SessionEnd {
            reason: self.reason(&failed, &small_batches),
            failed,
            batch_bytes_max: None,
            small_batches,
            cutting: None,
        }
    }

    fn reason(&self, failed: &[(Ticket, Fault)], small: &SmallBatches) -> String {
        let mut reasons = Vec::new();
        if let Some((_, fault)) = failed.first() {
            reasons.push(format!("a record was refused: {}", fault.text()));
        }
        if let Some((topic, bytes)) = small.first_key_value() {
            reasons.push(format!(
                "topic `{topic}` takes no batch of that size: its batches have {bytes} bytes at most from now on"
            ));
        }
        if let Some((code, text)) = self.lanes.fatal_error() {
            reasons.push(format!("the producer cannot go on: {code}: {text}"));
        }
        if reasons.is_empty() {
            reasons.push("the producer gave records up".into());
        }
        reasons.join("; ")
    }
}

/// How long the thread rests that can hand nothing over, with so many records that wait or are not reported.
fn pause(unreported: usize, since_report: Duration) -> Duration {
    match unreported {
        0 => TURN_IDLE,
        _ if since_report < QUIET_AFTER => TURN,
        _ => TURN_QUIET,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_rests_long_while_a_record_waits() {
        // The last one ahead of it was just reported.
        assert_eq!(pause(1, Duration::ZERO), TURN);
        assert_eq!(pause(1, QUIET_AFTER), TURN_QUIET);
        assert_eq!(pause(0, QUIET_AFTER), TURN_IDLE);
    }
}
