//! The rights that docs/surroundings.md names, with its own commands: they are enough, and no more than are needed.

use crate::harness::kafka::{Kafka, Listener};
use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::relay::{Relay, said};
use crate::harness::workspace;
use crate::orders::{Orders, wait_for_status};

const DOCUMENT: &str = include_str!("../docs/surroundings.md");
const PASSWORD: &str = "rights-hush";

/// A broker that lets nobody do anything by itself, and one user of it.
struct Strict {
    kafka: Kafka,
    port: u16,
}

impl Strict {
    fn start() -> Self {
        let port = workspace::free_port();
        let listener = Listener {
            name: "SASL",
            protocol: "SASL_PLAINTEXT",
            port,
        };
        let login = format!(
            "org.apache.kafka.common.security.plain.PlainLoginModule required user_outboxd=\"{PASSWORD}\";"
        );
        let kafka = Kafka::start_listening(
            &[listener],
            &[],
            &[
                (
                    "authorizer.class.name",
                    "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                ),
                ("super.users", "User:ANONYMOUS"),
                ("listener.name.sasl.sasl.enabled.mechanisms", "PLAIN"),
                ("listener.name.sasl.plain.sasl.jaas.config", &login),
            ],
        );
        Self { kafka, port }
    }

    /// Runs the document's command for an operation, for topics that begin so.
    fn grant(&self, operation: &str, topics: &str) {
        let named = format!("--operation {operation} ");
        let lines = DOCUMENT.lines();
        let mut commands =
            lines.filter(|line| line.starts_with("kafka-acls.sh") && line.contains(&named));
        let command = commands.next().expect("the document has the command");
        let (_, arguments) = command
            .split_once("--bootstrap-server kafka:9092 ")
            .expect("it names the broker");
        let arguments: Vec<&str> = arguments
            .split(' ')
            .map(|word| if word == "orders." { topics } else { word })
            .collect();
        self.kafka
            .tool("org.apache.kafka.tools.AclCommand", &arguments);
    }

    async fn orders(&self, prefix: &str) -> Orders {
        let postgres = Postgres::shared(USUAL).await;
        let mut orders = Orders::on(&self.kafka, postgres, prefix).await;
        let brokers = toml_edit::Array::from_iter([format!("127.0.0.1:{}", self.port)]);
        orders.config = orders
            .config
            .set("kafka.brokers", brokers)
            .kafka_property("security.protocol", "SASL_PLAINTEXT")
            .kafka_property("sasl.mechanism", "PLAIN")
            .kafka_property("sasl.username", "outboxd")
            .kafka_property("sasl.password", PASSWORD);
        orders.config.migrate();
        orders
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_publishes_with_the_rights_at_kafka_that_are_documented() {
    let strict = Strict::start();
    let orders = strict.orders("rights").await;
    let topics = orders.config.topic_of("");
    let relay = Relay::start(&orders.config);
    let ids = orders.insert(5).await;
    wait_for_status(&relay, "that a right is missing", |status| {
        status["held_topics"].to_string().contains("rights")
    })
    .await;
    strict.grant("Write", &topics);
    orders.wait_for(&ids).await;
    let checked = orders.config.outboxd(&["check"]);
    assert!(checked.status.success(), "{}", said(&checked));
    drop(relay);
    // To create a topic takes the other one.
    let mut orders = orders;
    orders.config = orders.config.set("kafka.topics.create", true);
    let invoice = orders.config.topic_of("invoice");
    let relay = Relay::start(&orders.config);
    let insert = "INSERT INTO outbox (aggregatetype, aggregateid, type, payload) VALUES ('invoice', 'a', 'sent', '{}')";
    orders.run(insert).await;
    wait_for_status(&relay, "that the topic is held", |status| {
        status["held_topics"].to_string().contains("invoice")
    })
    .await;
    strict.grant("Create", &topics);
    orders.wait_until_marked().await;
    assert_eq!(strict.kafka.read_topic(&invoice).len(), 1);
}

/// The statements of the document are those that `migrate` prints.
#[tokio::test(flavor = "multi_thread")]
async fn the_rights_at_postgresql_that_are_documented_are_those_that_migrate_grants() {
    let postgres = Postgres::shared(USUAL).await;
    let bare = Orders::bare(postgres, "granted").await;
    let mut printed = Vec::new();
    for mark in ["ledger", "sent_at", "delete"] {
        let config = bare.config.clone().mark(mark);
        let done = config.outboxd(&["migrate", "--print", "--relay-role", "outboxd"]);
        assert!(done.status.success(), "{}", said(&done));
        let text = said(&done).replace('"', "");
        printed.extend(
            grants(&text)
                .filter(|grant| grant.ends_with(" TO outboxd;"))
                .map(str::to_owned),
        );
    }
    printed.sort();
    printed.dedup();
    let mut documented: Vec<String> = grants(DOCUMENT).map(str::to_owned).collect();
    documented.sort();
    assert_eq!(documented, printed);
}

/// The statements that begin a line with GRANT, less what follows them.
fn grants(text: &str) -> impl Iterator<Item = &str> {
    let lines = text.lines().filter(|line| line.starts_with("GRANT "));
    lines.filter_map(|line| line.find(';').map(|end| &line[..=end]))
}
