//! Columns that the stream does not carry: the same record in both modes, or a refusal.

use crate::bad_input::rig::Rig;
use crate::harness::kafka::Kafka;
use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::relay::{Relay, said};
use crate::harness::topic::Read;
use crate::harness::wait_until;
use crate::orders::{ARRIVAL, wait_for_reason, wait_for_status};

/// A table that makes topic and key of its own; `{}` says how.
fn table(prefix: &str, stored: &str) -> String {
    format!(
        "CREATE TABLE outbox (id text PRIMARY KEY, aggregatetype text, aggregateid text, type text, payload text,
            seq bigint GENERATED ALWAYS AS IDENTITY UNIQUE, unused text GENERATED ALWAYS AS (payload || '!') STORED,
            topic text GENERATED ALWAYS AS ('{prefix}.own.' || aggregatetype) {stored},
            partitionkey text GENERATED ALWAYS AS ('key of ' || aggregateid) {stored})"
    )
}

const ROW: &str = "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload) VALUES ('1', 'order', 'a', 'placed', 'x')";

/// The table with a topic of its own, and what that topic's name begins with.
async fn rig(postgres: &Postgres, mode: &str, stored: &str) -> (Rig, String) {
    let kafka = Kafka::shared().await;
    let prefix = Kafka::unique_name("generated");
    kafka
        .create_topic(&format!("{prefix}.own.order"), 1, &[])
        .await;
    let table = table(&prefix, stored);
    let rig = Rig::new(postgres, (mode, "ledger"), &table, |config| {
        config.set("route.allow", toml_edit::Array::from_iter(["*"]))
    });
    (rig.await, prefix)
}

/// Inserts a row, and gives the records of its own topic.
async fn own_records(rig: &Rig, relay: &Relay, prefix: &str) -> Vec<Read> {
    rig.run(ROW).await;
    let mut reader = Kafka::shared()
        .await
        .reader(&[&format!("{prefix}.own.order")]);
    wait_until("the row is in its own topic", ARRIVAL, async || {
        let reads = reader.read_to_end();
        match reads.is_empty() {
            false => Ok(reads.to_vec()),
            true => Err(relay.log()),
        }
    })
    .await
}

async fn assert_refused(rig: &Rig, words: &str) {
    let check = rig.config.outboxd(&["check"]);
    let text = said(&check);
    assert!(!check.status.success(), "{text}");
    assert!(text.contains(words), "`{words}` is not in {text}");
    // What no record is made from may be generated.
    assert!(!text.contains("`unused`"), "{text}");
    let relay = Relay::start(&rig.config);
    wait_for_reason(&relay, "halted", words).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn generated_columns_are_read_by_polling_and_refused_by_replication() {
    let postgres = Postgres::shared(USUAL).await;
    let (streamed, _) = rig(postgres, "replication", "STORED").await;
    assert_refused(&streamed, "column `topic` is generated").await;
    let (polled, prefix) = rig(postgres, "polling", "STORED").await;
    let relay = Relay::start(&polled.config);
    let reads = own_records(&polled, &relay, &prefix).await;
    assert_eq!(reads[0].key_text(), Some("key of a"));
}

/// PostgreSQL 18 sends stored ones where the publication says so, and virtual ones never.
#[tokio::test(flavor = "multi_thread")]
async fn generated_columns_that_the_publication_brings_give_the_same_record() {
    let postgres = Postgres::shared(18).await;
    let (virtual_ones, _) = rig(postgres, "replication", "VIRTUAL").await;
    assert_refused(&virtual_ones, "column `topic` is generated when it is read").await;
    let (stored, prefix) = rig(postgres, "replication", "STORED").await;
    assert_refused(&stored, "SET (publish_generated_columns = stored)").await;
    let name = stored.config.name();
    stored
        .run(&format!(
            "ALTER PUBLICATION {name} SET (publish_generated_columns = stored)"
        ))
        .await;
    let check = stored.config.outboxd(&["check"]);
    assert!(check.status.success(), "{}", said(&check));
    let relay = Relay::start(&stored.config);
    let reads = own_records(&stored, &relay, &prefix).await;
    assert_eq!(reads[0].key_text(), Some("key of a"));
}

/// What the publication kept back while it had the list is not read as NULL afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn a_column_list_without_a_column_of_the_record_halts_and_its_rows_are_blocked() {
    let postgres = Postgres::shared(USUAL).await;
    let table = "CREATE TABLE outbox (id text PRIMARY KEY, aggregatetype text, aggregateid text, type text, payload text,
        partitionkey text, seq bigint GENERATED ALWAYS AS IDENTITY UNIQUE, unused text)";
    let mut rig = Rig::new(postgres, ("replication", "ledger"), table, |config| config).await;
    let relay = Relay::start(&rig.config);
    rig.pass("first").await;
    relay
        .wait_for_log("the rows that stood in the table are published", ARRIVAL)
        .await;
    let name = rig.config.name().to_owned();
    let list = |columns: &str| {
        format!(
            "ALTER PUBLICATION {name} DROP TABLE outbox; ALTER PUBLICATION {name} ADD TABLE outbox {columns};"
        )
    };
    rig.run(&list(
        "(id, aggregatetype, aggregateid, type, payload, partitionkey, seq)",
    ))
    .await;
    rig.pass("without the unused one").await;
    rig.run(&list(
        "(id, aggregatetype, aggregateid, type, payload, seq)",
    ))
    .await;
    let keyed = "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, partitionkey) VALUES ('keyed', 'order', 'a', 'placed', 'x', 'k')";
    rig.run(keyed).await;
    wait_for_reason(&relay, "halted", "without partitionkey").await;
    let check = rig.config.outboxd(&["check"]);
    assert!(
        said(&check).contains("without partitionkey"),
        "{}",
        said(&check)
    );
    rig.run(&list("")).await;
    rig.pass("last").await;
    wait_for_status(&relay, "the row is blocked", |status| {
        status["blocked_aggregates"].as_u64() == Some(1)
    })
    .await;
    let retry = rig.config.outboxd(&["blocked", "retry", "--all"]);
    assert!(retry.status.success(), "{}", said(&retry));
    let reads = rig.wait_for("keyed").await;
    let keyed = reads.iter().find(|read| read.header("id") == Some("keyed"));
    assert_eq!(keyed.and_then(Read::key_text), Some("k"));
}
