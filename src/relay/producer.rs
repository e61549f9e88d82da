//! The relay's producer: its start and its end, and the one that takes over from it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;

use crate::config::{Config, KafkaConfig};
use crate::core::{Cutting, SessionEnd, SmallBatches};
use crate::kafka::{ClientFiles, in_plain_words};
use crate::publish::{Deliveries, Known, PublishError, Publisher, PublisherEvent};

const TOO_FEW_REPLICAS: &str = "NotEnoughReplicas: fewer replicas are in sync than `min.insync.replicas` of the topic asks for";

/// A producer and what it tells.
pub(super) struct Producer {
    pub(super) publisher: Publisher,
    pub(super) events: UnboundedReceiver<PublisherEvent>,
}

/// The producers of one relay: the one that works, the one that waits, and what was learned for the next.
pub(super) struct Producers {
    working: Option<Producer>,
    successor: Option<Producer>,
    /// How Kafka is reached, with what was learned of its topics.
    kafka: KafkaConfig,
    /// What the last producer said of a broker.
    cutting: Option<Cutting>,
    /// Topics that take no larger batches.
    small_batches: SmallBatches,
}

impl Producers {
    pub(super) fn new(kafka: KafkaConfig) -> Self {
        Self {
            working: None,
            successor: None,
            kafka,
            cutting: None,
            small_batches: SmallBatches::new(),
        }
    }

    pub(super) fn working(&self) -> Option<&Publisher> {
        self.working.as_ref().map(|producer| &producer.publisher)
    }

    /// Starts a producer if none lives.
    pub(super) fn start(&mut self, config: &Arc<Config>) -> Result<(), PublishError> {
        if self.working.is_none() {
            let cutting = self.cutting.take();
            self.working = Some(self.next(config, cutting)?);
        }
        Ok(())
    }

    /// Starts one that waits beside the one that works.
    pub(super) fn start_successor(&mut self, config: &Arc<Config>) -> Result<(), PublishError> {
        self.successor = Some(self.next(config, None)?);
        Ok(())
    }

    fn next(
        &self,
        config: &Arc<Config>,
        cutting: Option<Cutting>,
    ) -> Result<Producer, PublishError> {
        let small_batches = self.small_batches.clone();
        let known = Known {
            cutting,
            small_batches,
        };
        let (publisher, events) = Publisher::start_knowing(&self.kafka, &config.limits, known)?;
        Ok(Producer { publisher, events })
    }

    /// The one that waits works from now on.
    pub(super) fn take_over(&mut self) {
        if let Some(successor) = self.successor.take() {
            self.working = Some(successor);
        }
    }

    /// Nothing is to wait any more: the session is over.
    pub(super) fn drop_successor(&mut self) {
        self.successor = None;
    }

    /// Ends the producer within the deadline; gives what it still delivered, and its end.
    pub(super) async fn end(
        &mut self,
        deadline: Duration,
    ) -> Option<(Vec<Deliveries>, SessionEnd)> {
        let mut producer = self.working.take()?;
        let end = producer.publisher.end(deadline).await;
        let mut delivered = Vec::new();
        while let Ok(event) = producer.events.try_recv() {
            if let PublisherEvent::Delivered(deliveries) = event {
                delivered.push(deliveries);
            }
        }
        self.note_end(&end);
        Some((delivered, end))
    }

    /// It has ended by itself: what it learned is for the next one.
    pub(super) fn note_end(&mut self, end: &SessionEnd) {
        self.working = None;
        self.cutting.clone_from(&end.cutting);
        let small = end.small_batches.iter();
        let small = small.map(|(topic, bytes)| (topic.clone(), *bytes));
        self.small_batches.extend(small);
        if let Some(bytes) = end.batch_bytes_max {
            let property = "batch.size".to_owned();
            self.kafka.properties.insert(property, bytes.to_string());
        }
    }

    /// Its thread is gone.
    pub(super) fn lose(&mut self) {
        self.working = None;
    }

    /// Why the producer goes on with what is not right any more.
    pub(super) fn outdated(&self) -> Option<&'static str> {
        self.working()?.outdated()
    }

    /// The files behind Kafka's secrets as they are now.
    pub(super) fn files(&self) -> ClientFiles {
        ClientFiles::of(&self.kafka)
    }

    /// Lets the producer go on with what it has read of these files.
    pub(super) fn keep(&mut self, files: ClientFiles) {
        if let Some(producer) = &mut self.working {
            producer.publisher.keep(files);
        }
    }

    /// Whether a broker can't be reached or does not answer.
    pub(super) fn is_unanswered(&self) -> bool {
        self.working()
            .is_some_and(|publisher| publisher.broker_error().borrow().is_some())
    }

    /// What a broker says against records that are sent again and again.
    pub(super) fn refusal(&self) -> Option<String> {
        let lacks = self.working()?.lacks_replicas();
        lacks.then(|| TOO_FEW_REPLICAS.to_owned())
    }

    pub(super) fn broker_error(&self) -> Option<String> {
        let said = self.working()?.broker_error().borrow().clone();
        said.map(|said| in_plain_words(&said))
    }

    /// Waits for what the producer tells; for ever while there is none.
    ///
    /// Cancel-safe: yes.
    pub(super) async fn next_event(&mut self) -> Option<PublisherEvent> {
        match &mut self.working {
            Some(producer) => producer.events.recv().await,
            None => std::future::pending().await,
        }
    }
}
