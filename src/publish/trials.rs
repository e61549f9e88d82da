//! The brokers that cut what they are sent: for each, what was cut, and a witness.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::debug;

use super::cut_off::{CutOff, Watch};
use super::log_lines::{Event, Line};
use super::witness::Witness;
use super::{Cutting, Ticket};
use crate::config::KafkaConfig;

/// How long a session looks at what the one before it said of a broker.
const EARLY_MAX: Duration = Duration::from_secs(30);

/// What is in flight when a connection is cut.
pub(super) struct InFlight {
    pub(super) records: usize,
    /// No record that was handed over has a higher ticket.
    pub(super) last: Ticket,
    /// Any topic of theirs.
    pub(super) topic: Option<Arc<str>>,
}

/// Empty nearly always.
pub(super) struct Trials {
    kafka: KafkaConfig,
    trials: HashMap<i32, Trial>,
    /// A witness that was called before anything was cut, and when: cuts count from the first on.
    early: Option<(Witness, Instant)>,
    /// Brokers whose connection was just closed; whether a request was lost with it is told next.
    closed: Vec<i32>,
}

struct Trial {
    watch: Watch,
    witness: Witness,
}

impl Trials {
    /// Begins, with what the session before said of a broker.
    pub(super) fn new(kafka: KafkaConfig, cutting: Option<Cutting>) -> Self {
        let early = cutting.map(|cutting| (Witness::call(&kafka, cutting), Instant::now()));
        Self {
            kafka,
            trials: HashMap::new(),
            early,
            closed: Vec::new(),
        }
    }

    /// Takes what the log said of connections, in its order.
    pub(super) fn take(&mut self, lines: Vec<Line>, in_flight: &InFlight, now: Instant) {
        for Line { broker, event } in lines {
            match event {
                Event::Closed => self.closed.push(broker),
                Event::Failed => self.closed.retain(|closed| *closed != broker),
                Event::Lost => {
                    let before = self.closed.len();
                    self.closed.retain(|closed| *closed != broker);
                    if self.closed.len() < before {
                        self.cut(broker, in_flight, now);
                    }
                }
                Event::Answered | Event::TooFewReplicas => {
                    if let Some(trial) = self.trials.get_mut(&broker) {
                        trial.watch.answered();
                    }
                }
            }
        }
    }

    fn cut(&mut self, broker: i32, in_flight: &InFlight, now: Instant) {
        if let Some(trial) = self.trials.get_mut(&broker) {
            trial.watch.cut(now);
            return;
        }
        let Some(topic) = in_flight.topic.clone().filter(|_| in_flight.records > 0) else {
            return;
        };
        debug!(broker, "a connection was closed amid a request");
        let early = self.early.take().map(|(witness, _)| witness);
        let early = early.filter(|witness| witness.cutting().broker == broker);
        let watch = Watch::begin(in_flight.records, in_flight.last, now);
        let call = || Witness::call(&self.kafka, Cutting { broker, topic });
        let witness = early.unwrap_or_else(call);
        self.trials.insert(broker, Trial { watch, witness });
    }

    pub(super) fn delivered(&mut self, tickets: &[Ticket]) {
        for trial in self.trials.values_mut() {
            trial.watch.delivered(tickets);
        }
    }

    /// A broker that is proved to cut what it is sent, and nothing else.
    pub(super) fn proved(&mut self, now: Instant) -> Option<CutOff> {
        self.early
            .take_if(|(_, since)| now.saturating_duration_since(*since) > EARLY_MAX);
        if self.trials.is_empty() {
            return None;
        }
        self.trials.retain(|_, trial| !trial.watch.is_over(now));
        let is_proved = |trial: &&Trial| {
            let stand = trial.witness.stand();
            stand.is_some_and(|stand| trial.watch.is_proved(stand))
        };
        let trial = self.trials.values().find(is_proved)?;
        Some(CutOff {
            cutting: trial.witness.cutting().clone(),
            last: trial.watch.last(),
        })
    }
}
