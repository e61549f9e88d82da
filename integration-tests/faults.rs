//! The gate of the fault matrix: what the world does to a relay, with counts that `make test` has time for.
//!
//! `make faults` runs the same scenarios with larger ones, and all others: `matrix.rs`.

use crate::matrix::rig::Pair;
use crate::matrix::scene::{Scene, gate};
use crate::matrix::{
    absent, bounded, failpoints, kafka, marks, memory, missed, network, poison, postgres, relay,
    slot,
};

macro_rules! gates {
    ($($name:ident: $scenario:expr,)+) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            gate($scenario).await;
        })+
    };
}

gates! {
    twenty_kills_lose_nothing: relay::killed_at_random,
    kills_with_sent_at_by_replication_lose_nothing: kills("replication", "sent_at"),
    kills_with_delete_by_replication_lose_nothing: kills("replication", "delete"),
    kills_without_marks_by_replication_lose_nothing: kills("replication", "none"),
    kills_with_sent_at_by_polling_lose_nothing: kills("polling", "sent_at"),
    kills_with_delete_by_polling_lose_nothing: kills("polling", "delete"),
    kills_amid_a_large_transaction_repeat_one_window_each: relay::killed_amid_a_large_transaction,
    a_kill_after_produce_loses_nothing: failpoints::killed_after_produce,
    a_kill_after_an_acknowledgement_loses_nothing: failpoints::killed_after_acknowledgement,
    a_kill_after_a_mark_loses_nothing: failpoints::killed_after_mark,
    a_kill_amid_a_confirmation_loses_nothing: failpoints::killed_while_confirming,
    a_kill_amid_a_replay_loses_nothing: failpoints::killed_while_replaying,
    a_kill_while_the_table_is_caught_up_loses_nothing: failpoints::killed_while_catching_up,
    ten_graceful_stops_repeat_nothing: relay::stopped_under_load,
    nothing_is_marked_before_it_is_in_kafka_nor_confirmed_before_it_is_marked: marks::nothing_is_early,
    crashes_of_postgresql_lose_and_repeat_nothing: postgres::crashed,
    restarts_of_postgresql_lose_and_repeat_nothing: postgres::restarted,
    terminated_walsenders_repeat_nothing: postgres::walsender_terminated,
    terminated_backends_repeat_nothing: postgres::all_backends_terminated,
    terminated_backends_with_marked_rows_repeat_nothing: terminations_with_marked_rows,
    connections_cut_every_second_or_two_do_not_stop_a_relay: network::cut_again_and_again,
    connections_that_carry_nothing_for_20_seconds_cost_nothing: network::black_hole,
    a_dropped_slot_loses_nothing: missed::slot_dropped,
    a_changed_publication_loses_nothing: missed::publication_changed,
    lost_acknowledgements_repeat_nothing: kafka::acknowledgements_lost,
    one_bad_row_among_500_is_the_only_one_held: poison::one_among_many,
    a_killed_broker_costs_and_repeats_nothing: kafka::broker_away,
    a_frozen_broker_costs_nothing: kafka::broker_frozen,
    a_stop_of_postgresql_while_kafka_is_away_costs_nothing: postgres::stopped_while_kafka_is_away,
    memory_stays_bounded_while_kafka_is_away: memory::bounded_while_kafka_is_away,
    memory_stays_bounded_in_large_transactions: bounded::large_transactions,
    memory_stays_bounded_while_most_rows_wait_for_a_blocked_one: bounded::blocked_hot_aggregate,
    a_relay_waits_for_servers_that_come_later: absent::servers_come_later,
    a_relay_waits_for_its_slot_and_says_who_reads_it: slot::slot_is_read_by_another,
}

fn kills(mode: &'static str, mark: &'static str) -> impl AsyncFnOnce(&Scene) {
    async move |scene| relay::kill(scene, Pair(mode, mark), 3).await
}

async fn terminations_with_marked_rows(scene: &Scene) {
    tokio::join!(
        postgres::backends_terminated(scene, Pair("replication", "sent_at"), 5),
        postgres::backends_terminated(scene, Pair("polling", "delete"), 5)
    );
}
