//! The topics of a session: asking for those that are held, and noticing when one has grown.

use std::sync::Arc;

use tracing::{info, warn};

use super::{End, Run};
use crate::publish::TopicState;

/// Every so many questions for the others, a topic that refused records is tried again, and a topic that is written is
/// asked for its partitions: 30 s.
const ALL_TOPICS_EVERY_TICKS: u32 = 15;

impl Run<'_> {
    pub(super) fn look_up(&self, topic: Option<Arc<str>>) {
        if let (Some(topic), Some(producer)) = (topic, &self.relay.producer) {
            producer.publisher.look_up(topic);
        }
    }

    /// Asks whether held topics can be written again; one that refused records less often, since
    /// only a record shows whether it still does.
    pub(super) fn ask_for_topics(&mut self) {
        self.topic_ticks += 1;
        let is_turn_of_all = self.topic_ticks.is_multiple_of(ALL_TOPICS_EVERY_TICKS);
        let held = self.relay.core.held();
        let due = held
            .topics()
            .filter(|(_, hold)| is_turn_of_all || !hold.is_refused);
        let mut due: Vec<_> = due.map(|(topic, _)| topic.clone()).collect();
        if is_turn_of_all {
            due.extend(held.available().cloned());
        }
        for topic in due {
            self.look_up(Some(topic));
        }
    }

    /// Takes the answer to a question.
    pub(super) fn take_topic(&mut self, topic: &Arc<str>, state: &TopicState) -> Option<End> {
        let is_topic = |known: &Arc<str>| known == topic;
        if self.relay.core.held().available().any(is_topic) {
            self.compare_partitions(topic, state);
            return None;
        }
        let has_rows = self.relay.core.topic(topic, state);
        if let TopicState::Available { partitions } = state {
            self.relay.partitions.insert(topic.clone(), *partitions);
        }
        if has_rows {
            info!(%topic, "a held topic can be written again");
            return Some(End::Reread("a held topic can be written again".to_owned()));
        }
        self.announce_topic(topic, state);
        None
    }

    /// A topic that has other partitions than before is written by a new producer, once nothing is in flight: what was
    /// sent under the old number is acknowledged before anything is sent under the new one.
    ///
    /// That a topic can't be seen for a moment is the producer's to wait for.
    fn compare_partitions(&mut self, topic: &Arc<str>, state: &TopicState) {
        let TopicState::Available { partitions: now } = state else {
            return;
        };
        let before = self.relay.partitions.insert(topic.clone(), *now);
        let Some(before) = before.filter(|before| before != now) else {
            return;
        };
        warn!(
            %topic,
            before,
            now,
            "the topic's number of partitions has changed: keys move to others, and consumers see no order across them"
        );
        self.start_successor("a topic has other partitions");
    }

    fn announce_topic(&self, topic: &Arc<str>, state: &TopicState) {
        match state {
            TopicState::Available { partitions } => {
                info!(%topic, partitions, "publishing to topic")
            }
            TopicState::Unknown | TopicState::Denied => {
                let mut held = self.relay.core.held().topics();
                if held.any(|(name, hold)| name == topic && hold.rows == 0) {
                    warn!(
                        %topic,
                        reason = ?state,
                        remedy = %crate::kafka::create_command(&self.relay.config.kafka, topic),
                        "topic can't be written: its rows are held, all others flow"
                    );
                }
            }
        }
    }
}
