//! Rows that are published and that PostgreSQL doesn't let be marked as sent.

use std::process::Output;

use serde_json::Value;

use super::scene::{Pair, SOON, Scene, execute, insert, insert_of};
use crate::harness::relay::{Relay, said};
use crate::harness::wait_until;

const BLOCKED: &str = "aggregate is blocked";

/// Another table refers to one of the rows: the statement fails for all that it names. The row is found and named, its
/// aggregate is blocked, the others go on; once the reason is gone, `skip` marks it and releases what follows.
pub async fn a_foreign_key_on_one_row_stops_no_other(pair: Pair) {
    let mut scene = Scene::new(pair).await;
    scene.config = scene.config.clone().set("limits.in_flight_rows_max", 50);
    let mut relay = scene.start_steady().await;
    let id = refused_row(&scene, |id| {
        format!(
            "CREATE TABLE refers (id uuid REFERENCES outbox); INSERT INTO refers VALUES ('{id}')"
        )
    })
    .await;
    the_others_go_on(&scene, &relay, &id).await;
    execute(&scene.client, "DROP TABLE refers").await;
    let done = skip(&scene);
    assert!(done.status.success(), "blocked skip: {}", said(&done));
    scene.judge_to_the_end(&mut relay).await;
}

/// A trigger keeps one row as it is: the statement succeeds and changes nothing. Such a row was published thirteen times a
/// second once.
pub async fn a_trigger_that_undoes_a_mark_is_seen(pair: Pair) {
    let scene = Scene::new(pair).await;
    let mut relay = scene.start_steady().await;
    let event = match pair.mark {
        "delete" => "DELETE",
        _ => "UPDATE",
    };
    let id = refused_row(&scene, |id| {
        format!(
            "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
             CREATE TRIGGER keep BEFORE {event} ON outbox FOR EACH ROW WHEN (OLD.id = '{id}') EXECUTE FUNCTION keep()"
        )
    })
    .await;
    the_others_go_on(&scene, &relay, &id).await;
    let still = skip(&scene);
    assert!(said(&still).contains("changes nothing"), "{}", said(&still));
    execute(&scene.client, "DROP TRIGGER keep ON outbox").await;
    let done = skip(&scene);
    assert!(done.status.success(), "blocked skip: {}", said(&done));
    scene.judge_to_the_end(&mut relay).await;
}

/// Skips the only entry.
fn skip(scene: &Scene) -> Output {
    let listed = scene.config.outboxd(&["blocked", "list", "--json"]);
    let entries: Value = serde_json::from_slice(&listed.stdout).expect("a list as JSON");
    let id = entries[0]["id"].as_str().expect("an entry");
    let note = "it is in Kafka";
    scene
        .config
        .outboxd(&["blocked", "skip", id, "--yes", "--note", note])
}

/// Writes a row whose mark will be refused, by what `sql` makes of its id; the next row of its aggregate waits.
async fn refused_row(scene: &Scene, sql: impl Fn(&str) -> String) -> String {
    execute(&scene.client, "BEGIN").await;
    let id = insert(&scene.client, "order-1", 1).await.to_string();
    execute(&scene.client, &sql(&id)).await;
    execute(&scene.client, "COMMIT").await;
    id
}

async fn the_others_go_on(scene: &Scene, relay: &Relay, id: &str) {
    for version in 1..=200 {
        insert_of(&scene.client, "order", "order-2", version).await;
    }
    wait_until("the row is named", SOON, async || {
        let (status, log) = (relay.try_status()?.to_string(), relay.log());
        match status.contains(id) && log.contains(BLOCKED) && log.contains(id) {
            true => Ok(()),
            false => Err(status),
        }
    })
    .await;
    let mut reader = scene.reader();
    let reads = scene.wait_for(&mut reader, 201).await;
    insert(&scene.client, "order-1", 2).await;
    insert(&scene.client, "order-2", 201).await;
    scene.wait_for(&mut reader, 202).await;
    let copies = reads.iter().filter(|read| read.header("id") == Some(id));
    assert_eq!(copies.count(), 1, "it was published once");
}
