//! The table changes while it is relayed, and what is in the stream beside its rows.

use std::collections::BTreeMap;

use super::rig::{LENIENT, Rig, counts, insert};
use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::relay::Relay;
use crate::orders::wait_for_reason;

/// The view on the table goes first: it holds every column. The relay or `migrate` creates it again.
fn alter(change: &str) -> String {
    format!("BEGIN; DROP VIEW IF EXISTS outbox_status; ALTER TABLE outbox {change}; COMMIT")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_column_halts_until_it_is_back_and_rows_from_between_are_blocked() {
    let postgres = Postgres::shared(USUAL).await;
    for pair in [("replication", "ledger"), ("polling", "ledger")] {
        let mut rig = Rig::new(postgres, pair, LENIENT, |config| config).await;
        let relay = Relay::start(&rig.config);
        rig.pass("first").await;
        rig.run("ALTER TABLE outbox RENAME payload TO body").await;
        let between = insert("between", "type", "'placed'").replace("payload", "body");
        rig.run(&between).await;
        wait_for_reason(&relay, "halted", "`payload`").await;
        rig.run("ALTER TABLE outbox RENAME body TO payload").await;
        let reads = rig.pass("last").await;
        let log = relay.log();
        let is_blocked =
            log.contains("the table had no column `payload` when the row was inserted");
        // The table has the row whole again, the stream has it as it was.
        let expected = if is_blocked { 2 } else { 3 };
        assert_eq!(counts(&reads).len(), expected, "{pair:?}");
        assert_eq!(is_blocked, pair.0 == "replication", "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_that_changes_its_type_keeps_the_bytes_of_each() {
    let postgres = Postgres::shared(USUAL).await;
    for pair in [("replication", "ledger"), ("polling", "ledger")] {
        let mut rig = Rig::new(postgres, pair, LENIENT, |config| config).await;
        let _relay = Relay::start(&rig.config);
        let json = r#"'{"b" : 1,"a":2}'"#;
        rig.run(&insert("text", "payload", json)).await;
        rig.wait_for("text").await;
        rig.run(&alter("ALTER payload TYPE jsonb USING payload::jsonb"))
            .await;
        rig.run(&insert("jsonb", "payload", json)).await;
        rig.wait_for("jsonb").await;
        let bytes = "ALTER payload TYPE bytea USING convert_to(payload::text, 'UTF8')";
        rig.run(&alter(bytes)).await;
        rig.run(&insert("bytea", "payload", r"'\x00ff7b'")).await;
        let reads = rig.wait_for("bytea").await;
        let found: BTreeMap<_, _> = reads
            .iter()
            .map(|read| (read.header("id").unwrap(), read.value.as_deref().unwrap()))
            .collect();
        let expected: [(&str, &[u8]); 3] = [
            ("text", br#"{"b" : 1,"a":2}"#),
            ("jsonb", br#"{"a": 2, "b": 1}"#),
            ("bytea", b"\x00\xff{"),
        ];
        assert_eq!(found, BTreeMap::from(expected), "{pair:?}");
        assert_eq!(reads.len(), 3, "{pair:?}");
    }
}

/// A stream that lies behind a change of the name shows the old name.
#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_table_loses_no_row_that_was_written_under_its_old_name() {
    let postgres = Postgres::shared(USUAL).await;
    let mut rig = Rig::new(postgres, ("replication", "ledger"), LENIENT, |config| {
        config
    })
    .await;
    let mut relay = Relay::start(&rig.config);
    rig.pass("first").await;
    assert!(relay.terminate().success());
    rig.run(&insert("old", "type", "'placed'")).await;
    rig.run("ALTER TABLE outbox RENAME TO events").await;
    rig.run(&insert("new", "type", "'placed'").replace("INTO outbox", "INTO events"))
        .await;
    relay.restart();
    wait_for_reason(&relay, "halted", "`public.outbox` does not exist").await;
    rig.run("ALTER TABLE events RENAME TO outbox").await;
    let reads = rig.pass("last").await;
    assert_eq!(
        counts(&reads),
        BTreeMap::from([("first", 1), ("last", 1), ("new", 1), ("old", 1)])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_in_the_log_is_never_published() {
    let postgres = Postgres::shared(USUAL).await;
    let mut rig = Rig::new(postgres, ("replication", "ledger"), LENIENT, |config| {
        config
    })
    .await;
    let _relay = Relay::start(&rig.config);
    rig.pass("first").await;
    let messages = "\
        SELECT pg_logical_emit_message(false, 'outbox', 'x'), pg_logical_emit_message(true, 'outboxd', 'x'),
            pg_logical_emit_message(true, 'other', repeat('x', 2000000));
        BEGIN; SELECT pg_logical_emit_message(false, 'outbox', 'x'); ROLLBACK;";
    rig.run(messages).await;
    assert_eq!(
        counts(&rig.pass("last").await),
        BTreeMap::from([("first", 1), ("last", 1)])
    );
}

/// PostgreSQL shows the move as an insert: a repetition that consumers know by its id, and no new numbers.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_moves_to_another_partition_is_at_most_repeated() {
    let postgres = Postgres::shared(USUAL).await;
    let table = "\
        CREATE TABLE outbox (id text, aggregatetype text, aggregateid text, type text, payload text,
            region text NOT NULL DEFAULT 'a', seq bigint GENERATED ALWAYS AS IDENTITY) PARTITION BY LIST (region);
        CREATE TABLE outbox_a PARTITION OF outbox FOR VALUES IN ('a');
        CREATE TABLE outbox_b PARTITION OF outbox FOR VALUES IN ('b');
        CREATE INDEX ON outbox (seq)";
    for pair in [("replication", "ledger"), ("polling", "ledger")] {
        let mut rig = Rig::new(postgres, pair, table, |config| config).await;
        let relay = Relay::start(&rig.config);
        for id in ["first", "moved", "stays"] {
            rig.pass(id).await;
        }
        rig.run("UPDATE outbox SET region = 'b' WHERE id = 'moved'")
            .await;
        let reads = rig.pass("last").await;
        let counts = counts(&reads);
        assert!(counts["moved"] <= 2, "{pair:?}: {counts:?}");
        assert_eq!(
            (counts["first"], counts["stays"], counts["last"]),
            (1, 1, 1),
            "{pair:?}"
        );
        let log = relay.log();
        assert!(!log.contains("new generation"), "{pair:?}: {log}");
    }
}
