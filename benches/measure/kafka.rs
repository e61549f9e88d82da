//! The Kafka that the relay publishes to: one that stands elsewhere, or one node of the fetched jars.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Deref;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context;
use outboxd::commands::demo::broker::Broker;
use outboxd::commands::demo::postgres::{free_port, tail};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::process::Process;

const PARTITIONS: i32 = 12;
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Creating or removing many topics is one request for so many of them.
const TOPICS_AT_ONCE: usize = 500;
const TOPICS_MAX: Duration = Duration::from_secs(300);
/// One node of 22 base64 characters, the form that Kafka asks for.
const CLUSTER_ID: &str = "b3V0Ym94ZC1mbG9vci0wMQ";

/// A running Kafka.
pub struct Kafka {
    pub servers: String,
    consumer: BaseConsumer,
    process: Option<Process>,
}

impl Kafka {
    /// Takes the brokers of `OUTBOXD_BENCH_BROKERS`, else starts the Kafka in `.servers/kafka`.
    pub async fn find_or_start(folder: &Path) -> anyhow::Result<Self> {
        let mut process = None;
        let servers = match std::env::var("OUTBOXD_BENCH_BROKERS") {
            Ok(servers) => servers,
            Err(_) => {
                let (servers, started) = start(folder)?;
                process = Some(started);
                servers
            }
        };
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &servers)
            .set("log_level", "0")
            .create()?;
        let deadline = Instant::now() + Duration::from_secs(60);
        while consumer
            .fetch_metadata(None, Duration::from_secs(1))
            .is_err()
        {
            if let Some(process) = &mut process {
                process
                    .ensure_runs()
                    .with_context(|| tail(&folder.join("kafka.log")))?;
            }
            anyhow::ensure!(Instant::now() < deadline, "no Kafka answers at `{servers}`");
        }
        Ok(Self {
            servers,
            consumer,
            process,
        })
    }

    /// Creates a topic of an unused name and waits until every partition is served.
    pub async fn topic(&self) -> anyhow::Result<Topics> {
        self.topics(1).await
    }

    /// The same for each of so many aggregate types; where there are several, a topic has one partition.
    pub async fn topics(&self, types: u32) -> anyhow::Result<Topics> {
        let broker = Broker::outside(&self.servers, BTreeMap::new(), PARTITIONS).await?;
        let topics = match types {
            1 => Topics::one(broker),
            _ => Topics::of_types(broker, types, 1).await?,
        };
        self.served(topics).await
    }

    /// A topic for each of so many aggregate types, with as many partitions as that of one type has.
    pub async fn wide_topics(&self, types: u32) -> anyhow::Result<Topics> {
        let broker = Broker::outside(&self.servers, BTreeMap::new(), PARTITIONS).await?;
        let topics = Topics::of_types(broker, types, PARTITIONS).await?;
        self.served(topics).await
    }

    /// Waits until every partition is served.
    async fn served(&self, topics: Topics) -> anyhow::Result<Topics> {
        let deadline = Instant::now() + TOPICS_MAX;
        // A consumer that has asked too early remembers for minutes that there is no such topic.
        while let Err(error) = records(&topics.client.create()?, &topics) {
            anyhow::ensure!(Instant::now() < deadline, "`{}`: {error:#}", topics.topic);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(topics)
    }

    /// The number of records that the topics hold, by one request to each broker.
    pub fn records(&self, topics: &Topics) -> anyhow::Result<u64> {
        records(&self.consumer, topics)
    }

    /// The CPU time of the broker so far, if it is ours.
    pub fn cpu(&self) -> Option<Duration> {
        self.process.as_ref().map(Process::cpu)
    }
}

fn records(consumer: &BaseConsumer, topics: &Topics) -> anyhow::Result<u64> {
    let mut ends = TopicPartitionList::new();
    for (topic, partitions) in &topics.partitions {
        for partition in 0..*partitions {
            // The time that stands for the end is the offset that does.
            ends.add_partition_offset(topic, partition, Offset::End)?;
        }
    }
    let ends = consumer.offsets_for_times(ends, ANSWER_MAX)?;
    let mut records = 0;
    for end in ends.elements() {
        end.error()?;
        records += match end.offset() {
            Offset::Offset(offset) => u64::try_from(offset)?,
            _ => 0,
        };
    }
    Ok(records)
}

