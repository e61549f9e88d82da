//! A throwaway Kafka broker: one KRaft node, started from the jars that `make servers` fetches.
//!
//! The shared one serves tests that only use topics of their own; whoever stops, kills or freezes a broker starts a
//! private one.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier,
    TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::metadata::{Metadata, MetadataTopic};
use tokio::sync::OnceCell;

use super::proxy::Proxy;
use super::topic::{Read, TopicReader};
use super::workspace::{self, Process};

/// One broker of 22 base64 characters, the form that Kafka asks for.
const CLUSTER_ID: &str = "b3V0Ym94ZC10ZXN0cy0wMQ";

static TOPICS: AtomicU32 = AtomicU32::new(0);

/// Where a broker is reached beside its plain listener.
#[derive(Clone, Debug)]
pub struct Listener {
    pub name: &'static str,
    /// `SSL`, `SASL_SSL` and the like.
    pub protocol: &'static str,
    pub port: u16,
}

/// A running or stopped broker, removed when dropped.
#[derive(Debug)]
pub struct Kafka {
    pub port: u16,
    folder: PathBuf,
    process: Option<Process>,
}

impl Kafka {
    /// The broker that tests share. Never stop it; use topics with a prefix of your own.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<Kafka> = OnceCell::const_new();
        SHARED.get_or_init(async || Self::start()).await
    }

    /// Starts a private broker.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a private broker with properties beyond the usual ones, which they override.
    pub fn start_with(extra: &[(&str, &str)]) -> Self {
        Self::start_listening(&[], &[], extra)
    }

    /// `start_with` that listens in other ways too, on 127.0.0.1, and knows users of SCRAM, written as
    /// `SCRAM-SHA-256=[name=…,password=…]`.
    pub fn start_listening(
        listeners: &[Listener],
        users: &[String],
        extra: &[(&str, &str)],
    ) -> Self {
        let ports = [workspace::free_port(), workspace::free_port()];
        let mut broker = Self::format(ports, listeners, users, extra);
        broker.restart();
        broker
    }

    /// Starts a private broker, and a proxy that leads to a second listener of it: who begins at the proxy stays
    /// behind it.
    pub async fn start_behind_proxy() -> (Self, Proxy) {
        let [port, proxied, controller] = std::array::from_fn(|_| workspace::free_port());
        let proxy = Proxy::start(proxied).await;
        let listeners = format!(
            "PLAINTEXT://127.0.0.1:{port},PROXIED://127.0.0.1:{proxied},CONTROLLER://127.0.0.1:{controller}"
        );
        let advertised = format!(
            "PLAINTEXT://127.0.0.1:{port},PROXIED://127.0.0.1:{}",
            proxy.port
        );
        let extra = [
            ("listeners", listeners.as_str()),
            ("advertised.listeners", &advertised),
            (
                "listener.security.protocol.map",
                "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT",
            ),
        ];
        let mut broker = Self::prepare(port, controller, &extra);
        broker.restart();
        (broker, proxy)
    }

    /// A broker that does not run yet.
    pub fn prepare(port: u16, controller_port: u16, extra: &[(&str, &str)]) -> Self {
        Self::format([port, controller_port], &[], &[], extra)
    }

    fn format(
        [port, controller_port]: [u16; 2],
        listeners: &[Listener],
        users: &[String],
        extra: &[(&str, &str)],
    ) -> Self {
        let folder = workspace::folder("kafka");
        let broker = Self {
            port,
            folder,
            process: None,
        };
        let properties = broker.properties(controller_port, listeners, extra);
        fs::write(broker.folder.join("server.properties"), properties)
            .expect("write server.properties");
        let formatted = broker
            .java("-Xmx128m")
            .args(["kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c"])
            .arg(broker.folder.join("server.properties"))
            .args(users.iter().flat_map(|user| ["--add-scram", user]))
            .output()
            .expect("run java: install a Java 17 runtime");
        assert!(
            formatted.status.success(),
            "format Kafka: {}",
            String::from_utf8_lossy(&formatted.stderr)
        );
        broker
    }

    /// Starts a stopped or killed broker on its old port with its old records and waits until it answers.
    pub fn restart(&mut self) {
        self.begin();
        self.await_answer();
    }

    /// Starts the broker and does not wait for it.
    pub fn begin(&mut self) {
        assert!(self.process.is_none(), "the broker runs");
        let mut command = self.java("-Xmx512m");
        command
            .arg("kafka.Kafka")
            .arg(self.folder.join("server.properties"));
        self.process = Some(Process::start(&mut command, &self.folder, "log", "KILL"));
    }

    /// Waits until a started broker answers.
    pub fn await_answer(&mut self) {
        let log_file = self.log_file();
        let client = self.client();
        super::wait_until_blocking("Kafka answers", Duration::from_secs(180), || {
            let process = self.process.as_mut().expect("the broker was started");
            if let Some(status) = process.exited() {
                panic!(
                    "Kafka ended with {status}: {}",
                    workspace::tail(&log_file, 20)
                );
            }
            ask(&client, Duration::from_secs(1)).map(drop)
        });
    }

    /// Waits until the broker has led all partitions for three seconds: one that was frozen is fenced when it goes on.
    pub async fn await_leaders(&self) {
        let client = self.client();
        let mut answered_at = None;
        super::wait_until("Kafka has its leaders back", super::SOON, async || {
            let answer = ask_for_leaders(&client);
            let since = *answered_at.get_or_insert_with(Instant::now);
            match answer {
                Ok(()) if since.elapsed() >= Duration::from_secs(3) => Ok(()),
                Ok(()) => Err("not for long".to_owned()),
                Err(error) => {
                    answered_at = None;
                    Err(error)
                }
            }
        })
        .await;
    }

    /// Stops the broker with SIGTERM and waits for its end.
    pub fn stop(&mut self) {
        let mut process = self.process.take().expect("the broker runs");
        process.signal("TERM");
        let ended = process.wait(Duration::from_secs(60));
        assert!(
            ended.is_some(),
            "Kafka did not stop: {}",
            workspace::tail(&self.log_file(), 20)
        );
    }

    /// Ends the broker with SIGKILL.
    pub fn kill(&mut self) {
        self.process.take().expect("the broker runs").kill();
    }

    /// Whether it was started, and neither stopped nor killed since; a frozen one runs.
    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// Stops the broker with SIGSTOP: its connections stay open and nobody answers.
    pub fn freeze(&mut self) {
        self.process
            .as_mut()
            .expect("the broker runs")
            .signal("STOP");
    }

    pub fn thaw(&mut self) {
        self.process
            .as_mut()
            .expect("the broker runs")
            .signal("CONT");
    }

    /// `host:port`.
    pub fn brokers(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A name that begins with `prefix` and is used by nobody else.
    pub fn unique_name(prefix: &str) -> String {
        format!("{prefix}-{}", TOPICS.fetch_add(1, Ordering::Relaxed))
    }

    /// Creates a topic and waits until the broker serves it.
    pub async fn create_topic(&self, name: &str, partitions: i32, configuration: &[(&str, &str)]) {
        self.create_replicated(name, partitions, 1, configuration)
            .await;
    }

    /// `create_topic` with so many replicas of each partition.
    pub async fn create_replicated(
        &self,
        name: &str,
        partitions: i32,
        replicas: i32,
        configuration: &[(&str, &str)],
    ) {
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(replicas));
        for (key, value) in configuration {
            topic = topic.set(key, value);
        }
        let outcomes = self
            .admin()
            .create_topics([&topic], &AdminOptions::new())
            .await
            .expect("create a topic");
        outcomes[0]
            .as_ref()
            .unwrap_or_else(|(topic, code)| panic!("create topic `{topic}`: {code}"));
        let consumer: BaseConsumer = self
            .client()
            .create()
            .expect("a consumer of known settings");
        super::wait_until("the topic is served", super::SOON, async || {
            let metadata = consumer.fetch_metadata(Some(name), Duration::from_secs(2));
            let metadata = metadata.map_err(|error| error.to_string())?;
            let partitions_served = metadata.topics()[0]
                .partitions()
                .iter()
                .filter(|part| part.leader() >= 0)
                .count();
            if partitions_served == partitions as usize {
                Ok(())
            } else {
                Err(format!("{partitions_served} partitions"))
            }
        })
        .await;
    }

    /// Raises the number of a topic's partitions.
    pub async fn grow_topic(&self, name: &str, partitions: usize) {
        let wanted = NewPartitions::new(name, partitions);
        let outcomes = self
            .admin()
            .create_partitions([&wanted], &AdminOptions::new())
            .await
            .expect("grow a topic");
        outcomes[0]
            .as_ref()
            .unwrap_or_else(|(topic, code)| panic!("grow topic `{topic}`: {code}"));
    }

    /// Changes one setting of a topic.
    pub async fn alter_topic(&self, name: &str, setting: &str, value: &str) {
        let change = AlterConfig::new(ResourceSpecifier::Topic(name)).set(setting, value);
        let outcomes = self
            .admin()
            .alter_configs([&change], &AdminOptions::new())
            .await
            .expect("alter a topic");
        outcomes[0]
            .as_ref()
            .unwrap_or_else(|(_, code)| panic!("alter topic `{name}`: {code}"));
    }

    /// Deletes a topic.
    pub async fn delete_topic(&self, name: &str) {
        let outcomes = self
            .admin()
            .delete_topics(&[name], &AdminOptions::new())
            .await
            .expect("delete a topic");
        outcomes[0]
            .as_ref()
            .unwrap_or_else(|(topic, code)| panic!("delete topic `{topic}`: {code}"));
    }

    /// Runs one of Kafka's own tools, such as `kafka.admin.ConfigCommand`, on the plain listener.
    pub fn tool(&self, class: &str, arguments: &[&str]) {
        let brokers = self.brokers();
        let done = self
            .java("-Xmx128m")
            .args([class, "--bootstrap-server", &brokers])
            .args(arguments)
            .output()
            .expect("run java");
        assert!(
            done.status.success(),
            "{class} {arguments:?}: {}{}",
            String::from_utf8_lossy(&done.stdout),
            String::from_utf8_lossy(&done.stderr)
        );
    }

    pub fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.client()
            .create()
            .expect("an admin client of known settings")
    }

    /// Reads every record that a topic holds now.
    pub fn read_topic(&self, name: &str) -> Vec<Read> {
        let mut reader = self.reader(&[name]);
        reader.read_to_end();
        reader.into_reads()
    }

    /// A reader that remembers how far it has come.
    pub fn reader(&self, topics: &[&str]) -> TopicReader {
        TopicReader::open(&self.brokers(), topics)
    }

    /// Settings of a librdkafka client of this broker.
    pub fn client(&self) -> ClientConfig {
        super::topic::client(&self.brokers())
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.folder.join("log")
    }

    fn java(&self, memory: &str) -> Command {
        let jars = workspace::servers().join("kafka");
        assert!(
            jars.is_dir(),
            "`{}` is missing: run `make servers`",
            jars.display()
        );
        let mut command = Command::new("java");
        command
            .args([
                memory,
                "-XX:+UseSerialGC",
                "-XX:TieredStopAtLevel=1",
                "-Xshare:auto",
                "-cp",
            ])
            .arg(jars.join("*"))
            .current_dir(&self.folder);
        command
    }

    /// A killed broker may register again when its session has ended, by default after 9 seconds: 3 are enough here.
    fn properties(
        &self,
        controller_port: u16,
        listeners: &[Listener],
        extra: &[(&str, &str)],
    ) -> String {
        let port = self.port;
        let (mut addresses, mut protocols) = (String::new(), String::new());
        for Listener {
            name,
            protocol,
            port,
        } in listeners
        {
            addresses += &format!(",{name}://127.0.0.1:{port}");
            protocols += &format!(",{name}:{protocol}");
        }
        let data = self.folder.join("data");
        let data = data.display();
        let mut properties = format!(
            "process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}{addresses}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}{addresses}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT{protocols}
log.dirs={data}
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
"
        );
        for (key, value) in extra {
            properties += &format!("{key}={value}\n");
        }
        properties
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "--- Kafka ended with this log ---\n{}",
                workspace::tail(&self.log_file(), 20)
            );
        }
        self.process = None;
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Asks by a new client, for one that was answered while no broker was registered asks nobody again (librdkafka's
/// issue 5301).
fn ask(client: &ClientConfig, timeout: Duration) -> Result<Metadata, String> {
    let consumer: BaseConsumer = client.create().expect("a consumer of known settings");
    let metadata = consumer.fetch_metadata(None, timeout);
    let metadata = metadata.map_err(|error| error.to_string())?;
    match metadata.brokers() {
        [] => Err("no broker is registered".to_owned()),
        _ => Ok(metadata),
    }
}

fn ask_for_leaders(client: &ClientConfig) -> Result<(), String> {
    let metadata = ask(client, Duration::from_secs(2))?;
    let mut partitions = metadata.topics().iter().flat_map(MetadataTopic::partitions);
    match partitions.find(|partition| partition.leader() < 0) {
        None => Ok(()),
        Some(_) => Err("a partition has no leader".to_owned()),
    }
}
