//! The brokers that cut what they are sent: for each, what was cut, and a witness.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use tracing::debug;

use super::Ticket;
use super::cut_off::{CutOff, Watch};
use super::log_lines::{Event, Line};
use super::witness::Witness;
use crate::config::KafkaConfig;

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
    /// Brokers whose connection was just closed; whether a request was lost with it is told next.
    closed: Vec<i32>,
}

struct Trial {
    watch: Watch,
    witness: Witness,
}

impl Trials {
    pub(super) fn new(kafka: KafkaConfig) -> Self {
        Self {
            kafka,
            trials: HashMap::new(),
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
                Event::Answered => {
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
        let trial = Trial {
            watch: Watch::begin(in_flight.records, in_flight.last, now),
            witness: Witness::call(&self.kafka, broker, topic),
        };
        self.trials.insert(broker, trial);
    }

    pub(super) fn delivered(&mut self, tickets: &[Ticket]) {
        for trial in self.trials.values_mut() {
            trial.watch.delivered(tickets);
        }
    }

    /// A broker that is proved to cut what it is sent, and nothing else.
    pub(super) fn proved(&mut self, now: Instant) -> Option<CutOff> {
        if self.trials.is_empty() {
            return None;
        }
        self.trials.retain(|_, trial| !trial.watch.is_over(now));
        let is_proved = |trial: &Trial| {
            let stand = trial.witness.stand();
            stand.is_some_and(|stand| trial.watch.is_proved(stand))
        };
        let mut proved = self.trials.iter().filter(|(_, trial)| is_proved(trial));
        let (broker, trial) = proved.next()?;
        Some(CutOff {
            broker: *broker,
            last: trial.watch.last(),
        })
    }
}
