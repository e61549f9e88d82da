//! The broker that the demo publishes to: one in this process, or any other.
//!
//! Never touches a topic that it did not create.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::mocking::MockCluster;
use rdkafka::types::RDKafkaErrorCode;

use super::error::DemoError;
use crate::config::{KafkaConfig, TopicsConfig};
use crate::kafka::look_up_config;

/// Partitions of the demo's topic.
pub(crate) const PARTITIONS: i32 = 6;
const ADMIN_TIMEOUT: Duration = Duration::from_secs(10);

/// A broker with the demo's topic on it.
pub struct Broker {
    /// `host:port,…`.
    pub servers: String,
    /// librdkafka's properties for it, `${file:…}` as written.
    pub properties: BTreeMap<String, String>,
    /// The same as a client takes them.
    pub client: ClientConfig,
    /// The relay's `route.topic`.
    pub template: String,
    /// What the relay's `route.allow` holds.
    pub allow: String,
    /// Where the orders go.
    pub topic: String,
    /// What to call it in the report.
    pub name: String,
    /// Of the topic.
    pub partitions: i32,
    /// A reader's `fetch.wait.max.ms`. The mock cluster sleeps this long whenever it has nothing, whatever
    /// comes meanwhile; a real broker answers at once and only suffers from many questions.
    pub fetch_wait_ms: u32,
    place: Host,
}

enum Host {
    Inside(#[expect(dead_code, reason = "held so that the broker lives")] MockThread),
    Outside(AdminClient<DefaultClientContext>),
}

impl Broker {
    /// Starts librdkafka's mock cluster in this process and creates the topic.
    pub(crate) fn inside() -> Result<Self, DemoError> {
        let topic = "outbox.event.order".to_owned();
        let mock = MockThread::start(topic.clone());
        let mock = mock.map_err(|source| DemoError::Broker {
            action: "create a topic",
            brokers: "in this process".into(),
            source,
        })?;
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", &mock.servers);
        Ok(Self {
            servers: mock.servers.clone(),
            properties: BTreeMap::new(),
            client,
            template: "outbox.event.${aggregatetype}".into(),
            allow: "outbox.event.*".into(),
            topic,
            name: "a broker in this process (librdkafka's mock cluster)".into(),
            partitions: PARTITIONS,
            fetch_wait_ms: 5,
            place: Host::Inside(mock),
        })
    }

    /// Creates a topic of an unused name on a broker that stands elsewhere.
    pub async fn outside(
        servers: &str,
        properties: BTreeMap<String, String>,
        partitions: i32,
    ) -> Result<Self, DemoError> {
        let prefix = format!("outboxd-demo-{:08x}", fastrand::u32(..));
        let topic = format!("{prefix}.order");
        let failed = |source| DemoError::Broker {
            action: "create a topic",
            brokers: servers.into(),
            source,
        };
        let client = client(servers, &properties)?;
        let admin: AdminClient<DefaultClientContext> = client.create().map_err(failed)?;
        let wanted = NewTopic::new(&topic, partitions, TopicReplication::Fixed(-1));
        let options = AdminOptions::new()
            .request_timeout(Some(ADMIN_TIMEOUT))
            .operation_timeout(Some(ADMIN_TIMEOUT));
        for result in admin
            .create_topics(&[wanted], &options)
            .await
            .map_err(failed)?
        {
            result.map_err(|(topic, code)| DemoError::Topic { topic, code })?;
        }
        let (name, config) = (topic.clone(), client.clone());
        let ready =
            tokio::task::spawn_blocking(move || await_partitions(&config, &name, partitions));
        ready.await.map_err(DemoError::Part)?.map_err(failed)?;
        Ok(Self {
            servers: servers.into(),
            properties,
            client,
            template: format!("{prefix}.${{aggregatetype}}"),
            allow: format!("{prefix}.*"),
            topic,
            name: format!("the broker at {servers}"),
            partitions,
            fetch_wait_ms: 100,
            place: Host::Outside(admin),
        })
    }

    /// Removes the topic from a broker that stands elsewhere; a failure is said, nothing more.
    pub async fn remove(self) {
        let Host::Outside(admin) = &self.place else {
            return;
        };
        let options = AdminOptions::new().request_timeout(Some(ADMIN_TIMEOUT));
        let removed = admin.delete_topics(&[&self.topic], &options).await;
        let is_removed = removed.is_ok_and(|results| results.iter().all(Result::is_ok));
        if !is_removed {
            eprintln!("warning: topic `{}` stays on the broker", self.topic);
        }
    }
}

/// The relay's own settings of a client that publishes nothing.
fn client(servers: &str, properties: &BTreeMap<String, String>) -> Result<ClientConfig, DemoError> {
    let kafka = KafkaConfig {
        brokers: vec![servers.to_owned()],
        properties: properties.clone(),
        allow_partitioner: false,
        topics: TopicsConfig {
            create: false,
            partitions: -1,
            replication_factor: -1,
        },
    };
    look_up_config(&kafka).map_err(DemoError::Client)
}

/// Waits until every partition of a new topic has a leader that answers.
///
/// A broker answers the creation before it has taken up the partitions, and for a moment knows nothing of them.
fn await_partitions(config: &ClientConfig, topic: &str, partitions: i32) -> Result<(), KafkaError> {
    let asking: BaseConsumer = config.create()?;
    let deadline = Instant::now() + ADMIN_TIMEOUT;
    for partition in 0..partitions {
        while let Err(error) = asking.fetch_watermarks(topic, partition, ADMIN_TIMEOUT) {
            if Instant::now() > deadline {
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    Ok(())
}

/// A mock cluster in a thread of its own, since its handle must stay where it was made.
struct MockThread {
    servers: String,
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl MockThread {
    fn start(topic: String) -> Result<Self, KafkaError> {
        let (ready, started) = mpsc::channel();
        let (stop, stopped) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let cluster = MockCluster::new(1).and_then(|cluster| {
                cluster
                    .create_topic(&topic, PARTITIONS, 1)
                    .map(|()| cluster)
            });
            let answer = cluster
                .as_ref()
                .map(MockCluster::bootstrap_servers)
                .map_err(Clone::clone);
            let is_heard = ready.send(answer).is_ok();
            if is_heard && cluster.is_ok() {
                // Ends when the sender is dropped.
                let _ = stopped.recv();
            }
        });
        let servers = started
            .recv()
            .unwrap_or(Err(KafkaError::MockCluster(RDKafkaErrorCode::Fail)))?;
        Ok(Self {
            servers,
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for MockThread {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
