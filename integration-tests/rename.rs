//! A table that was renamed or moved to another schema: the relay goes on where it was.

use uuid::Uuid;

use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::relay::{Relay, RelayConfig, said};
use crate::orders::{Orders, wait_for_status};

const PAIRS: [(&str, &str); 7] = [
    ("replication", "ledger"),
    ("replication", "sent_at"),
    ("replication", "delete"),
    ("replication", "none"),
    ("polling", "ledger"),
    ("polling", "sent_at"),
    ("polling", "delete"),
];

/// Where a former name is still known.
const LEFT: &str = "SELECT (SELECT count(*) FROM outboxd.outbox WHERE outbox LIKE 'public.outbox%') \
    + (SELECT count(*) FROM outboxd.lease WHERE outbox LIKE 'public.outbox%') \
    + (SELECT count(*) FROM outboxd.ledger WHERE outbox LIKE 'public.outbox%') \
    + (SELECT count(*) FROM outboxd.slot WHERE outbox LIKE 'public.outbox%')";

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_table_is_read_on_in_every_mode_and_mark() {
    for (mode, mark) in PAIRS {
        let orders = create(mode, mark).await;
        let mut ids = sent_before(&orders).await;
        ids.extend(orders.insert(2).await);
        orders.run("ALTER TABLE outbox RENAME TO shop_outbox").await;
        let config = orders.config.clone().table("public.shop_outbox");
        let check = config.outboxd(&["check"]);
        assert!(check.status.success(), "{mode} {mark}: {}", said(&check));
        assert!(said(&check).contains("former name"), "{}", said(&check));
        let mut relay = Relay::start(&config);
        orders.wait_for(&ids).await;
        ids.extend(insert_into(&orders, "shop_outbox").await);
        orders.wait_for(&ids).await;
        assert!(relay.terminate().success());
        relay.restart();
        ids.extend(insert_into(&orders, "shop_outbox").await);
        orders.wait_for(&ids).await;
        assert_eq!(orders.published(), ids, "{mode} {mark}");
        let left = orders.client.query_one(LEFT, &[]).await.unwrap();
        assert_eq!(left.get::<_, i64>(0), 0, "{mode} {mark}");
    }
}

/// The relay's role may neither make the view of the new name nor see it: that concerns people alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_moved_to_another_schema_is_read_on_with_the_least_rights() {
    let mut orders = Orders::bare(Postgres::shared(USUAL).await, "rename").await;
    let role = format!("renamed_{}", orders.database.name);
    orders
        .run(&format!(
            "CREATE ROLE {role} LOGIN REPLICATION; CREATE SCHEMA shop"
        ))
        .await;
    let done = orders.config.outboxd(&["migrate", "--relay-role", &role]);
    assert!(done.status.success(), "{}", said(&done));
    let url = orders
        .database
        .url
        .replace("//postgres@", &format!("//{role}@"));
    orders.config = orders.config.set("source.url", url);
    let mut ids = sent_before(&orders).await;
    orders
        .run(&format!(
            "ALTER TABLE outbox SET SCHEMA shop; GRANT USAGE ON SCHEMA shop TO {role}; \
             INSERT INTO shop.outbox (aggregatetype, aggregateid, type) VALUES ('order', 'a', 'placed')"
        ))
        .await;
    let last = "SELECT id FROM shop.outbox ORDER BY seq DESC LIMIT 1";
    ids.push(orders.client.query_one(last, &[]).await.unwrap().get(0));
    let config = orders.config.clone().table("shop.outbox");
    let check = said(&config.outboxd(&["check"]));
    assert!(
        check.contains("they are those that the relay knows"),
        "{check}"
    );
    let _relay = Relay::start(&config);
    orders.wait_for(&ids).await;
    assert_eq!(orders.published(), ids);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_of_the_former_name_is_waited_for() {
    let orders = create("replication", "ledger").await;
    let mut before = Relay::start(&orders.config);
    let mut ids = orders.insert(3).await;
    orders.wait_for(&ids).await;
    orders.run("ALTER TABLE outbox RENAME TO shop_outbox").await;
    let after = Relay::start(&orders.config.clone().table("public.shop_outbox"));
    wait_for_status(&after, "it stands by", |status| status["role"] == "standby").await;
    ids.extend(insert_into(&orders, "shop_outbox").await);
    assert!(before.terminate().success());
    ids.extend(insert_into(&orders, "shop_outbox").await);
    orders.wait_for(&ids).await;
    wait_for_status(&after, "it leads", |status| status["role"] == "leader").await;
    assert_eq!(orders.published(), ids);
}

/// A table of the former name that was made anew has nothing to do with the one before.
#[tokio::test(flavor = "multi_thread")]
async fn two_tables_that_change_names_keep_their_own_state() {
    let orders = create("polling", "ledger").await;
    let mut ids = sent_before(&orders).await;
    orders.run("ALTER TABLE outbox RENAME TO outbox_old").await;
    let old = orders.config.clone().table("public.outbox_old");
    let relay = Relay::start(&old);
    ids.extend(insert_into(&orders, "outbox_old").await);
    orders.wait_for(&ids).await;
    drop(relay);
    orders.config.migrate();
    let _relay = Relay::start(&orders.config);
    ids.extend(orders.insert(3).await);
    orders.wait_for(&ids).await;
    assert_eq!(orders.published(), ids);
}

async fn create(mode: &str, mark: &str) -> Orders {
    let change = |config: RelayConfig| config.mode(mode).mark(mark);
    Orders::create(Postgres::shared(USUAL).await, "rename", change).await
}

/// Three rows that a relay has sent, marked and, by replication, confirmed before it ended.
async fn sent_before(orders: &Orders) -> Vec<Uuid> {
    let mut relay = Relay::start(&orders.config);
    wait_for_status(&relay, "it reads steadily", |status| {
        let is_polled = status["mode"] == "polling";
        status["state"] == "publishing"
            && (is_polled || !status["position"]["confirmed_lsn"].is_null())
    })
    .await;
    let ids = orders.insert(3).await;
    orders.wait_for(&ids).await;
    assert!(relay.terminate().success());
    ids
}

async fn insert_into(orders: &Orders, table: &str) -> Vec<Uuid> {
    let sql = format!(
        "INSERT INTO {table} (aggregatetype, aggregateid, type, payload) \
         SELECT 'order', 'a', 'placed', '{{}}' FROM generate_series(1, 2) RETURNING id"
    );
    let rows = orders.client.query(&sql, &[]).await.expect("insert rows");
    rows.iter().map(|row| row.get(0)).collect()
}
