//! Ids and aggregates whose text is not what a cast to text gives.

use crate::bad_input::rig::Rig;
use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::relay::{Relay, said};

/// Prepares what the types need.
const TYPES: &str = "\
    CREATE EXTENSION IF NOT EXISTS citext; CREATE TYPE size AS ENUM ('o-1', 'o-2', 'o-3', 'o-4');
    CREATE DOMAIN padded AS char(8); CREATE DOMAIN name_of AS padded CHECK (VALUE <> '');";

/// Types of an id, and how the number `n` is written in each.
const IDS: [(&str, &str); 7] = [
    ("char(32)", "'o-n'"),
    ("name_of", "'o-n'"),
    ("inet", "'10.0.0.n'"),
    ("citext", "'O-n'"),
    ("size", "'o-n'"),
    ("\"char\"", "'n'"),
    ("numeric(10, 2)", "n"),
];

async fn with_id(id_type: &str, pair: (&str, &str)) -> Rig {
    let postgres = Postgres::shared(USUAL).await;
    let table = format!(
        "{TYPES} CREATE TABLE outbox (id {id_type} PRIMARY KEY, aggregatetype text, aggregateid text, type text,
            payload text, seq bigint GENERATED ALWAYS AS IDENTITY UNIQUE, sent_at timestamptz)"
    );
    Rig::new(postgres, pair, &table, |config| config).await
}

async fn insert(rig: &Rig, value: &str, number: i64) {
    let id = value.replace('n', &number.to_string());
    rig.run(&format!(
        "INSERT INTO outbox VALUES ({id}, 'order', 'a', 'placed', '{number}')"
    ))
    .await;
}

/// The ids of one aggregate's rows 1, then a stop, 2 and 3, then a start, 4; each row's payload is its number.
async fn published(id_type: &str, value: &str, pair: (&str, &str)) -> Vec<String> {
    let what = format!("{id_type} {pair:?}");
    let mut rig = with_id(id_type, pair).await;
    let mut relay = Relay::start(&rig.config);
    insert(&rig, value, 1).await;
    rig.wait_for_payload("1").await;
    assert!(relay.terminate().success(), "{what}");
    insert(&rig, value, 2).await;
    insert(&rig, value, 3).await;
    relay.restart();
    insert(&rig, value, 4).await;
    let reads = rig.wait_for_payload("4").await;
    let payloads: Vec<_> = reads.iter().filter_map(|read| read.value_text()).collect();
    assert_eq!(payloads, ["1", "2", "3", "4"], "{what}");
    let ids = reads.iter().filter_map(|read| read.header("id"));
    ids.map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_of_any_type_is_known_again_after_a_restart() {
    for (id_type, value) in IDS {
        let streamed = published(id_type, value, ("replication", "ledger")).await;
        let polled = published(id_type, value, ("polling", "ledger")).await;
        assert_eq!(streamed, polled, "{id_type}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_padded_id_is_known_again_by_marks_in_rows() {
    for pair in [
        ("replication", "sent_at"),
        ("replication", "delete"),
        ("polling", "sent_at"),
        ("polling", "delete"),
    ] {
        published("char(32)", "'o-n'", pair).await;
        published("inet", "'10.0.0.n'", pair).await;
    }
}

/// Blanks that pad a value are no part of its meaning, and no topic can have them.
#[tokio::test(flavor = "multi_thread")]
async fn a_padded_aggregate_type_reaches_the_topic_of_its_word() {
    let postgres = Postgres::shared(USUAL).await;
    let table = "\
        CREATE TABLE outbox (id text PRIMARY KEY, aggregatetype char(10), aggregateid char(6), type char(12),
            payload text, topic char(200), seq bigint GENERATED ALWAYS AS IDENTITY UNIQUE)";
    let mut records = Vec::new();
    for pair in [("replication", "ledger"), ("polling", "ledger")] {
        let mut rig = Rig::new(postgres, pair, table, |config| config).await;
        let check = rig.config.outboxd(&["check"]);
        let said = said(&check);
        assert!(check.status.success(), "{pair:?}: {said}");
        let _relay = Relay::start(&rig.config);
        rig.run("INSERT INTO outbox VALUES ('1', 'order', 'a', 'placed', 'x', NULL)")
            .await;
        let topic = rig.config.topic_of("order");
        rig.run(&format!(
            "INSERT INTO outbox VALUES ('2', 'any', 'a', 'placed', 'y', '{topic}')"
        ))
        .await;
        let reads = rig.wait_for("2").await;
        let found = reads
            .iter()
            .map(|read| (read.key.clone(), read.value.clone()));
        records.push(found.collect::<Vec<_>>());
    }
    assert_eq!(records[0].len(), 2);
    assert_eq!(records[0], records[1]);
    assert_eq!(records[0][0].0.as_deref(), Some(&b"a     "[..]));
}
