//! Values that PostgreSQL holds and cannot send: their row is blocked with the reason, and all others flow.

use crate::bad_input::rig::{Rig, insert};
use crate::harness::postgres::{Database, Postgres, USUAL};
use crate::harness::relay::{Relay, said};
use crate::orders::{wait_for_reason, wait_for_status};

const TABLE: &str =
    "CREATE TABLE outbox (id text PRIMARY KEY, aggregatetype text, aggregateid text, type text,
    payload text, seq bigint GENERATED ALWAYS AS IDENTITY UNIQUE, sent_at timestamptz)";
const PAIRS: [(&str, &str); 4] = [
    ("replication", "ledger"),
    ("polling", "ledger"),
    ("replication", "sent_at"),
    ("polling", "sent_at"),
];

/// A server whose new databases have this encoding.
async fn rig(postgres: &Postgres, pair: (&str, &str), encoding: &str) -> Rig {
    let make = async |database: &Database| {
        let client = postgres.client("postgres").await;
        let name = &database.name;
        let sql = [
            format!("DROP DATABASE {name}"),
            format!(
                "CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'"
            ),
        ];
        for sql in sql {
            client
                .batch_execute(&sql)
                .await
                .expect("a database of another encoding");
        }
    };
    Rig::with_database(postgres, pair, TABLE, make, |config| config).await
}

/// Inserts a row whose payload holds one byte that has no meaning in UTF-8.
fn broken(id: &str, byte: &str) -> String {
    insert(
        id,
        "payload",
        &format!("convert_from('\\x{byte}', getdatabaseencoding())"),
    )
}

async fn others_flow(mut rig: Rig, byte: &str, code: &str) {
    let what = format!("{} {byte}", rig.config.text());
    let mut relay = Relay::start(&rig.config);
    rig.pass("first").await;
    rig.run(
        &(insert("before", "type", "'x'") + &broken("bad", byte) + &insert("after", "type", "'x'")),
    )
    .await;
    rig.wait_for("after").await;
    wait_for_status(&relay, "one aggregate is blocked", |status| {
        status["blocked_aggregates"].as_u64() == Some(1)
    })
    .await;
    let log = relay.log();
    let reason = format!("cannot send the value of the column `payload` (SQLSTATE {code})");
    assert!(log.contains(&reason), "{what}: {log}");
    rig.pass("later").await;
    assert!(relay.terminate().success());
    relay.restart();
    rig.pass("restarted").await;
    rig.run("UPDATE outbox SET payload = 'mended' WHERE id = 'bad'")
        .await;
    let retry = rig.config.outboxd(&["blocked", "retry", "--all"]);
    assert!(retry.status.success(), "{}", said(&retry));
    let reads = rig.wait_for("bad").await;
    let mut ids: Vec<_> = reads.iter().filter_map(|read| read.header("id")).collect();
    ids.sort_unstable();
    assert_eq!(
        ids,
        ["after", "bad", "before", "first", "later", "restarted"],
        "{what}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_text_block_their_row_alone() {
    let postgres = Postgres::shared(USUAL).await;
    for pair in PAIRS {
        let rig = rig(postgres, pair, "SQL_ASCII").await;
        let check = said(&rig.config.outboxd(&["check"]));
        assert!(check.contains("SQL_ASCII"), "{check}");
        others_flow(rig, "ff", "22021").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_character_without_a_place_in_utf8_blocks_its_row_alone() {
    let postgres = Postgres::shared(USUAL).await;
    for pair in PAIRS {
        others_flow(rig(postgres, pair, "WIN1252").await, "81", "22P05").await;
    }
}

/// In a language that the machine has, other than English if it can be: what happened is told by a code.
#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_comes_back_is_known_in_every_language() {
    let known = std::process::Command::new("locale").arg("-a").output();
    let known = known.map(|done| String::from_utf8_lossy(&done.stdout).into_owned());
    let known = known.unwrap_or_default();
    let foreign = ["de_DE.utf8", "fr_FR.utf8", "es_ES.utf8"];
    let language = foreign
        .into_iter()
        .find(|name| known.lines().any(|line| line == *name));
    let postgres = Postgres::start_with(USUAL, &[("lc_messages", language.unwrap_or("C"))]);
    let pair = ("replication", "ledger");
    let mut rig = Rig::new(&postgres, pair, TABLE, |config| config).await;
    let relay = Relay::start(&rig.config);
    rig.pass("first").await;
    relay
        .wait_for_log(
            "the rows that stood in the table are published",
            crate::orders::ARRIVAL,
        )
        .await;
    let name = rig.config.name().to_owned();
    rig.run(&format!("DROP PUBLICATION {name}")).await;
    rig.run(&insert("without", "type", "'x'")).await;
    wait_for_reason(&relay, "halted", "does not exist").await;
    rig.config.migrate();
    let reads = rig.pass("last").await;
    assert!(
        reads
            .iter()
            .any(|read| read.header("id") == Some("without"))
    );
}
