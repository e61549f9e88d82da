//! Many replicas of one outbox, and many outboxes in one database.

use std::collections::HashSet;

use serde_json::Value;
use tokio_postgres::Client;

use crate::harness::kafka::Kafka;
use crate::harness::postgres::{Database, Postgres, USUAL};
use crate::harness::relay::{Relay, RelayConfig};
use crate::harness::wait_until;
use crate::matrix::rig::{Rig, SOON, STREAMED, await_publishing, published};

#[tokio::test(flavor = "multi_thread")]
async fn of_five_replicas_started_at_once_one_publishes_and_the_others_are_quiet() {
    let rig = Rig::shared(STREAMED).await;
    let load = rig.load().await;
    let mut relays: Vec<Relay> = (0..5).map(|_| rig.relay()).collect();
    wait_until("one leads and four stand by", SOON, async || {
        let statuses: Result<Vec<Value>, String> = relays.iter().map(Relay::try_status).collect();
        let statuses = statuses?;
        let count = |role| {
            statuses
                .iter()
                .filter(|status| status["role"] == role)
                .count()
        };
        match (count("leader"), count("standby")) {
            (1, 4) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    load.progress(100, SOON).await;
    let mut publishing = 0;
    for relay in &relays {
        publishing += usize::from(published(relay).await > 0);
        // One line when it begins to wait, then at most one a minute.
        let lines = relay.log().matches("another relay holds the lease").count();
        assert!(lines <= 2, "{lines} lines:\n{}", relay.log());
    }
    assert_eq!(publishing, 1);
    // Whoever leads is stopped until the last one is left.
    while relays.len() > 1 {
        let leader = relays.iter().position(|relay| {
            relay
                .try_status()
                .is_ok_and(|status| status["role"] == "leader")
        });
        if let Some(leader) = leader {
            assert!(relays.swap_remove(leader).terminate().success());
        }
        tokio::time::sleep(crate::harness::POLL).await;
    }
    let before = published(&relays[0]).await;
    await_publishing(&relays[0], before, SOON).await;
    rig.judge(load, 0).await;
}

/// An outbox of its own in a database that others share.
struct Own {
    table: &'static str,
    topic: String,
    relay: Relay,
}

/// Three tables, three relays, three leases, two slots: what happens to one is nothing to the others.
#[tokio::test(flavor = "multi_thread")]
async fn relays_of_several_tables_in_one_database_do_not_disturb_each_other() {
    let kafka = Kafka::shared().await;
    let postgres = Postgres::shared(USUAL).await;
    let database = postgres.create_database("several").await;
    let client = database.client().await;
    let mut owns = Vec::new();
    for (table, mode) in [
        ("first", "replication"),
        ("second", "replication"),
        ("third", "polling"),
    ] {
        owns.push(Own::start(&database, kafka, table, mode).await);
    }
    for own in &owns {
        own.insert_and_await(&client, kafka).await;
    }
    let lives = lives_of_others(&owns).await;
    for _ in 0..3 {
        // The first one dies and comes back; the others go on in their sessions, under their epochs.
        owns[0].relay.kill9();
        owns[0].relay.restart();
        for own in &owns {
            own.insert_and_await(&client, kafka).await;
        }
    }
    assert_eq!(lives, lives_of_others(&owns).await);
}

impl Own {
    async fn start(database: &Database, kafka: &Kafka, table: &'static str, mode: &str) -> Self {
        let slot = format!("outboxd_{}_{table}", database.name);
        let config = RelayConfig::new(database, kafka)
            .table(&format!("public.{table}"))
            .mode(mode)
            .set("source.replication.slot", slot.as_str())
            .set("source.replication.publication", slot.as_str());
        config.migrate();
        let topic = config.topic_of(table);
        kafka.create_topic(&topic, 1, &[]).await;
        let relay = Relay::start(&config);
        Self {
            table,
            topic,
            relay,
        }
    }

    /// Commits ten rows and waits until the topic holds the whole table, in its order, and nothing else.
    async fn insert_and_await(&self, client: &Client, kafka: &Kafka) {
        let table = self.table;
        let insert = format!(
            "INSERT INTO {table} (aggregatetype, aggregateid, type, payload) \
             SELECT '{table}', 'a', 'placed', '{{}}' FROM generate_series(1, 10)"
        );
        client.batch_execute(&insert).await.expect("insert");
        let sql = format!("SELECT id::text FROM {table} ORDER BY seq");
        let rows = client.query(&sql, &[]).await.expect("read the table");
        let expected: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        wait_until("the topic holds the table", SOON, async || {
            let mut seen = HashSet::new();
            let reads = kafka.read_topic(&self.topic);
            let ids = reads.iter().filter_map(|read| read.header("id"));
            let ids: Vec<&str> = ids.filter(|id| seen.insert(id.to_owned())).collect();
            match ids == expected {
                true => Ok(()),
                false => Err(format!("{} of {} rows", ids.len(), expected.len())),
            }
        })
        .await;
    }
}

/// Epoch and ended sessions of every relay but the first.
async fn lives_of_others(owns: &[Own]) -> Vec<(Option<f64>, Option<f64>)> {
    let mut lives = Vec::new();
    for own in &owns[1..] {
        let epoch = own.relay.metric("outboxd_lease_epoch").await;
        lives.push((epoch, own.relay.metric("outboxd_sessions_total").await));
    }
    lives
}
