//! Carrying out what the machine of a session decides: each effect is one call, or one task whose end is an input.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use super::machine::{Effect, End, Finding, Input, Look, Removal, RemovalOutcome, Step};
use super::{Relay, Run};
use crate::core::{Help, Questions, TopicHold};
use crate::kafka::{NOT_CREATED, allow_command, create_command};
use crate::mark::ledger::Audit;
use crate::mark::{MarkError, MarkOutcome};
use crate::source::replication::sweep::{Progress, Watch};
use crate::state::hold::{self, HoldCheckpoint};
use crate::state::retention::{Retention, pass};
use crate::text::chain;

/// What runs beside the loop, each at most once.
#[derive(Default)]
pub(super) struct Tasks {
    pub(super) marking: Option<JoinHandle<Result<MarkOutcome, MarkError>>>,
    pub(super) recording: Option<JoinHandle<Result<u64, MarkError>>>,
    pub(super) maintenance: Option<AbortOnDropHandle<Result<Vec<Finding>, MarkError>>>,
    pub(super) looking: Option<AbortOnDropHandle<(Watch, Look)>>,
    /// The connection comes back with what it did.
    pub(super) removing: Option<JoinHandle<(Retention, Removal)>>,
    pub(super) requests: Option<JoinHandle<Result<hold::Requests, MarkError>>>,
    pub(super) lag_question: Option<JoinHandle<()>>,
}

impl Run<'_> {
    /// Lets the machine take what happened, and does what follows from it.
    pub(super) async fn take(&mut self, input: Input) -> Option<End> {
        let mut next = Some(input);
        while let Some(input) = next.take() {
            self.decide(input);
            let mut effects = std::mem::take(&mut self.effects);
            for effect in effects.drain(..) {
                match self.carry_out(effect).await {
                    Follows::Nothing => {}
                    Follows::Input(input) => next = Some(input),
                    Follows::End(end) => return Some(end),
                }
            }
            self.effects = effects;
        }
        None
    }

    async fn carry_out(&mut self, effect: Effect) -> Follows {
        let Some(effect) = self.relay.tell_kafka(effect) else {
            return Follows::Nothing;
        };
        match effect {
            Effect::Mark(statement) => {
                let sql = self.sql.clone();
                let task = async move { statement.run(&sql.client).await };
                self.tasks.marking = Some(tokio::spawn(task));
            }
            Effect::Record(checkpoint) => self.record(checkpoint),
            Effect::Confirm(lsn) => self.source.confirm(lsn),
            Effect::Resolved => self.source.resolved(),
            Effect::Hold(id) => self.source.hold(id),
            Effect::Owe(rows) => self.source.owe(rows),
            Effect::LookForMissed(progress) => self.look(progress),
            Effect::AskPosition => self.source.ask_position(),
            Effect::Maintain(audits) => self.maintain(audits),
            Effect::Remove(step) => self.remove(step),
            Effect::AskForRequests => self.ask_for_requests(),
            Effect::StartSuccessor(why) => return Follows::Input(self.start_successor(why)),
            Effect::TakeOver => self.relay.producers.take_over(),
            Effect::GiveUpProducer { within } => {
                return Follows::Input(self.give_up_producer(within).await);
            }
            Effect::ShowFailure(text) => self.relay.status.failed(text),
            Effect::End(end) => return Follows::End(end),
            Effect::Publish(_) | Effect::Ask(_) | Effect::Refresh(_) | Effect::TellHold(..) => {}
        }
        Follows::Nothing
    }

    fn record(&mut self, mut checkpoint: HoldCheckpoint) {
        let sql = self.sql.clone();
        checkpoint.reword(|text| sql.storable(text).into_owned());
        let task = async move { checkpoint.run(&sql.client).await };
        self.tasks.recording = Some(tokio::spawn(task));
    }

    fn look(&mut self, progress: Progress) {
        // The machine asks for one look at a time.
        let Some(mut watch) = self.watch.take() else {
            return;
        };
        self.tasks.looking = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            let judgement = watch.look(&progress).await;
            let look = Look {
                judgement,
                is_closed: watch.is_closed(),
                awaits_stream: watch.awaits_stream(),
            };
            (watch, look)
        })));
    }

    fn maintain(&mut self, audits: Vec<Audit>) {
        let (sql, token) = (self.sql.clone(), self.machine.terms().token.clone());
        self.tasks.maintenance = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            crate::mark::ledger::compact(&sql.client, &token).await?;
            hold::forget_history(&sql.client, &token).await?;
            let mut findings = Vec::new();
            for audit in audits {
                findings.push(Finding {
                    segment: audit.segment,
                    missed: audit.run(&sql.client).await?,
                });
            }
            Ok(findings)
        })));
    }

    fn remove(&mut self, step: Step) {
        // The machine asks for one step at a time, and only where rows are removed.
        let Some(mut retention) = self.retention.take() else {
            return;
        };
        let began_at = Instant::now();
        self.tasks.removing = Some(tokio::spawn(async move {
            let outcome = match step {
                Step::MaintainPartitions(removable) => {
                    let tended = retention.maintain_partitions(&removable).await;
                    tended.map(RemovalOutcome::PartitionsMaintained)
                }
                Step::Rows(pass::Step::Bounds(from)) => {
                    retention.bounds(from).await.map(RemovalOutcome::Bounds)
                }
                Step::Rows(pass::Step::Remove(batch)) => {
                    let removed = retention.remove(&batch).await;
                    removed.map(|removed| RemovalOutcome::Batch(batch, removed))
                }
            };
            let elapsed = began_at.elapsed();
            (retention, Removal { elapsed, outcome })
        }));
    }

    fn ask_for_requests(&mut self) {
        let sql = self.sql.clone();
        let outbox = self.machine.terms().token.outbox.clone();
        let task = async move { hold::requests(&sql.client, &outbox).await };
        self.tasks.requests = Some(tokio::spawn(task));
    }

    fn start_successor(&mut self, why: &'static str) -> Input {
        match self.relay.producers.start_successor(&self.relay.config) {
            Ok(()) => {
                let rows = self.machine.memory().core.sent();
                info!(
                    rows,
                    "{why}; a new producer takes over when nothing is in flight"
                );
                Input::SuccessorStarted
            }
            Err(failure) => {
                let error = chain(&failure);
                warn!(
                    error,
                    "{why} and no new producer starts; the old one goes on"
                );
                self.relay.status.failed(error);
                Input::SuccessorFailed
            }
        }
    }

    async fn give_up_producer(&mut self, within: Duration) -> Input {
        let ended = self.relay.producers.end(within).await;
        let (delivered, end) = ended.unzip();
        Input::ProducerGivenUp {
            delivered: delivered.unwrap_or_default(),
            end,
        }
    }

    /// Starts a new producer when the old one is outdated, such as by a file with secrets that has changed.
    ///
    /// The old one stays when none can be started: the file may be half written.
    pub(super) async fn renew_producer(&mut self) -> Option<End> {
        let producers = &self.relay.producers;
        let why = producers
            .outdated()
            .filter(|_| !self.machine.has_successor())?;
        let files = producers.files();
        let end = self.take(Input::ProducerOutdated(why)).await;
        if !self.machine.has_successor() {
            self.relay.producers.keep(files);
        }
        end
    }
}

