//! What others publish of the same database: it stops neither our own tables nor, without a word, the user's.

use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::relay::{Relay, RelayConfig, said};
use crate::orders::{Orders, wait_for_reason, wait_for_status};

/// Debezium's default, made after `migrate`. Reported of others' tables: https://github.com/duckdb/ducklake/issues/1365
#[tokio::test(flavor = "multi_thread")]
async fn a_publication_of_all_tables_stops_no_relay() {
    for (mode, mark) in [
        ("replication", "ledger"),
        ("replication", "none"),
        ("polling", "ledger"),
        ("polling", "sent_at"),
        ("replication", "delete"),
    ] {
        let orders = create(|config| config.mode(mode).mark(mark)).await;
        orders
            .run("CREATE PUBLICATION everything FOR ALL TABLES")
            .await;
        let mut relay = Relay::start(&orders.config);
        wait_for_status(&relay, "it reads steadily", |status| {
            let is_polled = status["mode"] == "polling";
            status["state"] == "publishing"
                && (is_polled || !status["position"]["confirmed_lsn"].is_null())
        })
        .await;
        let mut ids = orders.insert(3).await;
        orders.wait_for(&ids).await;
        if mark != "none" {
            orders.wait_until_marked().await;
        }
        assert!(relay.terminate().success());
        relay.restart();
        ids.extend(orders.insert(3).await);
        orders.wait_for(&ids).await;
        let check = orders.config.outboxd(&["check"]);
        assert!(check.status.success(), "{mode} {mark}: {}", said(&check));
        assert_eq!(orders.published(), ids, "{mode} {mark}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_table_of_ours_has_a_primary_key_and_migrate_gives_it_to_older_ones() {
    const KEYLESS: &str = "SELECT coalesce(array_agg(c.relname::text), '{}') FROM pg_class c \
        WHERE c.relnamespace = 'outboxd'::regnamespace AND c.relkind = 'r' \
        AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)";
    let orders = create(|config| config).await;
    let keyless =
        async || -> Vec<String> { orders.client.query_one(KEYLESS, &[]).await.unwrap().get(0) };
    assert_eq!(keyless().await, Vec::<String>::new());
    let mut relay = Relay::start(&orders.config);
    let mut ids = orders.insert(3).await;
    orders.wait_for(&ids).await;
    orders.wait_until_marked().await;
    assert!(relay.terminate().success());
    // As the first version made them.
    orders
        .run(
            "ALTER TABLE outboxd.ledger DROP CONSTRAINT ledger_pkey; ALTER TABLE outboxd.ledger DROP COLUMN id; \
             CREATE INDEX ledger_by_segment ON outboxd.ledger (outbox, generation, segment); \
             ALTER TABLE outboxd.schema_version DROP CONSTRAINT schema_version_pkey; \
             CREATE PUBLICATION everything FOR ALL TABLES",
        )
        .await;
    assert_eq!(keyless().await.len(), 2);
    assert_eq!(orders.config.outboxd(&["check"]).status.code(), Some(1));
    orders.config.migrate();
    assert_eq!(keyless().await, Vec::<String>::new());
    relay.restart();
    ids.extend(orders.insert(3).await);
    orders.wait_for(&ids).await;
    assert_eq!(orders.published(), ids);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outbox_whose_marks_a_publication_bars_is_refused_with_the_statement_that_mends_it() {
    for (mode, mark, published) in [
        ("polling", "sent_at", "publish = 'update'"),
        ("replication", "delete", "publish = 'delete'"),
    ] {
        let orders = create(|config| config.mode(mode).mark(mark)).await;
        bar(&orders, &format!("FOR TABLE outbox WITH ({published})")).await;
        let text = refused(&orders.config);
        let relay = Relay::start(&orders.config);
        let status = wait_for_reason(&relay, "halted", "`theirs` publishes").await;
        let remedy = remedy_in(&text);
        assert!(
            status["reason"]
                .as_str()
                .unwrap_or_default()
                .contains(&remedy),
            "{status}"
        );
        orders.run(&remedy).await;
        orders.wait_for(&orders.insert(3).await).await;
        orders.wait_until_marked().await;
        let check = orders.config.outboxd(&["check"]);
        assert!(check.status.success(), "{}", said(&check));
    }
}

/// A column list without the key and a row filter of other columns bar changes as well (PostgreSQL 15).
#[tokio::test(flavor = "multi_thread")]
async fn a_column_list_or_a_filter_that_bars_marks_is_refused() {
    for selection in ["(seq, payload)", "WHERE (aggregatetype = 'order')"] {
        let orders = create(|config| config.mode("polling").mark("delete")).await;
        orders
            .run(&format!(
                "CREATE PUBLICATION theirs FOR TABLE outbox {selection}"
            ))
            .await;
        let text = refused(&orders.config);
        assert!(text.contains("column list or a row filter"), "{text}");
        orders
            .run("ALTER PUBLICATION theirs SET (publish = 'insert')")
            .await;
        let check = orders.config.outboxd(&["check"]);
        assert!(check.status.success(), "{}", said(&check));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_comes_later_is_named_while_the_relay_runs() {
    let orders = create(|config| config.mode("polling").mark("sent_at")).await;
    let relay = Relay::start(&orders.config);
    let mut ids = orders.insert(3).await;
    orders.wait_for(&ids).await;
    orders.wait_until_marked().await;
    bar(&orders, "FOR ALL TABLES").await;
    wait_for_reason(
        &relay,
        "halted",
        "`theirs` publishes updates of public.outbox",
    )
    .await;
    orders.run("DROP PUBLICATION theirs").await;
    ids.extend(orders.insert(3).await);
    orders.wait_for(&ids).await;
    assert_eq!(orders.published(), ids);
}

/// Nothing is removed, and everything is published.
#[tokio::test(flavor = "multi_thread")]
async fn retention_that_a_publication_bars_is_refused_and_rows_are_published() {
    let orders = create(|config| config.set("source.retention", "1h")).await;
    bar(&orders, "FOR ALL TABLES").await;
    let text = refused(&orders.config);
    assert!(text.contains("`theirs` publishes deletes"), "{text}");
    let relay = Relay::start(&orders.config);
    orders.wait_for(&orders.insert(3).await).await;
    wait_for_status(&relay, "why nothing is removed", |status| {
        let last = status["last_error"]["text"].as_str().unwrap_or_default();
        last.contains("no row is removed") && last.contains("`theirs`")
    })
    .await;
}

async fn create(change: impl FnOnce(RelayConfig) -> RelayConfig) -> Orders {
    Orders::create(Postgres::shared(USUAL).await, "neighbours", change).await
}

/// Takes the table's key away, though not that its ids are unique, and lets somebody publish what changes in it.
async fn bar(orders: &Orders, of: &str) {
    orders
        .run(&format!(
            "ALTER TABLE outbox DROP CONSTRAINT outbox_pkey; CREATE UNIQUE INDEX outbox_id ON outbox (id); \
             CREATE PUBLICATION theirs {of}"
        ))
        .await;
}

/// What `check` says, which must refuse.
fn refused(config: &RelayConfig) -> String {
    let check = config.outboxd(&["check"]);
    assert_eq!(check.status.code(), Some(1), "{}", said(&check));
    said(&check)
}

/// The statement that gives the table a replica identity.
fn remedy_in(text: &str) -> String {
    let line = text.lines().find(|line| line.contains("REPLICA IDENTITY"));
    line.expect("a statement").trim().to_owned()
}
