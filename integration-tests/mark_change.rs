//! A deploy that changes the mark: what was sent is carried over, or the change is refused with what to do.

use uuid::Uuid;

use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::relay::{Relay, said};
use crate::orders::{Orders, wait_for_reason};

/// Nothing is sent again, and what was not sent still is.
#[tokio::test(flavor = "multi_thread")]
async fn marks_that_know_each_others_rows_are_carried_over() {
    for (mode, from, to) in [
        ("replication", "ledger", "sent_at"),
        ("polling", "ledger", "sent_at"),
        ("replication", "sent_at", "ledger"),
        ("polling", "sent_at", "ledger"),
        ("polling", "delete", "ledger"),
        ("replication", "delete", "sent_at"),
    ] {
        let orders = create(mode, from).await;
        let mut ids = sent_before(&orders, 200).await;
        ids.extend(orders.insert(5).await);
        let config = orders.config.clone().mark(to);
        config.migrate();
        let check = config.outboxd(&["check"]);
        assert!(check.status.success(), "{}", said(&check));
        let mut relay = Relay::start(&config);
        orders.wait_for(&ids).await;
        orders.wait_until_marked().await;
        assert!(relay.terminate().success());
        relay.restart();
        ids.extend(orders.insert(5).await);
        orders.wait_for(&ids).await;
        orders.wait_until_marked().await;
        assert_eq!(orders.published(), ids, "{mode} {from} -> {to}");
    }
}

/// And back again: what a person did in between counts.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_there_and_back_repeats_nothing() {
    let orders = create("polling", "ledger").await;
    let mut ids = sent_before(&orders, 3).await;
    for mark in ["sent_at", "ledger", "sent_at"] {
        let config = orders.config.clone().mark(mark);
        config.migrate();
        let mut relay = Relay::start(&config);
        ids.extend(orders.insert(3).await);
        orders.wait_for(&ids).await;
        orders.wait_until_marked().await;
        assert!(relay.terminate().success());
    }
    assert_eq!(orders.published(), ids);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mark_under_which_sent_rows_would_be_sent_again_is_refused() {
    for (from, to, text) in [
        ("ledger", "delete", "rows that were sent stand in the table"),
        (
            "sent_at",
            "delete",
            "rows that were sent stand in the table",
        ),
        ("none", "ledger", "nothing says which of the rows"),
        ("none", "sent_at", "nothing says which of the rows"),
        ("none", "delete", "nothing says which of the rows"),
    ] {
        let orders = create("replication", from).await;
        let mut ids = sent_before(&orders, 3).await;
        let config = orders.config.clone().mark(to);
        config.migrate();
        let check = config.outboxd(&["check"]);
        assert_eq!(check.status.code(), Some(1), "{from} -> {to}");
        assert!(said(&check).contains(text), "{}", said(&check));
        let relay = Relay::start(&config);
        wait_for_reason(&relay, "halted", text).await;
        // What the message says to paste.
        let statement = said(&check);
        let (_, statement) = statement.split_once("DELETE FROM").expect("a statement");
        let (statement, _) = statement.split_once("; or set").expect("the other way");
        orders.run(&format!("DELETE FROM{statement}")).await;
        ids.extend(orders.insert(3).await);
        orders.wait_for(&ids).await;
        assert_eq!(orders.published(), ids, "{from} -> {to}");
    }
}

/// The slot knows what the marks knew, once the stream has taken over.
#[tokio::test(flavor = "multi_thread")]
async fn marks_are_given_up_once_the_slot_knows_what_was_sent() {
    let orders = create("replication", "ledger").await;
    let mut ids = sent_before(&orders, 3).await;
    let config = orders.config.clone().mark("none");
    config.migrate();
    let mut relay = Relay::start(&config);
    ids.extend(orders.insert(3).await);
    orders.wait_for(&ids).await;
    assert!(relay.terminate().success());
    assert_eq!(orders.published(), ids);
    // Polled rows are known to their mark alone.
    let polled = create("polling", "ledger").await;
    sent_before(&polled, 3).await;
    let config = polled.config.clone().mode("replication").mark("none");
    config.migrate();
    let check = config.outboxd(&["check"]);
    assert_eq!(check.status.code(), Some(1));
    assert!(
        said(&check).contains("the slot has not taken over yet"),
        "{}",
        said(&check)
    );
}

/// `sent_at` exists from the start, and `migrate` creates what the first mark needs.
async fn create(mode: &str, mark: &str) -> Orders {
    let postgres = Postgres::shared(USUAL).await;
    let orders = Orders::create(postgres, "remark", |config| config.mode(mode).mark(mark)).await;
    orders
        .run("ALTER TABLE outbox ADD COLUMN IF NOT EXISTS sent_at timestamptz")
        .await;
    orders
}

/// Rows that a relay has sent and marked before it ended.
async fn sent_before(orders: &Orders, rows: i64) -> Vec<Uuid> {
    let mut relay = Relay::start(&orders.config);
    crate::orders::wait_for_status(&relay, "it publishes steadily", |status| {
        let is_polled = status["mode"] == "polling";
        status["state"] == "publishing"
            && (is_polled || !status["position"]["confirmed_lsn"].is_null())
    })
    .await;
    let ids = orders.insert(rows).await;
    orders.wait_for(&ids).await;
    assert!(relay.terminate().success());
    ids
}

/// A trigger that undoes marks would undo those that are carried over, too: 131 rows went out again once.
#[tokio::test(flavor = "multi_thread")]
async fn marks_that_a_trigger_may_undo_are_not_carried_over() {
    let orders = create("replication", "ledger").await;
    let mut ids = sent_before(&orders, 3).await;
    let config = orders.config.clone().mark("sent_at");
    config.migrate();
    orders
        .run(
            "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
             CREATE TRIGGER keep BEFORE UPDATE ON outbox FOR EACH ROW EXECUTE FUNCTION keep()",
        )
        .await;
    let text = "a trigger that runs before each UPDATE";
    let check = config.outboxd(&["check"]);
    assert!(said(&check).contains(text), "{}", said(&check));
    let relay = Relay::start(&config);
    wait_for_reason(&relay, "halted", text).await;
    orders.run("ALTER TABLE outbox DISABLE TRIGGER USER").await;
    ids.extend(orders.insert(3).await);
    orders.wait_for(&ids).await;
    assert_eq!(orders.published(), ids);
}
