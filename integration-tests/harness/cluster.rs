//! Three brokers, each a controller too, so that one may always be away.

use super::kafka::Kafka;
use super::workspace::free_port;

pub const BROKERS: usize = 3;

/// Running or stopped brokers, removed when dropped.
#[derive(Debug)]
pub struct Cluster {
    pub brokers: [Kafka; BROKERS],
}

impl Cluster {
    pub fn start() -> Self {
        let controllers: [u16; BROKERS] = std::array::from_fn(|_| free_port());
        let voters: Vec<String> = controllers
            .iter()
            .zip(1..)
            .map(|(port, id)| format!("{id}@127.0.0.1:{port}"))
            .collect();
        let voters = voters.join(",");
        let mut brokers: [Kafka; BROKERS] = std::array::from_fn(|index| {
            let id = (index + 1).to_string();
            let extra = [
                ("node.id", id.as_str()),
                ("controller.quorum.voters", &voters),
                ("offsets.topic.replication.factor", "3"),
                ("controller.quorum.election.timeout.ms", "500"),
                ("controller.quorum.fetch.timeout.ms", "1000"),
            ];
            Kafka::prepare(free_port(), controllers[index], &extra)
        });
        brokers.iter_mut().for_each(Kafka::begin);
        brokers.iter_mut().for_each(Kafka::await_answer);
        Self { brokers }
    }

    /// `host:port` of every broker.
    pub fn addresses(&self) -> Vec<String> {
        self.brokers.iter().map(Kafka::brokers).collect()
    }
}
