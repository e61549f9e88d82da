//! A transaction that changes rows which it inserted: the committed row is what is sent, in both modes.
//!
//! ORMs insert on flush and update before the commit, AFTER INSERT triggers and upserts do the like.

use crate::bad_input::rig::Rig;
use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::relay::{Relay, said};
use crate::harness::topic::Read;
use crate::harness::wait_until;
use crate::orders::ARRIVAL;

const TABLE: &str =
    "CREATE TABLE outbox (id text PRIMARY KEY, aggregatetype text, aggregateid text, type text,
    payload text, seq bigint GENERATED ALWAYS AS IDENTITY UNIQUE, sent_at timestamptz)";

const CHANGES: &str = "\
    BEGIN; INSERT INTO outbox VALUES ('1', 'order', '', 'placed', NULL);
    INSERT INTO outbox VALUES ('2', 'order', 'b', 'placed', repeat('large', 100000));
    UPDATE outbox SET aggregateid = 'order-1', payload = '{}' WHERE id = '1';
    UPDATE outbox SET aggregateid = 'c' WHERE id = '2';
    UPDATE outbox SET id = 'two' WHERE id = '2';
    INSERT INTO outbox VALUES ('1', 'order', 'x', 'placed', 'y') ON CONFLICT (id) DO UPDATE SET type = 'upserted';
    COMMIT;
    UPDATE outbox SET payload = 'changed later' WHERE id = '1';
    BEGIN; INSERT INTO outbox VALUES ('3', 'order', 'd', 'placed', 'third');
    UPDATE outbox SET payload = 'changed by another' WHERE id = 'two'; COMMIT;";

fn told(reads: &[Read]) -> Vec<(String, String, usize)> {
    let text = |text: Option<&str>| text.unwrap_or("NULL").to_owned();
    let told = reads.iter().map(|read| {
        let length = read.value.as_ref().map_or(0, Vec::len);
        (text(read.header("id")), text(read.key_text()), length)
    });
    told.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_is_what_its_transaction_has_made_of_it() {
    for major in [14, USUAL, 18] {
        let postgres = Postgres::shared(major).await;
        for mark in ["ledger", "delete", "none"] {
            let mut rig = Rig::new(postgres, ("replication", mark), TABLE, |config| config).await;
            let check = said(&rig.config.outboxd(&["check"]));
            assert!(!check.contains("as it was inserted"), "{check}");
            let relay = Relay::start(&rig.config);
            rig.pass("first").await;
            relay
                .wait_for_log("the rows that stood in the table are published", ARRIVAL)
                .await;
            rig.run(CHANGES).await;
            let reads = rig.pass("last").await;
            let told = told(&reads);
            let expected = [
                ("first", "first", 2),
                ("1", "order-1", 2),
                ("two", "c", 500_000),
                ("3", "d", 5),
                ("last", "last", 2),
            ];
            let expected =
                expected.map(|(id, key, length)| (id.to_owned(), key.to_owned(), length));
            assert_eq!(told, expected, "{major} {mark}");
        }
    }
}

/// Where changes can't be brought, it is said; and no UPDATE of an application ever fails.
#[tokio::test(flavor = "multi_thread")]
async fn where_changes_are_not_brought_check_says_so_and_updates_go_on() {
    let postgres = Postgres::shared(USUAL).await;
    let keyless = TABLE.replace("PRIMARY KEY", "UNIQUE");
    for (mark, table) in [("sent_at", TABLE), ("ledger", keyless.as_str())] {
        let mut rig = Rig::new(postgres, ("replication", mark), table, |config| config).await;
        let check = said(&rig.config.outboxd(&["check"]));
        assert!(
            check.contains("is sent as it was inserted"),
            "{mark}: {check}"
        );
        let _relay = Relay::start(&rig.config);
        rig.pass("first").await;
        rig.run("UPDATE outbox SET payload = 'later'").await;
        rig.pass("last").await;
    }
}

async fn wait_for_publication(rig: &Rig, condition: &str) {
    let client = rig.database.client().await;
    let name = rig.config.name();
    let sql = format!("SELECT FROM pg_publication WHERE pubname = $1 AND {condition}");
    wait_until(
        "the publication suits the table",
        ARRIVAL,
        async || match client.query_opt(&sql, &[&name]).await {
            Ok(Some(_)) => Ok(()),
            other => Err(format!("{other:?}")),
        },
    )
    .await;
}

/// The publication of an earlier version, and a key that goes away and comes back.
#[tokio::test(flavor = "multi_thread")]
async fn the_publication_follows_the_replica_identity() {
    let postgres = Postgres::shared(USUAL).await;
    let mut rig = Rig::new(postgres, ("replication", "ledger"), TABLE, |config| {
        config.set("source.replication.sweep", "1s")
    })
    .await;
    let name = rig.config.name().to_owned();
    rig.run(&format!(
        "ALTER PUBLICATION {name} SET (publish = 'insert')"
    ))
    .await;
    let check = said(&rig.config.outboxd(&["check"]));
    assert!(check.contains("insert, update"), "{check}");
    let _relay = Relay::start(&rig.config);
    wait_for_publication(&rig, "pubupdate").await;
    rig.pass("first").await;
    rig.run("ALTER TABLE outbox DROP CONSTRAINT outbox_pkey")
        .await;
    wait_for_publication(&rig, "NOT pubupdate").await;
    rig.run("UPDATE outbox SET payload = 'later'").await;
    rig.pass("last").await;
}

/// The server shows the move as a second insert.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_its_transaction_moves_to_another_partition_is_sent_once() {
    let postgres = Postgres::shared(USUAL).await;
    let table = "\
        CREATE TABLE outbox (id text, aggregatetype text, aggregateid text, type text, payload text, part int NOT NULL,
            seq bigint GENERATED ALWAYS AS IDENTITY, PRIMARY KEY (id, part)) PARTITION BY LIST (part);
        CREATE TABLE outbox_0 PARTITION OF outbox FOR VALUES IN (0);
        CREATE TABLE outbox_1 PARTITION OF outbox FOR VALUES IN (1);
        CREATE INDEX ON outbox (seq)";
    let mut rig = Rig::new(postgres, ("replication", "ledger"), table, |config| config).await;
    let relay = Relay::start(&rig.config);
    let insert = |id: &str| {
        format!("INSERT INTO outbox VALUES ('{id}', 'order', '{id}', 'placed', '{id}', 0);")
    };
    rig.run(&insert("first")).await;
    rig.wait_for("first").await;
    relay
        .wait_for_log("the rows that stood in the table are published", ARRIVAL)
        .await;
    let moved = insert("moved");
    rig.run(&format!(
        "BEGIN; {moved} UPDATE outbox SET part = 1, payload = 'there' WHERE id = 'moved'; COMMIT"
    ))
    .await;
    rig.run(&insert("last")).await;
    let reads = rig.wait_for("last").await;
    let payloads: Vec<_> = reads.iter().filter_map(Read::value_text).collect();
    assert_eq!(payloads, ["first", "there", "last"]);
}
