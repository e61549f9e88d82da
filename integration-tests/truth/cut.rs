//! A connection that is cut while a mark runs.

use super::{Said, scene, wait_until_said};
use crate::harness::proxy::Proxy;
use crate::harness::relay::Relay;
use crate::orders::INSERT;

/// A mark is one statement: what is left of it on the server holds no row, and the next session marks at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_cut_while_a_mark_runs_leaves_no_transaction_that_the_next_mark_waits_for() {
    for pair in [
        ("replication", "sent_at"),
        ("polling", "sent_at"),
        ("polling", "delete"),
    ] {
        let mut orders = scene("cut_mark", pair).await;
        let proxy = Proxy::start(orders.database.port()).await;
        orders.config = orders
            .config
            .set("source.url", orders.database.url_through(&proxy));
        let relay = Relay::start(&orders.config);
        orders.wait_for(&orders.insert(3).await).await;
        wait_until_said(&relay, &Said::waiting(0, 0, 0)).await;
        // Somebody else writes meanwhile, and does not commit.
        let other = orders.database.client().await;
        other.batch_execute("BEGIN").await.expect("begin");
        other.query(INSERT, &[&1_i64]).await.expect("insert");
        let ids = orders.insert(2_000).await;
        proxy.cut();
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
            AND application_name LIKE 'outboxd%' AND state LIKE 'idle in transaction%' AND backend_xid IS NOT NULL";
        let open: i64 = orders.client.query_one(sql, &[]).await.unwrap().get(0);
        assert_eq!(open, 0, "{pair:?}");
        orders.wait_for(&ids).await;
        wait_until_said(&relay, &Said::waiting(0, 0, 0)).await;
        other.batch_execute("COMMIT").await.expect("commit");
        wait_until_said(&relay, &Said::waiting(0, 0, 0)).await;
    }
}
