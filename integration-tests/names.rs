//! Whose slot and publication are: two outboxes never share one by accident, and nobody takes a name because it stands.

use serde_json::Value;
use tokio_postgres::Client;

use crate::harness::kafka::Kafka;
use crate::harness::postgres::{Postgres, USUAL, connect};
use crate::harness::relay::{Relay, RelayConfig, said};
use crate::harness::{SOON, wait_until};
use crate::orders::{ARRIVAL, Orders, wait_for_reason, wait_for_status};

const SLOTS: &str = "SELECT coalesce(array_agg(slot_name::text ORDER BY slot_name), '{}') FROM pg_replication_slots \
                     WHERE database = current_database()";
const PUBLICATIONS: &str =
    "SELECT coalesce(array_agg(pubname::text ORDER BY pubname), '{}') FROM pg_publication";

/// Two services in two schemas of one database, each with the table's usual name and a relay that names nothing.
///
/// They take turns, so that whoever reads the other's slot confirms the other's rows. The report that made people name
/// their slots: https://github.com/apache/flink-cdc/issues/65
#[tokio::test(flavor = "multi_thread")]
async fn two_outboxes_that_name_nothing_read_through_two_slots_and_lose_nothing() {
    for mark in ["none", "ledger"] {
        let two = Two::create(mark).await;
        let name = &two.database;
        let expected =
            ["billing", "orders"].map(|schema| format!("outboxd_{name}__{schema}__outbox"));
        assert_eq!(two.names(SLOTS).await, expected, "{mark}");
        assert_eq!(two.names(PUBLICATIONS).await, expected, "{mark}");
        for turn in 0..4 {
            for schema in SCHEMAS {
                two.insert(schema).await;
            }
            let at = turn % 2;
            let mut relay = Relay::start(&two.configs[at]);
            two.wait_for(at, turn + 1).await;
            wait_for_status(&relay, "it streams", |status| {
                !status["position"]["confirmed_lsn"].is_null()
            })
            .await;
            assert!(relay.terminate().success());
        }
        for (at, schema) in SCHEMAS.into_iter().enumerate() {
            let mut relay = Relay::start(&two.configs[at]);
            two.wait_for(at, 4).await;
            assert!(relay.terminate().success());
            let mut published = two.published(at);
            if mark == "none" {
                // What was read from the table at the first start is known to that process alone.
                let mut seen = std::collections::HashSet::new();
                published.retain(|key| seen.insert(key.clone()));
            }
            assert_eq!(published, ["1", "2", "3", "4"], "{mark} {schema}");
        }
    }
}

/// A slot's name is unique in the whole server.
#[tokio::test(flavor = "multi_thread")]
async fn two_databases_of_one_server_do_not_meet_in_one_slot() {
    let postgres = Postgres::shared(USUAL).await;
    for _ in 0..2 {
        let mut orders = Orders::bare(postgres, "names").await;
        orders.config = orders.config.without("source.replication");
        orders.config.migrate();
        let _relay = Relay::start(&orders.config);
        orders.wait_for(&orders.insert(3).await).await;
    }
}

