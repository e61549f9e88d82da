//! The parts of a table: every row of every part is published in its order, or the table is refused.

use crate::bad_input::rig::Rig;
use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::relay::{Relay, said};
use crate::harness::topic::Read;
use crate::orders::wait_for_reason;

const COLUMNS: &str = "id text, aggregatetype text, aggregateid text, type text, payload text,
    seq bigint GENERATED ALWAYS AS IDENTITY UNIQUE, sent_at timestamptz";

/// The statement that inserts the row of one number, whose aggregate all rows share.
fn row(table: &str, number: i64) -> String {
    format!(
        "INSERT INTO {table} (id, aggregatetype, aggregateid, type, payload) VALUES ('{number}', 'order', 'a', 'placed', '{number}');"
    )
}

fn payloads(reads: &[Read]) -> Vec<&str> {
    reads.iter().filter_map(Read::value_text).collect()
}

/// A parent's keys and its publication say nothing of such a child; a SELECT from the parent shows its rows all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_child_by_inheritance_is_refused_until_it_inherits_no_more() {
    let postgres = Postgres::shared(USUAL).await;
    let table =
        format!("CREATE TABLE outbox ({COLUMNS}); CREATE TABLE child () INHERITS (outbox);");
    for pair in [
        ("replication", "none"),
        ("replication", "ledger"),
        ("polling", "ledger"),
    ] {
        let mut rig = Rig::new(postgres, pair, &table, |config| {
            config.set("source.replication.sweep", "1s")
        })
        .await;
        let check = rig.config.outboxd(&["check"]);
        let text = said(&check);
        assert!(!check.status.success(), "{pair:?}: {text}");
        let remedy = r#"ALTER TABLE public.child NO INHERIT "public"."outbox";"#;
        for part in ["`public.child` inherits from it", remedy] {
            assert!(text.contains(part), "{pair:?}: `{part}` is not in {text}");
        }
        let relay = Relay::start(&rig.config);
        wait_for_reason(&relay, "halted", "`public.child` inherits from it").await;
        rig.run(remedy).await;
        rig.run(&row("outbox", 1)).await;
        rig.wait_for_payload("1").await;
        // A child that comes while rows flow is seen by the catalog check.
        rig.run("CREATE TABLE later () INHERITS (outbox)").await;
        wait_for_reason(&relay, "halted", "`public.later` inherits from it").await;
        rig.run("ALTER TABLE later NO INHERIT outbox").await;
        rig.run(&row("outbox", 2)).await;
        let reads = rig.wait_for_payload("2").await;
        assert_eq!(payloads(&reads), ["1", "2"], "{pair:?}");
    }
}

/// Two levels, a default, one that is attached and one that is detached while rows flow.
#[tokio::test(flavor = "multi_thread")]
async fn rows_of_every_partition_are_published_in_their_order() {
    let postgres = Postgres::shared(USUAL).await;
    let table = "\
        CREATE TABLE outbox (id text, aggregatetype text, aggregateid text, type text, payload text,
            part int NOT NULL DEFAULT 0, seq bigint GENERATED ALWAYS AS IDENTITY, sent_at timestamptz) PARTITION BY LIST (part);
        CREATE TABLE outbox_1 PARTITION OF outbox FOR VALUES IN (1) PARTITION BY HASH (id);
        CREATE TABLE outbox_1_0 PARTITION OF outbox_1 FOR VALUES WITH (MODULUS 2, REMAINDER 0);
        CREATE TABLE outbox_1_1 PARTITION OF outbox_1 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
        CREATE TABLE outbox_d PARTITION OF outbox DEFAULT;
        CREATE INDEX ON outbox (seq)";
    let pairs = [
        ("replication", "ledger"),
        ("replication", "none"),
        ("replication", "sent_at"),
        ("polling", "ledger"),
    ];
    for pair in pairs {
        let mut rig = Rig::new(postgres, pair, table, |config| config).await;
        let _relay = Relay::start(&rig.config);
        let insert = |number: i64, part: i64| {
            row("outbox", number)
                .replace("(id,", "(part, id,")
                .replace("VALUES (", &format!("VALUES ({part}, "))
        };
        rig.run(&(insert(1, 0) + &insert(2, 1) + &insert(3, 1) + &insert(4, 7)))
            .await;
        rig.wait_for_payload("4").await;
        rig.run("CREATE TABLE outbox_2 (LIKE outbox INCLUDING DEFAULTS); ALTER TABLE outbox ATTACH PARTITION outbox_2 FOR VALUES IN (2)")
            .await;
        rig.run(&(insert(5, 2) + &insert(6, 1) + &insert(7, 2)))
            .await;
        rig.wait_for_payload("7").await;
        rig.run("ALTER TABLE outbox DETACH PARTITION outbox_2")
            .await;
        rig.run(&(insert(8, 2) + &insert(9, 1))).await;
        let reads = rig.wait_for_payload("9").await;
        let expected = ["1", "2", "3", "4", "5", "6", "7", "8", "9"];
        assert_eq!(payloads(&reads), expected, "{pair:?}");
    }
}
