//! The leader is frozen with SIGSTOP, a standby takes over, and the frozen one wakes: the zombie.

use std::time::Duration;

use crate::harness::wait_until;
use crate::matrix::rig::{POLLED, Pair, Rig, SOON, STREAMED, WINDOW_ROWS, await_publishing};
use crate::orders::wait_for_status;

/// What the walsender of a frozen relay gets before the server gives it up; a start-up parameter of the relay.
const WAL_SENDER_TIMEOUT: Duration = Duration::from_secs(30);
const LEASE_TTL: Duration = Duration::from_secs(4);
/// Beyond the promised two seconds, for a busy machine; row 6 of `make faults` judges without it.
const SLACK: Duration = Duration::from_secs(45);

#[tokio::test(flavor = "multi_thread")]
async fn a_polling_leader_that_is_frozen_is_replaced_after_its_lease_and_wakes_as_a_standby() {
    freeze(POLLED, Sleep::UntilReplaced).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streaming_leader_frozen_for_six_seconds_wakes_as_a_standby() {
    freeze(STREAMED, Sleep::For(Duration::from_secs(6))).await;
}

#[ignore = "takes a minute: see `make faults`"]
#[tokio::test(flavor = "multi_thread")]
async fn a_streaming_leader_that_stays_frozen_is_replaced_after_wal_sender_timeout() {
    freeze(STREAMED, Sleep::UntilReplaced).await;
}

/// When the frozen leader wakes.
#[derive(Clone, Copy, Debug)]
pub enum Sleep {
    /// Longer than its lease; its walsender may still hold the slot.
    For(Duration),
    /// When the standby publishes.
    UntilReplaced,
}

/// Freezes the leader of two replicas under load and wakes it again.
///
/// The standby publishes within the time that the server gives a silent reader, and two seconds; the one that
/// wakes stands by, has marked nothing wrongly, and repeats no more than it had in flight.
pub async fn freeze(pair: Pair, sleep: Sleep) {
    let rig = Rig::shared(pair).await;
    let client = rig.client().await;
    let load = rig.load().await;
    let mut first = rig.relay();
    await_publishing(&first, 0, SOON).await;
    if pair.0 == "replication" {
        rig.await_streaming(&client).await;
    }
    let second = rig.relay();
    wait_for_status(&second, "it stands by", |status| {
        status["role"] == "standby"
    })
    .await;
    first.freeze();
    let patience = match pair.0 {
        "replication" => WAL_SENDER_TIMEOUT,
        _ => LEASE_TTL,
    };
    let within = patience + Duration::from_secs(2) + SLACK;
    match sleep {
        Sleep::For(time) => {
            tokio::time::sleep(time).await;
            first.thaw();
            await_publishing(&second, 0, within).await;
        }
        Sleep::UntilReplaced => {
            let took = await_publishing(&second, 0, within).await;
            eprintln!("{pair:?}: taken over {took:?} after SIGSTOP");
            first.thaw();
        }
    }
    wait_for_status(&first, "it stands by", |status| status["role"] == "standby").await;
    rig.judge(load, WINDOW_ROWS).await;
    assert_marks_are_exact(&client).await;
}

/// The ledger holds every row of the table and no other number.
pub async fn assert_marks_are_exact(client: &tokio_postgres::Client) {
    wait_until("every row is marked", SOON, async || {
        let sql = "SELECT count(*) FROM outbox_status WHERE NOT sent";
        match client
            .query_one(sql, &[])
            .await
            .expect("look at the marks")
            .get(0)
        {
            0_i64 => Ok(()),
            unsent => Err(format!("{unsent} are not")),
        }
    })
    .await;
    let sql = "SELECT count(*) FROM (SELECT range_agg(sent) AS sent FROM outboxd.ledger) l, \
               (SELECT range_agg(int8range(seq, seq, '[]')) AS there FROM outbox) o \
               WHERE NOT o.there @> l.sent";
    let wrong: i64 = client
        .query_one(sql, &[])
        .await
        .expect("read the ledger")
        .get(0);
    assert_eq!(wrong, 0, "the ledger holds numbers of no row");
}
