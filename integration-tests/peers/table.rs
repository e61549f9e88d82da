//! The table and its publication as others leave them: a backlog, transactions of others, columns left out.

use super::by_ledger;
use crate::conformance::scene::{SOON, Scene, execute, has, insert, retry_all, stop};
use crate::harness::load::write_rows;
use crate::harness::order_writer::Fate;
use crate::harness::relay::said;
use crate::harness::wait_until;
use crate::matrix::locks;
use crate::matrix::scene::gate;

/// Twenty full batches are read one after the other; with a pause between them they would take twenty minutes.
pub async fn oo_05_a_backlog_is_read_without_a_pause(mode: &'static str) {
    let mut scene = Scene::new(by_ledger(mode)).await;
    scene.config = scene
        .config
        .clone()
        .set("source.start", "all")
        .set("source.polling.interval", "60s")
        .set("source.polling.batch_rows", 100);
    for aggregate in 0..20 {
        let written = write_rows(&scene.client, aggregate, 100, Fate::Commit).await;
        written.expect("write rows");
    }
    let mut relay = scene.start();
    scene.judge().await;
    stop(&mut relay);
}

/// A transaction of somebody else that is open for long, here and in another database.
pub async fn wm_03_open_transactions_of_others_stop_nothing(_both: &'static str) {
    gate(locks::long_transaction).await;
}

/// A publication without the payload brings no row: `check` and the relay name the column, and nothing is lost.
pub async fn pq_11_a_column_list_without_the_payload_is_told(mode: &'static str) {
    let scene = Scene::new(by_ledger(mode)).await;
    let mut relay = scene.start_steady().await;
    insert(&scene.client, "order-1", 1).await;
    scene.judge().await;
    stop(&mut relay);
    let name = scene.config.name().to_owned();
    let columns = "(id, aggregatetype, aggregateid, type, seq)";
    execute(&scene.client, &publish_anew(&name, columns)).await;
    let checked = scene.config.outboxd(&["check"]);
    let checked = said(&checked);
    assert!(
        checked.contains("column list") && checked.contains("payload"),
        "{checked}"
    );
    relay.restart();
    insert(&scene.client, "order-1", 2).await;
    wait_until("the relay names the column", SOON, async || {
        let status = relay.try_status()?.to_string();
        match status.contains("payload") {
            true => Ok(()),
            false => Err(status),
        }
    })
    .await;
    execute(&scene.client, &publish_anew(&name, "")).await;
    // What was written meanwhile stays decoded without its payload; the table has it.
    let follower = insert(&scene.client, "order-1", 3).await;
    let other = insert(&scene.client, "order-2", 1).await;
    let mut reader = scene.reader();
    scene.wait_for_row(&mut reader, other).await;
    assert!(!has(reader.read_to_end(), follower));
    retry_all(&scene);
    scene.judge().await;
}

fn publish_anew(publication: &str, columns: &str) -> String {
    format!(
        "ALTER PUBLICATION \"{publication}\" DROP TABLE outbox;
         ALTER PUBLICATION \"{publication}\" ADD TABLE outbox {columns}"
    )
}
