//! A row that the producer says nothing of, although its topic can be written: the producer looks for leaders again.

use std::sync::Arc;

use super::Relay;
use crate::core::{TopicPartition, TopicState};

impl Relay {
    /// Asks for the topic of a row that has waited for long; the answer goes to `refresh_if_silent`.
    pub(super) fn ask_if_silent(&self) {
        if let (Some(topic), Some(producer)) = (self.silent_topic(), &self.producer) {
            producer.publisher.look_up(vec![topic]);
        }
    }

    /// Lets a silent producer ask for leaders where the topic can be written and has as many partitions as before.
    pub(super) fn refresh_if_silent(&self, topic: &Arc<str>, state: &TopicState) {
        let is_as_before = match state {
            TopicState::Available { partitions } => self.partitions.get(topic) == Some(partitions),
            _ => false,
        };
        if is_as_before
            && self.silent_topic().as_ref() == Some(topic)
            && let Some(producer) = &self.producer
        {
            producer.publisher.refresh(topic.clone());
        }
    }

    fn silent_topic(&self) -> Option<Arc<str>> {
        let name = self.core.topic_of(self.silent?)?;
        Some(TopicPartition::parse(name).map_or_else(|| name.clone(), |place| place.topic))
    }
}
