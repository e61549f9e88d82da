//! The conformance suite: what the relay promises, shown for every allowed pair of mode and mark.
//!
//! The tables below make one test for each case and pair, so that a failure names both. The judge of a run is the
//! oracle, which reads whole topics and compares them with the truth table.

mod durability;
mod faults;
mod golden;
mod holes;
mod idle;
mod order;
pub mod scene;
mod size;
mod start;
mod switch;
mod topics;
mod unmarkable;
mod unseen;
mod wire;

use crate::harness::postgres::USUAL;
use scene::Pair;

/// One test of one case.
macro_rules! pair {
    ($file:ident::$case:ident, $major:expr, $name:ident, $mode:literal, $mark:literal) => {
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            let (mode, mark, major) = ($mode, $mark, $major);
            super::$file::$case(super::Pair { mode, mark, major }).await;
        }
    };
}

macro_rules! ledger_pairs {
    ($file:ident::$case:ident, $major:expr) => {
        pair!(
            $file::$case,
            $major,
            replication_ledger,
            "replication",
            "ledger"
        );
        pair!($file::$case, $major, polling_ledger, "polling", "ledger");
    };
}

macro_rules! polled_pairs {
    ($file:ident::$case:ident, $major:expr) => {
        pair!($file::$case, $major, polling_ledger, "polling", "ledger");
        pair!($file::$case, $major, polling_sent_at, "polling", "sent_at");
        pair!($file::$case, $major, polling_delete, "polling", "delete");
    };
}

macro_rules! streamed_pairs {
    ($file:ident::$case:ident, $major:expr) => {
        pair!(
            $file::$case,
            $major,
            replication_ledger,
            "replication",
            "ledger"
        );
        pair!(
            $file::$case,
            $major,
            replication_sent_at,
            "replication",
            "sent_at"
        );
        pair!(
            $file::$case,
            $major,
            replication_delete,
            "replication",
            "delete"
        );
        pair!(
            $file::$case,
            $major,
            replication_none,
            "replication",
            "none"
        );
    };
}

macro_rules! every_pair {
    ($file:ident::$case:ident, $major:expr) => {
        streamed_pairs!($file::$case, $major);
        polled_pairs!($file::$case, $major);
    };
}

/// Both modes take turns.
macro_rules! shared_marks {
    ($file:ident::$case:ident, $major:expr) => {
        pair!($file::$case, $major, ledger, "replication", "ledger");
        pair!($file::$case, $major, sent_at, "replication", "sent_at");
        pair!($file::$case, $major, delete, "replication", "delete");
    };
}

/// The marks in the rows of a table that is polled.
macro_rules! polled_row_marks {
    ($file:ident::$case:ident, $major:expr) => {
        pair!($file::$case, $major, sent_at, "polling", "sent_at");
        pair!($file::$case, $major, delete, "polling", "delete");
    };
}

/// Marks in the rows, in both modes.
macro_rules! row_marks {
    ($file:ident::$case:ident, $major:expr) => {
        polled_row_marks!($file::$case, $major);
        pair!(
            $file::$case,
            $major,
            streamed_sent_at,
            "replication",
            "sent_at"
        );
        pair!(
            $file::$case,
            $major,
            streamed_delete,
            "replication",
            "delete"
        );
    };
}

/// Only a deletion can leave a reference behind.
macro_rules! deletions {
    ($file:ident::$case:ident, $major:expr) => {
        pair!($file::$case, $major, polling_delete, "polling", "delete");
        pair!(
            $file::$case,
            $major,
            replication_delete,
            "replication",
            "delete"
        );
    };
}

/// Only a stream cuts transactions.
macro_rules! stream_alone {
    ($file:ident::$case:ident, $major:expr) => {
        pair!(
            $file::$case,
            $major,
            replication_ledger,
            "replication",
            "ledger"
        );
        pair!(
            $file::$case,
            $major,
            replication_none,
            "replication",
            "none"
        );
    };
}

