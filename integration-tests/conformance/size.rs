//! A large transaction and a large row.

use uuid::Uuid;

use super::scene::{Pair, Scene};
use crate::harness::load::write_rows;
use crate::harness::order_writer::Fate;

/// Twice the rows that may be in flight at once.
pub async fn a_large_transaction_is_published_in_order(pair: Pair) {
    let scene = Scene::new(pair).await;
    let mut relay = scene.start();
    for (aggregate, rows) in [(1, 5), (2, 20_000), (1, 5), (2, 5)] {
        let written = write_rows(&scene.client, aggregate, rows, Fate::Commit).await;
        written.expect("write rows");
    }
    scene.judge_to_the_end(&mut relay).await;
}

/// Incompressible, and within what a topic takes by default.
pub async fn a_payload_of_a_megabyte_is_published(pair: Pair) {
    let scene = Scene::own_table(pair).await;
    scene.create_table("outbox", "bytea").await;
    scene.config.migrate();
    let mut bytes = vec![0; 1_000_000];
    fastrand::fill(&mut bytes);
    let sql = "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload) VALUES ($1, 'order', '1', 'Made', $2)";
    for _ in 0..3 {
        let values: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&Uuid::new_v4(), &bytes];
        scene
            .client
            .execute(sql, &values)
            .await
            .expect("insert a row");
    }
    let _relay = scene.start();
    let reads = scene.wait_for(&mut scene.reader(), 3).await;
    assert!(
        reads
            .iter()
            .all(|read| read.value.as_deref() == Some(bytes.as_slice()))
    );
    scene.wait_until_marked().await;
}