/// Where the rows of one round go: a topic for each aggregate type.
pub struct Topics {
    broker: Broker,
    partitions: Vec<(String, i32)>,
}

impl Deref for Topics {
    type Target = Broker;

    fn deref(&self) -> &Broker {
        &self.broker
    }
}

impl Topics {
    fn one(broker: Broker) -> Self {
        let partitions = vec![(broker.topic.clone(), broker.partitions)];
        Self { broker, partitions }
    }

    /// Each of them, with the number of its partitions.
    pub fn all(&self) -> &[(String, i32)] {
        &self.partitions
    }

    async fn of_types(broker: Broker, types: u32, partitions: i32) -> anyhow::Result<Self> {
        let name = |number| {
            let aggregate_type = format!("type-{number}");
            broker.template.replace("${aggregatetype}", &aggregate_type)
        };
        let names: Vec<String> = (0..types).map(name).collect();
        let (admin, options) = admin(&broker)?;
        for names in names.chunks(TOPICS_AT_ONCE) {
            let topic = |name| NewTopic::new(name, partitions, TopicReplication::Fixed(-1));
            let topics: Vec<_> = names.iter().map(|name| topic(name.as_str())).collect();
            for created in admin.create_topics(&topics, &options).await? {
                created.map_err(|(topic, code)| anyhow::anyhow!("`{topic}`: {code}"))?;
            }
        }
        let partitions = names.into_iter().map(|name| (name, partitions)).collect();
        Ok(Self { broker, partitions })
    }

    /// Removes them from the broker; a failure is said, nothing more.
    pub async fn remove(self) {
        let names: Vec<&str> = self
            .partitions
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        let many = names.iter().filter(|name| **name != self.broker.topic);
        let many: Vec<&str> = many.copied().collect();
        for names in many.chunks(TOPICS_AT_ONCE) {
            let removed = match admin(&self.broker) {
                Ok((admin, options)) => admin.delete_topics(names, &options).await.is_ok(),
                Err(_) => false,
            };
            if !removed {
                eprintln!("warning: topics such as `{}` stay on the broker", names[0]);
            }
        }
        self.broker.remove().await;
    }
}

fn admin(broker: &Broker) -> anyhow::Result<(AdminClient<DefaultClientContext>, AdminOptions)> {
    let options = AdminOptions::new()
        .request_timeout(Some(TOPICS_MAX))
        .operation_timeout(Some(TOPICS_MAX));
    Ok((broker.client.create()?, options))
}

fn start(folder: &Path) -> anyhow::Result<(String, Process)> {
    let jars = Path::new(env!("CARGO_MANIFEST_DIR")).join(".servers/kafka");
    anyhow::ensure!(
        jars.is_dir(),
        "no Kafka: name one in OUTBOXD_BENCH_BROKERS, or fetch it with integration-tests/servers/fetch.sh"
    );
    let (port, controller) = (free_port()?, free_port()?);
    let properties = folder.join("kafka.properties");
    let logs = folder.join("kafka");
    fs::write(&properties, configuration(port, controller, &logs))?;
    let java = |memory: &str| {
        let mut command = Command::new("java");
        command
            .arg(memory)
            .arg("-cp")
            .arg(jars.join("*"))
            .env("LOG_DIR", folder);
        command
    };
    let mut format = java("-Xmx128m");
    let formatted = format
        .args(["kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c"])
        .arg(&properties)
        .output();
    let formatted = formatted.context("cannot run `java`: install a Java 17 runtime")?;
    anyhow::ensure!(
        formatted.status.success(),
        "cannot format: {}",
        String::from_utf8_lossy(&formatted.stderr)
    );
    let mut broker = java("-Xmx512m");
    broker.arg("kafka.Kafka").arg(&properties);
    Ok((
        format!("127.0.0.1:{port}"),
        Process::start(&mut broker, &folder.join("kafka.log"))?,
    ))
}

fn configuration(port: u16, controller: u16, logs: &Path) -> String {
    format!(
        "process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs={}
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
",
        logs.display()
    )
}