/// Cases with the pairs that one of the macros above names.
macro_rules! cases {
    ($pairs:ident, $major:expr; $($file:ident::$case:ident,)+) => {
        $(mod $case {
            $pairs!($file::$case, $major);
        })+
    };
}

macro_rules! on_major {
    ($module:ident, $major:literal, { $($case:tt)+ }) => {
        mod $module {
            use super::*;
            cases! { ledger_pairs, $major; $($case)+ }
        }
    };
}

macro_rules! on_every_other_major {
    ($cases:tt) => {
        on_major!(postgresql_14, 14, $cases);
        on_major!(postgresql_16, 16, $cases);
        on_major!(postgresql_17, 17, $cases);
        on_major!(postgresql_18, 18, $cases);
    };
}

cases! { every_pair, super::USUAL;
    order::order_holds_under_load,
    order::rolled_back_rows_are_never_published,
    holes::a_hole_that_fills_late_is_published,
    holes::a_prepared_hole_is_published_when_it_is_committed,
    start::rows_before_the_first_start_come_first,
    start::now_skips_what_stands_in_the_table,
    start::an_unclear_start_is_asked_for,
    size::a_large_transaction_is_published_in_order,
    size::a_payload_of_a_megabyte_is_published,
    wire::every_payload_type_keeps_its_bytes,
    wire::columns_become_headers_topic_and_key,
    wire::a_null_key_is_held_or_published,
    faults::a_topic_that_is_not_allowed_blocks_its_aggregate,
    faults::a_reserved_header_blocks_its_aggregate,
    faults::a_row_above_our_limit_blocks_its_aggregate,
    faults::a_row_that_the_broker_refuses_blocks_its_aggregate,
    topics::an_unknown_topic_is_held_until_it_is_created,
    switch::graceful_restarts_repeat_nothing,
    switch::stops_that_meet_a_lost_connection_repeat_nothing,
}

cases! { polled_pairs, super::USUAL;
    idle::an_idle_table_costs_next_to_nothing,
    idle::an_idle_table_with_a_large_row_is_not_read,
    durability::a_commit_that_a_crash_undoes_is_never_published,
    durability::a_commit_that_nobody_flushes_is_published,
}

cases! { shared_marks, super::USUAL;
    switch::switching_the_mode_repeats_nothing,
}

cases! { ledger_pairs, super::USUAL;
    topics::a_missing_topic_is_created_where_that_is_configured,
    golden::golden_default_jsonb,
    golden::golden_payload_json_text,
    golden::golden_payload_jsonb_normalised,
    golden::golden_payload_text,
    golden::golden_payload_bytea,
    golden::golden_payload_null_default,
    golden::golden_payload_empty_default,
    golden::golden_unicode_text,
    golden::golden_key_null_and_empty,
}

cases! { streamed_pairs, super::USUAL;
    golden::golden_insert_and_delete_in_one_transaction,
    golden::golden_update_and_delete,
    unseen::a_commit_that_nobody_sees_is_published_once,
    unseen::rows_that_are_deleted_before_they_are_read_are_published,
    unseen::cut_streams_lose_no_row_that_is_deleted,
}

cases! { polled_row_marks, super::USUAL;
    unseen::a_row_that_changes_before_its_mark_is_published_again,
}

cases! { row_marks, super::USUAL;
    unmarkable::a_trigger_that_undoes_a_mark_is_seen,
}

cases! { deletions, super::USUAL;
    unmarkable::a_foreign_key_on_one_row_stops_no_other,
}

cases! { stream_alone, super::USUAL;
    switch::a_stop_within_a_transaction_repeats_nothing,
}

mod a_commit_that_a_crash_undoes_is_never_streamed {
    pair!(
        durability::a_commit_that_a_crash_undoes_is_never_published,
        super::USUAL,
        replication_ledger,
        "replication",
        "ledger"
    );
}

on_every_other_major! {{
    order::order_holds_under_load,
    order::rolled_back_rows_are_never_published,
    start::rows_before_the_first_start_come_first,
    size::a_large_transaction_is_published_in_order,
}}