/// PostgreSQL cuts names after 63 bytes: databases and tables that differ in their last letter alone.
#[tokio::test(flavor = "multi_thread")]
async fn long_names_that_begin_alike_share_nothing() {
    let postgres = Postgres::shared(USUAL).await;
    let admin = postgres.client("postgres").await;
    let prefix = format!("{:x<62}", postgres.create_database("names").await.name);
    let tables = ["a", "b"].map(|last| format!("{:o<62}{last}", "outbox_"));
    let mut slots = Vec::new();
    for last in ["a", "b"] {
        let database = format!("{prefix}{last}");
        let create = format!("CREATE DATABASE {database} TEMPLATE template0");
        admin.batch_execute(&create).await.unwrap();
        let url = postgres.url(&database);
        let brokers = Kafka::shared().await.brokers();
        for table in &tables {
            let config = RelayConfig::of("names", &url, &brokers).table(table);
            let config = config.without("source.replication");
            config.migrate();
            let checked = config.outboxd(&["check"]);
            assert!(checked.status.success(), "{}", said(&checked));
        }
        let client = connect(&url).await;
        for table in &tables {
            let sql = "SELECT p.proname::text FROM pg_proc p WHERE p.prosrc LIKE '%' || $1 || '%'";
            let function: String = client.query_one(sql, &[table]).await.unwrap().get(0);
            let sql = format!("SELECT {function}('order', 'a', 'placed', '{{}}')");
            client.batch_execute(&sql).await.unwrap();
            let sql = format!("SELECT count(*) FROM {table}");
            let rows: i64 = client.query_one(&sql, &[]).await.unwrap().get(0);
            assert_eq!(rows, 1, "{function} writes into {table}");
        }
        let views = "SELECT count(*) FROM pg_views WHERE viewname LIKE 'outbox%_status'";
        let views: i64 = client.query_one(views, &[]).await.unwrap().get(0);
        assert_eq!(views, 2);
        let own: Vec<String> = client.query_one(SLOTS, &[]).await.unwrap().get(0);
        let publications: Vec<String> = client.query_one(PUBLICATIONS, &[]).await.unwrap().get(0);
        assert_eq!((own.len(), &own), (2, &publications));
        slots.extend(own);
    }
    slots.sort();
    slots.dedup();
    assert_eq!(slots.len(), 4, "{slots:?}");
    for slot in slots {
        let drop = "SELECT pg_drop_replication_slot($1)";
        admin.execute(drop, &[&slot]).await.unwrap();
    }
}