/// What follows at once from an effect.
enum Follows {
    Nothing,
    Input(Input),
    End(End),
}

impl Relay {
    /// Does what is Kafka's, if there is a producer, and gives back what is not.
    pub(super) fn tell_kafka(&self, effect: Effect) -> Option<Effect> {
        let publisher = self.producers.working();
        match (effect, publisher) {
            (Effect::Publish(outgoing), Some(publisher)) => publisher.publish(outgoing),
            (Effect::Ask(questions), Some(publisher)) => {
                let Questions {
                    usual,
                    urgent,
                    watched,
                } = questions;
                if !usual.is_empty() {
                    publisher.look_up(usual);
                }
                if !urgent.is_empty() {
                    publisher.look_up_urgently(urgent);
                }
                if !watched.is_empty() {
                    publisher.watch(watched);
                }
            }
            (Effect::Refresh(topic), Some(publisher)) => publisher.refresh(topic),
            (Effect::TellHold(topic, hold), _) => {
                let remedy = self.remedy(&topic, &hold).unwrap_or_default();
                warn!(
                    %topic,
                    reason = hold.reason,
                    remedy,
                    "topic can't be written: it is paused, all others flow"
                );
            }
            (effect, _) => return Some(effect),
        }
        None
    }

    /// What ends a hold, as far as it is known.
    pub(super) fn remedy(&self, topic: &str, hold: &TopicHold) -> Option<String> {
        match hold.help {
            Help::Create => Some(create_command(&self.config.kafka, topic)),
            Help::Allow => Some(allow_command(&self.config.kafka, topic)),
            Help::AsBrokersSay => Some(NOT_CREATED.to_owned()),
            Help::Unknown => None,
        }
    }
}
