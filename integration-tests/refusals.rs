//! What a user gets wrong or lacks: `check` names it with its remedy, `run` lives on and says it, secrets never show.

mod files;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use outboxd::config::{Config, Secret};
use outboxd::postgres::ConnectOptions;
use outboxd::postgres::catalog;
use outboxd::source::Source;
use outboxd::source::replication::pgoutput::Described;

use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::relay::{Relay, RelayConfig, outboxd, said};
use crate::harness::{wait_until, workspace};
use crate::orders::{ARRIVAL, Orders, wait_for_status};

/// In every URL of this file, and in no output.
const PASSWORD: &str = "hunter2-is-secret";

static ROLES: AtomicU32 = AtomicU32::new(0);

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_refused_until_it_is_right() {
    let mut postgres = Postgres::start(USUAL);
    postgres.configure_access(
        "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n",
    );
    postgres.reload();
    let orders = Orders::create(&postgres, "password", |config| config).await;
    let role = relay_role(&orders, "REPLICATION").await;
    orders
        .run(&format!("ALTER ROLE {role} PASSWORD 'another'"))
        .await;
    let config = as_role(&orders, &role);
    let text = "password authentication failed for user";
    assert_check(&config, &[text, "`source.url` or `source.url_file`"]);
    let relay = Relay::start(&config);
    assert_says(&relay, "starting", text).await;
    let id = orders.insert(1).await;
    orders
        .run(&format!("ALTER ROLE {role} PASSWORD '{PASSWORD}'"))
        .await;
    orders.wait_for(&id).await;
    assert_no_secret(&relay.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_database_is_named() {
    let orders = orders(|config| config).await;
    let url = with_password(&orders.database.url, "postgres");
    let url = url.replace(&orders.database.name, "no_such_database");
    let config = orders.config.clone().set("source.url", url);
    let text = "database \"no_such_database\" does not exist";
    assert_check(&config, &[text, "`source.url`"]);
    assert_says(&Relay::start(&config), "halted", text).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_is_named_and_waited_for() {
    let orders = orders(|config| config).await;
    let port = workspace::free_port();
    let url = format!("postgres://postgres:{PASSWORD}@127.0.0.1:{port}/orders");
    let config = orders.config.clone().set("source.url", url);
    let text = format!("cannot connect to `127.0.0.1:{port}`");
    assert_check(&config, &[&text, "Connection refused"]);
    assert_says(&Relay::start(&config), "starting", &text).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_table_is_named_with_the_command_that_creates_it() {
    let orders = Orders::bare(Postgres::shared(USUAL).await, "refusals").await;
    let config = as_role(&orders, "postgres");
    assert_check(
        &config,
        &[
            "table `public.outbox` does not exist",
            "`outboxd migrate --config ",
        ],
    );
    let relay = Relay::start(&config);
    assert_says(&relay, "halted", "table `public.outbox` does not exist").await;
    let tables = "SELECT count(*) FROM pg_class WHERE relname = 'outbox'";
    let tables: i64 = orders.client.query_one(tables, &[]).await.unwrap().get(0);
    assert_eq!(tables, 0, "the relay made an outbox of a wrong name");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_column_is_named_beside_those_that_are_there() {
    let orders = orders(|config| config).await;
    orders
        .run("ALTER TABLE outbox DROP COLUMN payload CASCADE")
        .await;
    let config = as_role(&orders, "postgres");
    let text =
        "table `public.outbox` has no column `payload`; its columns are `id`, `aggregatetype`";
    assert_check(&config, &[text, "[source.columns]"]);
    assert_says(&Relay::start(&config), "halted", text).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_of_a_wrong_type_is_named_with_the_sql_that_changes_it() {
    let orders = orders(|config| config).await;
    orders
        .run("DROP VIEW outbox_status; ALTER TABLE outbox ALTER COLUMN payload TYPE int USING 1")
        .await;
    let config = as_role(&orders, "postgres");
    let text = "table `public.outbox` has columns of a type the relay cannot use: `payload`";
    let sql = "ALTER TABLE \"public\".\"outbox\" ALTER COLUMN \"payload\" TYPE";
    let check = assert_check(&config, &[text, sql]);
    assert_says(&Relay::start(&config), "halted", text).await;
    // The printed SQL is the remedy.
    let sql = check.lines().find(|line| line.contains(sql)).unwrap();
    orders.run(sql).await;
    config.migrate();
    let check = config.outboxd(&["check"]);
    assert!(!said(&check).contains(text), "{}", said(&check));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_the_role_may_not_create_is_asked_for_with_its_sql() {
    let orders = orders(|config| config).await;
    let role = relay_role(&orders, "REPLICATION").await;
    let name = format!("outboxd_{}", orders.database.name);
    orders.run(&format!("DROP PUBLICATION {name}")).await;
    let config = as_role(&orders, &role);
    let create = format!("CREATE PUBLICATION \"{name}\" FOR TABLE \"public\".\"outbox\"");
    let check = assert_check(
        &config,
        &[&format!("publication `{name}` is not there"), &create],
    );
    let text = format!("this role may not create publication `{name}`");
    let relay = Relay::start(&config);
    let reason = assert_says(&relay, "halted", &text).await;
    assert!(reason.contains("`outboxd migrate`"), "{reason}");
    let sql = check.lines().find(|line| line.contains(&create)).unwrap();
    orders.run(sql).await;
    let check = config.outboxd(&["check"]);
    assert!(check.status.success(), "{}", said(&check));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wal_level_that_is_not_logical_is_named_with_the_setting() {
    let postgres = Postgres::start_with(USUAL, &[("wal_level", "replica")]);
    let orders = Orders::bare(&postgres, "wal").await;
    // Everything but the slot.
    let config = as_role(&orders, "postgres");
    config.clone().mode("polling").migrate();
    assert_check(
        &config,
        &[
            "`replica`, and replication needs `logical`",
            "ALTER SYSTEM SET wal_level = logical;",
        ],
    );
    let relay = Relay::start(&config);
    assert_says(
        &relay,
        "halted",
        "`replica`, and replication needs `logical`",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_without_replication_is_retried_until_it_may() {
    let orders = orders(|config| config).await;
    let role = relay_role(&orders, "NOREPLICATION").await;
    let config = as_role(&orders, &role);
    assert_check(
        &config,
        &[
            &format!("role `{role}` may not replicate"),
            &format!("ALTER ROLE \"{role}\" REPLICATION;"),
        ],
    );
    let relay = Relay::start(&config);
    assert_says(&relay, "leader", "replication role to start walsender").await;
    let id = orders.insert(1).await;
    orders
        .run(&format!("ALTER ROLE \"{role}\" REPLICATION;"))
        .await;
    orders.wait_for(&id).await;
    assert_no_secret(&relay.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_which_nothing_is_known_are_asked_about() {
    for mode in ["replication", "polling"] {
        let orders = Orders::bare(Postgres::shared(USUAL).await, "refusals").await;
        orders
            .run(
                "CREATE TABLE outbox (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), aggregatetype text NOT NULL, \
                 aggregateid text NOT NULL, type text NOT NULL, payload json, \
                 seq bigint GENERATED ALWAYS AS IDENTITY UNIQUE)",
            )
            .await;
        let mut ids = orders.insert(3).await;
        let config = as_role(&orders, "postgres").mode(mode);
        config.migrate();
        let text = "holds 3 rows and nothing is known of them";
        assert_check(
            &config,
            &[text, "source.start = \"all\"", "source.start = \"now\""],
        );
        let relay = Relay::start(&config);
        let reason = assert_says(&relay, "halted", text).await;
        assert!(reason.contains("source.start"), "{reason}");
        assert!(orders.published().is_empty());
        drop(relay);
        let start = if mode == "polling" { "now" } else { "all" };
        if start == "now" {
            ids.clear();
        }
        let _relay = Relay::start(&config.set("source.start", start));
        wait_for_row(
            &orders,
            "SELECT count(*) FROM outboxd.outbox WHERE start IS NOT NULL",
        )
        .await;
        ids.extend(orders.insert(2).await);
        orders.wait_for(&ids).await;
        assert_eq!(
            orders.published().len(),
            ids.len(),
            "source.start = {start}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mode_and_a_mark_that_the_table_does_not_allow_are_refused_with_the_reason() {
    let ledger = orders(|config| config).await;
    ledger
        .run("DROP VIEW outbox_status; ALTER TABLE outbox DROP COLUMN seq")
        .await;
    let config = as_role(&ledger, "postgres");
    let no_seq = "the table has no column `seq`";
    let add_seq = "ALTER TABLE \"public\".\"outbox\" ADD COLUMN \"seq\" bigint GENERATED ALWAYS AS IDENTITY UNIQUE;";
    assert_check(
        &config,
        &["replication with ledger is not possible", no_seq, add_seq],
    );
    assert_says(&Relay::start(&config), "halted", "`seq`").await;
    let config = config.mode("polling").mark("delete");
    let no_order = "no other column gives the order of unsent rows";
    assert_check(&config, &[no_order, "source.order_column"]);
    assert_says(&Relay::start(&config), "halted", no_order).await;

    let sent_at = orders(|config| config).await;
    let config = as_role(&sent_at, "postgres").mark("sent_at");
    let no_sent_at = "the table has no column `sent_at`";
    let add_sent_at = "ALTER TABLE \"public\".\"outbox\" ADD COLUMN \"sent_at\" timestamptz;";
    assert_check(&config, &[no_sent_at, add_sent_at]);
    assert_says(&Relay::start(&config), "halted", "`sent_at`").await;

    let none = sent_at.config.clone().mode("polling").mark("none");
    let done = none.outboxd(&["check"]);
    assert_eq!(done.status.code(), Some(2), "{}", said(&done));
    assert!(said(&done).contains("can't be polled"), "{}", said(&done));
}

/// The same ids in two tenants: of 1,601 rows 78 were marked in the place of their namesakes, and never published.
#[tokio::test(flavor = "multi_thread")]
async fn ids_that_repeat_are_refused_where_they_tell_rows_apart() {
    let tenants = orders(|config| config).await;
    tenants
        .run(
            "DROP VIEW outbox_status; ALTER TABLE outbox DROP COLUMN seq, DROP CONSTRAINT outbox_pkey, \
             ADD COLUMN tenant integer NOT NULL DEFAULT 1, ADD COLUMN sent_at timestamptz, ADD PRIMARY KEY (tenant, id)",
        )
        .await;
    let text = "two rows may share an `id`";
    let remedy = "CREATE UNIQUE INDEX CONCURRENTLY ON \"public\".\"outbox\" (\"id\");";
    for (mode, mark) in [
        ("polling", "sent_at"),
        ("polling", "delete"),
        ("replication", "sent_at"),
        ("replication", "delete"),
        ("replication", "none"),
    ] {
        let config = as_role(&tenants, "postgres").mode(mode).mark(mark);
        let config = config.set("source.order_column", "created_at");
        assert_check(&config, &[text, remedy]);
        assert_says(&Relay::start(&config), "halted", text).await;
    }
}

/// A rule may turn the statement that marks rows into nothing.
#[tokio::test(flavor = "multi_thread")]
async fn rules_that_rewrite_marks_are_refused() {
    let orders = orders(|config| config).await;
    orders
        .run("CREATE RULE kept AS ON DELETE TO outbox DO INSTEAD NOTHING")
        .await;
    let text = "the rule kept ON outbox rewrites the statement that marks rows";
    for mode in ["polling", "replication"] {
        let config = as_role(&orders, "postgres").mode(mode).mark("delete");
        assert_check(&config, &[text, "DROP RULE kept ON outbox;"]);
        assert_says(&Relay::start(&config), "halted", text).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn state_of_a_newer_version_is_refused() {
    let orders = orders(|config| config).await;
    orders
        .run("UPDATE outboxd.schema_version SET version = 99")
        .await;
    let config = as_role(&orders, "postgres");
    let text = "the state tables have version 99";
    assert_check(&config, &[text, "use a newer outboxd"]);
    assert_says(&Relay::start(&config), "halted", text).await;
    let migrate = config.outboxd(&["migrate"]);
    assert_eq!(migrate.status.code(), Some(1), "{}", said(&migrate));
    assert!(said(&migrate).contains(text), "{}", said(&migrate));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_in_use_by_another_reader_is_waited_for_and_the_reader_is_named() {
    let orders = orders(|config| config).await;
    let config = as_role(&orders, "postgres");
    let parsed = Config::parse("outboxd.toml", &config.text(), []).unwrap();
    let options = ConnectOptions::parse(&Secret::new(orders.database.url.clone())).unwrap();
    let table = catalog::inspect(&orders.client, "public", "outbox", &Default::default()).await;
    let outbox = Described::new(&parsed.route, &table.unwrap());
    let reader = Source::stream(&options, &parsed.source.replication, outbox, 1_000_000).await;
    let reader = reader.expect("the slot is free");
    let sql = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1";
    let slot = &parsed.source.replication.slot;
    let pid: i32 = orders.client.query_one(sql, &[slot]).await.unwrap().get(0);
    let check = config.outboxd(&["check"]);
    assert!(
        said(&check).contains(&format!("read by pid {pid}")),
        "{}",
        said(&check)
    );
    let relay = Relay::start(&config);
    assert_says(&relay, "leader", &format!("is active for PID {pid}")).await;
    let id = orders.insert(1).await;
    let dropped = config.outboxd(&["slot", "drop", "--yes"]);
    assert_eq!(dropped.status.code(), Some(1));
    assert!(
        said(&dropped).contains(&format!("is being read by pid {pid}")),
        "{}",
        said(&dropped)
    );
    assert!(orders.published().is_empty());
    drop(reader);
    let left_at = Instant::now();
    orders.wait_for(&id).await;
    println!(
        "went on {:?} after the other reader left",
        left_at.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_gone_halts_and_migrate_gets_it_going_without_loss() {
    let orders = orders(|config| config.set("source.replication.on_lost_slot", "halt")).await;
    let mut relay = Relay::start(&orders.config);
    let mut ids = orders.insert(5).await;
    orders.wait_for(&ids).await;
    orders.wait_until_marked().await;
    // Until the stream has taken over, a missing slot costs nothing and is simply created.
    wait_for_row(
        &orders,
        "SELECT count(*) FROM outboxd.outbox WHERE caught_up",
    )
    .await;
    assert!(relay.terminate().success());
    let slot = format!("outboxd_{}", orders.database.name);
    orders
        .run(&format!("SELECT pg_drop_replication_slot('{slot}')"))
        .await;
    ids.extend(orders.insert(5).await);
    relay.restart();
    let reason = assert_says(&relay, "halted", &format!("slot `{slot}` is gone")).await;
    assert!(
        reason.contains("`outboxd migrate` creates a new one"),
        "{reason}"
    );
    assert!(relay.terminate().success());
    orders.config.migrate();
    relay.restart();
    orders.wait_for(&ids).await;
    ids.extend(orders.insert(5).await);
    orders.wait_for(&ids).await;
    assert_eq!(orders.published().len(), ids.len(), "a row came twice");
}

async fn wait_for_row(orders: &Orders, sql: &str) {
    wait_until(sql, ARRIVAL, async || {
        let row = orders.client.query_one(sql, &[]).await.unwrap();
        match row.get::<_, i64>(0) {
            0 => Err("no row"),
            _ => Ok(()),
        }
    })
    .await;
}

async fn orders(change: impl FnOnce(RelayConfig) -> RelayConfig) -> Orders {
    Orders::create(Postgres::shared(USUAL).await, "refusals", change).await
}

/// A role that logs in, with the relay's grants and nothing more.
async fn relay_role(orders: &Orders, attributes: &str) -> String {
    let number = ROLES.fetch_add(1, Ordering::Relaxed);
    let role = format!("refused_{number}");
    let sql = format!("CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}' {attributes}");
    orders.run(&sql).await;
    let done = orders.config.outboxd(&["migrate", "--relay-role", &role]);
    assert!(done.status.success(), "{}", said(&done));
    role
}

fn as_role(orders: &Orders, role: &str) -> RelayConfig {
    let url = with_password(&orders.database.url, role);
    orders.config.clone().set("source.url", url)
}

fn with_password(url: &str, role: &str) -> String {
    url.replace("//postgres@", &format!("//{role}:{PASSWORD}@"))
}

/// `check` fails, says all of this, and never the password; gives what it said.
fn assert_check(config: &RelayConfig, texts: &[&str]) -> String {
    for arguments in [&["check"][..], &["check", "--json"]] {
        let done = config.outboxd(arguments);
        assert_eq!(done.status.code(), Some(1), "{}", said(&done));
        assert_no_secret(&said(&done));
    }
    let text = said(&config.outboxd(&["check"]));
    for expected in texts {
        assert!(text.contains(expected), "`{expected}` is not in\n{text}");
    }
    text
}

/// `run` lives, plays this role and says why; gives the reason.
async fn assert_says(relay: &Relay, role: &str, text: &str) -> String {
    let status = wait_for_status(relay, &format!("{role}: {text}"), |status| {
        let reason = status["reason"].as_str().unwrap_or_default();
        status["role"] == role && reason.contains(text)
    })
    .await;
    assert_no_secret(&status.to_string());
    assert_no_secret(&relay.log());
    assert_eq!(relay.get("/livez").unwrap().0, 200);
    assert_eq!(relay.get("/readyz").unwrap().0, 200);
    assert_eq!(relay.get("/readyz?strict").unwrap().0, 503);
    status["reason"].as_str().unwrap_or_default().to_owned()
}

fn assert_no_secret(text: &str) {
    assert!(!text.contains(PASSWORD), "the password shows in\n{text}");
}