/// The state of a relay that made its names before databases and schemas were part of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_has_read_through_a_short_name_goes_on_with_it() {
    for mark in ["ledger", "none"] {
        // The short name is shared by all databases of a server.
        let postgres = Postgres::start(USUAL);
        let mut orders = Orders::bare(&postgres, "names").await;
        orders.config = orders.config.mark(mark);
        let named = orders
            .config
            .clone()
            .set("source.replication.slot", "outboxd_outbox")
            .set("source.replication.publication", "outboxd_outbox");
        named.migrate();
        let mut relay = Relay::start(&named);
        let mut ids = orders.insert(3).await;
        orders.wait_for(&ids).await;
        confirmed(&relay).await;
        assert!(relay.terminate().success());
        orders.run("DROP TABLE outboxd.slot").await;
        ids.extend(orders.insert(3).await);
        let unnamed = orders.config.clone().without("source.replication");
        unnamed.migrate();
        let check = unnamed.outboxd(&["check"]);
        assert!(check.status.success(), "{}", said(&check));
        let _relay = Relay::start(&unnamed);
        orders.wait_for(&ids).await;
        let slots: Vec<String> = orders.client.query_one(SLOTS, &[]).await.unwrap().get(0);
        assert_eq!(slots, ["outboxd_outbox"], "{mark}");
        assert_eq!(orders.published().len(), ids.len(), "{mark}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_of_another_outbox_is_refused_with_its_owner_and_the_remedy() {
    let two = Two::create("ledger").await;
    let taken = &two.names(SLOTS).await[0];
    let config = two.configs[0]
        .clone()
        .set("source.replication.slot", taken.as_str())
        .set("source.replication.publication", taken.as_str());
    let remedy = format!("outboxd_{}__orders__outbox", two.database);
    for command in [&["check"][..], &["migrate"], &["slot", "drop", "--yes"]] {
        let done = config.outboxd(command);
        assert_eq!(done.status.code(), Some(1), "{command:?}");
        let text = said(&done);
        assert!(
            text.contains("is read for `billing.outbox`"),
            "{command:?}: {text}"
        );
        assert!(
            command[0] == "slot" || text.contains(&remedy),
            "{command:?}: {text}"
        );
    }
    let relay = Relay::start(&config);
    let status = wait_for_reason(&relay, "halted", "is read for `billing.outbox`").await;
    assert!(
        status["reason"]
            .as_str()
            .unwrap_or_default()
            .contains(&remedy),
        "{status}"
    );
}

/// Somebody's slot, such as Debezium's: whoever reads it takes its rows.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_nobody_knows_is_refused_until_a_person_says_whose_it_is() {
    let orders = Orders::bare(Postgres::shared(USUAL).await, "names").await;
    let slot = format!("{}_theirs", orders.database.name);
    orders
        .run(&format!(
            "SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"
        ))
        .await;
    let config = orders
        .config
        .clone()
        .set("source.replication.slot", slot.as_str());
    for command in ["migrate", "check"] {
        let done = config.outboxd(&[command]);
        assert_eq!(done.status.code(), Some(1), "{command}");
    }
    let refused = said(&config.outboxd(&["migrate"]));
    assert!(
        refused.contains("nothing says that it is this outbox's"),
        "{refused}"
    );
    let (_, statement) = refused
        .split_once("made for this outbox: ")
        .expect("a statement");
    orders.run(statement.trim()).await;
    config.migrate();
    let check = config.outboxd(&["check"]);
    assert!(check.status.success(), "{}", said(&check));
    let _relay = Relay::start(&config);
    orders.wait_for(&orders.insert(3).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_of_others_is_never_changed() {
    let orders = Orders::bare(Postgres::shared(USUAL).await, "names").await;
    orders
        .run("CREATE TABLE theirs (id int PRIMARY KEY); CREATE PUBLICATION theirs FOR TABLE theirs")
        .await;
    let config = orders
        .config
        .clone()
        .set("source.replication.publication", "theirs");
    let done = config.outboxd(&["migrate"]);
    assert_eq!(done.status.code(), Some(1));
    assert!(
        said(&done).contains("nothing says that it is this outbox's"),
        "{}",
        said(&done)
    );
    let published = "SELECT count(*) FROM pg_publication_tables WHERE pubname = 'theirs'";
    let row = orders.client.query_one(published, &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_the_configuration_no_longer_names_is_said_with_the_statement_that_drops_it() {
    for mark in ["ledger", "sent_at", "delete"] {
        let orders = Orders::create(Postgres::shared(USUAL).await, "names", |config| {
            config.mark(mark)
        })
        .await;
        let mut relay = Relay::start(&orders.config);
        let mut ids = orders.insert(3).await;
        orders.wait_for(&ids).await;
        confirmed(&relay).await;
        assert!(relay.terminate().success());
        ids.extend(orders.insert(3).await);
        let (a, b) = (
            orders.config.name().to_owned(),
            format!("{}_b", orders.config.name()),
        );
        let config = orders
            .config
            .clone()
            .set("source.replication.slot", b.as_str());
        let relay = Relay::start(&config);
        orders.wait_for(&ids).await;
        let drops = format!("SELECT pg_drop_replication_slot('{a}');");
        relay
            .wait_for_log("another slot is named: the table is read", ARRIVAL)
            .await;
        let log = relay.log();
        assert!(log.contains(&drops) && !log.contains("is gone"), "{log}");
        let says = |text: &str| text.contains(&drops);
        wait_for_status(&relay, "which slot nobody reads", |status| {
            let slots = status["unread_slots"].as_array();
            slots.is_some_and(|slots| slots.iter().filter_map(Value::as_str).any(says))
        })
        .await;
        let check = config.outboxd(&["check"]);
        assert!(
            check.status.success() && says(&said(&check)),
            "{}",
            said(&check)
        );
        orders.run(&drops).await;
        ids.extend(orders.insert(3).await);
        orders.wait_for(&ids).await;
        assert_eq!(orders.published(), ids, "{mark}");
        assert!(!says(&said(&config.outboxd(&["check"]))));
    }
}

/// Only the slot knows what was sent: a person decides.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_mark_another_slot_halts_until_a_person_decides() {
    let orders = Orders::create(Postgres::shared(USUAL).await, "names", |config| {
        config.mark("none")
    })
    .await;
    let mut relay = Relay::start(&orders.config);
    confirmed(&relay).await;
    let mut ids = orders.insert(3).await;
    orders.wait_for(&ids).await;
    assert!(relay.terminate().success());
    ids.extend(orders.insert(3).await);
    let b = format!("{}_b", orders.config.name());
    let config = orders
        .config
        .clone()
        .set("source.replication.slot", b.as_str());
    let said_by = |command: &str| {
        let done = config.outboxd(&[command]);
        assert_eq!(done.status.code(), Some(1), "{command}: {}", said(&done));
        said(&done)
    };
    let text = format!("the rows were read through `{}`", orders.config.name());
    for command in ["migrate", "check"] {
        let said = said_by(command);
        assert!(said.contains(&text), "{command}: {said}");
    }
    let other = Relay::start(&config);
    wait_for_reason(&other, "halted", &text).await;
    drop(other);
    // A second relay of the table is a decision, too, and then it reads what is committed from now on.
    let refused = said_by("migrate");
    let (_, statement) = refused
        .split_once("from its creation on: ")
        .expect("a statement");
    orders.run(statement.trim()).await;
    config.migrate();
    relay.restart();
    orders.wait_for(&ids).await;
    assert_eq!(orders.published(), ids);
}

/// The slot has taken over and its position was confirmed.
async fn confirmed(relay: &Relay) {
    wait_for_status(relay, "it streams", |status| {
        !status["position"]["confirmed_lsn"].is_null()
    })
    .await;
}

const SCHEMAS: [&str; 2] = ["orders", "billing"];

/// One database with an outbox in each of two schemas.
struct Two {
    database: String,
    client: Client,
    kafka: &'static Kafka,
    configs: [RelayConfig; 2],
}

impl Two {
    async fn create(mark: &str) -> Self {
        let kafka = Kafka::shared().await;
        let database = Postgres::shared(USUAL).await.create_database("names").await;
        let client = database.client().await;
        let topic = Kafka::unique_name(&database.name);
        for schema in SCHEMAS {
            client
                .batch_execute(&format!("CREATE SCHEMA {schema}"))
                .await
                .expect("a schema");
            kafka
                .create_topic(&format!("{topic}.{schema}"), 1, &[])
                .await;
        }
        let configs = SCHEMAS.map(|schema| {
            let config = RelayConfig::new(&database, kafka)
                .without("source.replication")
                .mark(mark)
                .table(&format!("{schema}.outbox"))
                .topic(&format!("{topic}.${{aggregatetype}}"));
            config.migrate();
            config
        });
        Self {
            database: database.name.clone(),
            client,
            kafka,
            configs,
        }
    }

    async fn names(&self, sql: &str) -> Vec<String> {
        self.client
            .query_one(sql, &[])
            .await
            .expect("read the catalog")
            .get(0)
    }

    /// Commits the next row of a schema; its aggregate's id is its number.
    async fn insert(&self, schema: &str) {
        let sql = format!(
            "INSERT INTO {schema}.outbox (aggregatetype, aggregateid, type, payload) \
             SELECT '{schema}', count(*) + 1, 'placed', '{{}}' FROM {schema}.outbox"
        );
        self.client.batch_execute(&sql).await.expect("insert a row");
    }

    /// The keys of all records of a schema.
    fn published(&self, at: usize) -> Vec<String> {
        let topic = self.configs[at].topic_of(SCHEMAS[at]);
        let reads = self.kafka.read_topic(&topic);
        let keys = reads.iter().map(|read| read.key_text().unwrap_or_default());
        keys.map(str::to_owned).collect()
    }

    async fn wait_for(&self, at: usize, rows: usize) {
        wait_until("the rows are published", SOON, async || {
            match self.published(at).len() {
                published if published >= rows => Ok(()),
                published => Err(format!("{published} of {rows}")),
            }
        })
        .await;
    }
}
