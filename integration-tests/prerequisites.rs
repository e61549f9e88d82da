//! What server, database and roles lack: `migrate` says it before its first step or instead of "done", and `run` in the
//! words of `check`.

use std::process::{Command, Stdio};

use crate::harness::kafka::Kafka;
use crate::harness::postgres::{Database, Postgres, USUAL, connect};
use crate::harness::relay::{Relay, RelayConfig, said};
use crate::harness::wait_until;
use crate::orders::{ARRIVAL, Orders, wait_for_status};

/// What a command that must fail says.
fn refused(config: &RelayConfig, arguments: &[&str]) -> String {
    let done = config.outboxd(arguments);
    assert_eq!(done.status.code(), Some(1), "{}", said(&done));
    said(&done)
}

async fn assert_untouched(orders: &Orders) {
    let sql = "SELECT count(*) FROM pg_namespace WHERE nspname = 'outboxd'";
    let row = orders.client.query_one(sql, &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 0, "migrate did a step");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_logical_decoding_is_named_alike_by_all_commands() {
    let postgres = Postgres::start_with(USUAL, &[("wal_level", "replica")]);
    named_alike(
        &postgres,
        "`replica`, and replication needs `logical`",
        "SET wal_level = logical",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_slots_are_taken_is_named_alike_by_all_commands() {
    let postgres = Postgres::start_with(USUAL, &[("max_replication_slots", "1")]);
    let client = postgres.client("postgres").await;
    let taken = "SELECT pg_create_physical_replication_slot('taken')";
    client.batch_execute(taken).await.unwrap();
    named_alike(&postgres, "1 of 1 used", "SET max_replication_slots = 5").await;
}

/// A place is free again as soon as somebody leaves: the relay waits, and says for what.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_walsenders_are_taken_is_named_alike_and_waited_for() {
    let Some(psql) = Postgres::client_program("psql") else {
        eprintln!("skipped: psql is not installed");
        return;
    };
    let postgres = Postgres::start_with(USUAL, &[("max_wal_senders", "1")]);
    let orders = Orders::bare(&postgres, "senders").await;
    orders.config.migrate();
    let taken = format!("{}?replication=database", orders.database.url);
    let mut taker = Command::new(psql)
        .args(["-X", &taken])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("run psql");
    wait_until("the place is taken", ARRIVAL, async || {
        let sql = "SELECT count(*) FROM pg_stat_replication";
        let row = orders.client.query_one(sql, &[]).await;
        match row.map_err(|error| error.to_string())?.get::<_, i64>(0) {
            1 => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
    let (text, remedy) = ("max_wal_senders: 1 of 1 used", "SET max_wal_senders = 5");
    let said = refused(&orders.config, &["check"]);
    assert!(said.contains(text) && said.contains(remedy), "{said}");
    let relay = Relay::start(&orders.config);
    wait_for_status(&relay, text, |status| {
        let reason = status["reason"].as_str().unwrap_or_default();
        reason.contains(text) && reason.contains(remedy)
    })
    .await;
    taker.kill().expect("kill psql");
    taker.wait().expect("psql ends");
    orders.wait_for(&orders.insert(3).await).await;
}

async fn named_alike(postgres: &Postgres, text: &str, remedy: &str) {
    let orders = Orders::bare(postgres, "lacks").await;
    let said = refused(&orders.config, &["migrate"]);
    assert!(said.contains(text) && said.contains(remedy), "{said}");
    assert_untouched(&orders).await;
    orders.config.clone().mode("polling").migrate();
    let said = refused(&orders.config, &["check"]);
    assert!(said.contains(text) && said.contains(remedy), "{said}");
    let relay = Relay::start(&orders.config);
    wait_for_status(&relay, text, |status| {
        let reason = status["reason"].as_str().unwrap_or_default();
        status["role"] == "halted" && reason.contains(text) && reason.contains(remedy)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_schema_is_named_before_the_first_step() {
    let orders = Orders::bare(Postgres::shared(USUAL).await, "schemaless").await;
    let config = orders.config.clone().table("shop.outbox");
    for command in ["migrate", "check"] {
        let said = refused(&config, &[command]);
        for part in ["schema `shop` does not exist", "CREATE SCHEMA \"shop\";"] {
            assert!(said.contains(part), "{command}: {said}");
        }
    }
    assert_untouched(&orders).await;
    let relay = Relay::start(&config);
    wait_for_status(&relay, "the schema is missing", |status| {
        let reason = status["reason"].as_str().unwrap_or_default();
        status["role"] == "halted" && reason.contains("CREATE SCHEMA")
    })
    .await;
    drop(relay);
    orders.run("CREATE SCHEMA shop").await;
    config.migrate();
}

/// PostgreSQL warns of a GRANT by somebody who may not, and goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_was_not_granted_is_no_success() {
    let orders = Orders::bare(Postgres::shared(USUAL).await, "grants").await;
    let (migrator, relay) = ("grants_migrator", "grants_relay");
    orders.config.migrate();
    orders
        .run(&format!(
            "CREATE ROLE {migrator} LOGIN; CREATE ROLE {relay} LOGIN REPLICATION; GRANT USAGE ON SCHEMA outboxd TO {migrator};
             GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA outboxd TO {migrator};
             GRANT SELECT ON outbox, outbox_status, outbox_seq_seq TO {migrator}"
        ))
        .await;
    let url = orders
        .database
        .url
        .replace("//postgres@", &format!("//{migrator}@"));
    let config = orders.config.clone().set("source.url", url);
    let said = refused(&config, &["migrate", "--relay-role", relay]);
    assert!(said.contains("not granted"), "{said}");
    assert!(
        said.contains(&format!("role `{migrator}` may not grant")),
        "{said}"
    );
    let (_, statements) = said
        .split_once("as the owner of table and schema:\n")
        .expect(&said);
    orders.run(statements).await;
    let done = config.outboxd(&["migrate", "--relay-role", relay]);
    assert!(
        done.status.success(),
        "{}",
        crate::harness::relay::said(&done)
    );
    let sql = "SELECT has_table_privilege($1, 'outbox', 'SELECT')";
    let row = orders.client.query_one(sql, &[&relay]).await.unwrap();
    assert!(row.get::<_, bool>(0));
    orders
        .run(&format!(
            "DROP OWNED BY {migrator}, {relay}; DROP ROLE {migrator}, {relay}"
        ))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_in_latin1_is_migrated_and_takes_every_note() {
    let postgres = Postgres::shared(USUAL).await;
    let name = "prerequisites_latin1".to_owned();
    let create = format!("CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'");
    postgres
        .client("postgres")
        .await
        .batch_execute(&create)
        .await
        .unwrap();
    let database = Database {
        url: postgres.url(&name),
        name,
    };
    let kafka = Kafka::shared().await;
    let config = RelayConfig::new(&database, kafka);
    config.migrate();
    kafka.create_topic(&config.topic_of("order"), 1, &[]).await;
    let client = connect(&database.url).await;
    let insert = "INSERT INTO outbox (aggregatetype, aggregateid, type, headers) VALUES ('order', 'a', 'x', '{\"id\": \"x\"}')";
    client.batch_execute(insert).await.unwrap();
    let relay = Relay::start(&config);
    wait_for_status(&relay, "the row is blocked", |status| {
        status["blocked_aggregates"] == 1
    })
    .await;
    let list = config.outboxd(&["blocked", "list", "--json"]);
    let list: serde_json::Value = serde_json::from_slice(&list.stdout).unwrap();
    let id = list[0]["id"].as_str().expect("an id");
    let skip = config.outboxd(&[
        "blocked",
        "skip",
        id,
        "--yes",
        "--note",
        "caf\u{e9} \u{2013} \u{201c}done\u{201d} \u{2026}",
    ]);
    assert!(skip.status.success(), "{}", said(&skip));
    let note = "SELECT note FROM outboxd.blocked";
    let note: String = client.query_one(note, &[]).await.unwrap().get(0);
    assert_eq!(note, "caf\u{e9} - \"done\" ...");
}

/// On a server of its own: elsewhere another test may have made the group.
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_who_may_not_create_roles_is_told_of_the_relays_role() {
    let postgres = Postgres::start(USUAL);
    let orders = Orders::bare(&postgres, "roleless").await;
    let name = &orders.database.name;
    orders
        .run(&format!(
            "CREATE ROLE owner LOGIN; CREATE ROLE relay LOGIN; GRANT CREATE ON DATABASE {name} TO owner;
             GRANT CREATE ON SCHEMA public TO owner"
        ))
        .await;
    let url = orders.database.url.replace("//postgres@", "//owner@");
    let config = orders.config.clone().mode("polling").set("source.url", url);
    let done = config.outboxd(&["migrate"]);
    assert!(done.status.success(), "{}", said(&done));
    let hint = "this role may not create roles: `outboxd migrate --relay-role NAME --config ";
    assert!(said(&done).contains(hint), "{}", said(&done));
    let done = config.outboxd(&["migrate", "--relay-role", "relay"]);
    assert!(done.status.success(), "{}", said(&done));
    let url = orders.database.url.replace("//postgres@", "//relay@");
    let check = config.set("source.url", url).outboxd(&["check"]);
    assert!(check.status.success(), "{}", said(&check));
}
