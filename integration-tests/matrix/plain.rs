//! A plain idempotent producer under the same weather: how steady a relay may be expected to be.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use super::rig::PARTITIONS;
use crate::harness::kafka::Kafka;
use crate::harness::proxy::Proxy;
use crate::harness::topic::{self, TopicReader};

const TOPIC: &str = "plain";
/// About the load's.
const RECORDS_EACH_10_MS: usize = 3;

/// It runs until it is dropped.
pub struct Plain {
    waiting: Arc<Mutex<BTreeMap<u64, Instant>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    reader: TopicReader,
}

impl Plain {
    pub async fn start(kafka: &Kafka, proxy: &Proxy) -> Self {
        kafka.create_topic(TOPIC, PARTITIONS, &[]).await;
        let waiting = Arc::new(Mutex::new(BTreeMap::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let brokers = format!("127.0.0.1:{}", proxy.port);
        let thread = {
            let (waiting, stop) = (waiting.clone(), stop.clone());
            spawn(move || produce(&brokers, &waiting, &stop))
        };
        Self {
            waiting,
            stop,
            thread: Some(thread),
            reader: TopicReader::open(&kafka.brokers(), &[TOPIC]),
        }
    }

    /// How old the oldest record is that is not in Kafka now.
    pub fn oldest_age(&mut self) -> Duration {
        let log = tokio::task::block_in_place(|| self.reader.read_to_end());
        let numbers = log.iter().filter_map(|read| read.key_text()?.parse().ok());
        let published: HashSet<u64> = numbers.collect();
        let mut waiting = self.waiting.lock().expect("nobody panics with it");
        waiting.retain(|number, _| !published.contains(number));
        waiting
            .values()
            .next()
            .map_or(Duration::ZERO, Instant::elapsed)
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(
            std::thread::panicking() || ended.is_some_and(|ended| ended.is_ok()),
            "the plain producer failed"
        );
    }
}

fn produce(brokers: &str, waiting: &Mutex<BTreeMap<u64, Instant>>, stop: &AtomicBool) {
    let mut settings = topic::client(brokers);
    // The relay's: src/kafka.rs.
    settings
        .set("enable.idempotence", "true")
        .set("message.timeout.ms", "0")
        .set("socket.timeout.ms", "10000")
        .set("request.timeout.ms", "5000")
        .set("linger.ms", "0.5");
    let producer: BaseProducer = settings.create().expect("a producer of known settings");
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..RECORDS_EACH_10_MS {
            number += 1;
            let at = Instant::now();
            waiting
                .lock()
                .expect("nobody panics with it")
                .insert(number, at);
            let key = number.to_string();
            let record = BaseRecord::to(TOPIC).key(&key).payload("{}");
            producer
                .send(record)
                .expect("room for some minutes of records");
        }
        producer.poll(Duration::ZERO);
        sleep(Duration::from_millis(10));
    }
    producer.purge(rdkafka::producer::PurgeConfig::default().queue().inflight());
}
