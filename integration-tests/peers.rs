//! What the tests of other relays ask of them, asked of this one: one row for each question, and what answers it.
//!
//! The questions are those of go-pq-cdc (PQ), goharvest (GH), open-outbox (OO), eventferry (EF), tomorrow-one (TO),
//! watermill (WM), pg-transactional-outbox (PT), Eventuate (EV), Dekaf (DK), Sequin (SQ), DeltaForge (DF), outboxx (OX)
//! and Conduit (CD). Where a test of ours answers already the table names it; the others are below.

mod order;
mod replicas;
mod restart;
mod table;

use std::collections::HashMap;
use std::process::Command;

use crate::conformance::scene::Pair;
use crate::harness::postgres::USUAL;

macro_rules! peers {
    ($($file:ident::$case:ident: $($mode:ident),+;)+) => {
        $(mod $case {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $mode() {
                super::$file::$case(stringify!($mode)).await;
            })+
        })+
    };
}

peers! {
    order::pq_01_commit_order_wins: replication;
    order::pq_06_a_large_rollback_leaves_what_is_committed: replication, polling;
    order::pq_07_interleaved_transactions_stay_whole: replication, polling;
    order::wm_01_commits_against_their_numbers_are_all_delivered: replication, polling;
    restart::pq_02_only_what_was_not_acknowledged_comes_again: replication, polling;
    restart::cd_01_no_keepalive_confirms_what_was_not_delivered: replication;
    restart::ev_03_an_expired_topic_brings_nothing_back: replication, polling;
    replicas::gh_01_waves_of_nodes_lose_and_reorder_nothing: replication, polling;
    replicas::to_03_a_leader_whose_database_hangs_is_replaced: replication, polling;
    replicas::dk_03_a_slow_renewal_stops_nothing: replication, polling;
    table::oo_05_a_backlog_is_read_without_a_pause: polling;
    table::wm_03_open_transactions_of_others_stop_nothing: both;
    table::pq_11_a_column_list_without_the_payload_is_told: replication;
}

fn by_ledger(mode: &'static str) -> Pair {
    Pair {
        mode,
        mark: "ledger",
        major: USUAL,
    }
}

/// The ways to read the table in which the question is asked.
enum Modes {
    Both,
    Replication,
    Polling,
    /// It is not about reading.
    Neither,
}

/// What answers a question.
enum Answer {
    /// Tests of this program whose names begin so, and `file: test` for one of the library.
    Tests(Modes, &'static [&'static str]),
    /// It can't be asked of this relay, for this reason.
    None(&'static str),
}

use Answer::{None as No, Tests};
use Modes::{Both, Neither, Polling, Replication};

/// How many questions each peer asks.
const QUESTIONS: &[(&str, usize)] = &[
    ("PQ", 11),
    ("GH", 2),
    ("OO", 5),
    ("EF", 5),
    ("TO", 3),
    ("WM", 3),
    ("PT", 4),
    ("EV", 5),
    ("DK", 3),
    ("SQ", 3),
    ("DF", 2),
    ("OX", 1),
    ("CD", 1),
];

#[rustfmt::skip]
const ANSWERS: &[(&str, &str, Answer)] = &[
    ("PQ-01", "the second of two overlapping transactions is committed first", Tests(Both, &[
        "peers::pq_01_", "conformance::a_hole_that_fills_late_is_published::"])),
    ("PQ-02", "the reader dies after 16 of 30 rows", Tests(Both, &["peers::pq_02_"])),
    ("PQ-03", "idle database, busy neighbour", Tests(Replication, &["primary::idle::an_idle_outbox_beside_a_busy_database_keeps_no_wal"])),
    ("PQ-04", "heartbeat table missing from the publication", No("there is no heartbeat table: keepalives move the slot (PQ-03)")),
    ("PQ-05", "SIGTERM while confirmations are pending", Tests(Both, &[
        "conformance::graceful_restarts_repeat_nothing::", "faults::ten_graceful_stops_repeat_nothing"])),
    ("PQ-06", "large transaction rolled back, another committed", Tests(Both, &["peers::pq_06_"])),
    ("PQ-07", "large transactions interleaved", Tests(Both, &["peers::pq_07_"])),
    ("PQ-08", "large commit, large rollback", Tests(Both, &["conformance::a_large_transaction_is_published_in_order::", "peers::pq_06_"])),
    ("PQ-09", "first reading while others insert", Tests(Both, &["conformance::rows_before_the_first_start_come_first::"])),
    ("PQ-10", "first reading killed, resumed, run twice", Tests(Both, &[
        "faults::a_kill_while_the_table_is_caught_up_loses_nothing", "conformance::now_skips_what_stands_in_the_table::"])),
    ("PQ-11", "column list, partitioned table, no replica identity", Tests(Both, &[
        "peers::pq_11_", "bad_input::changes::a_row_that_moves_to_another_partition_is_at_most_repeated"])),
    ("GH-01", "nodes come and go in waves, ten keys, twenty records in a transaction", Tests(Both, &[
        "peers::gh_01_", "faults::lost_acknowledgements_repeat_nothing"])),
    ("GH-02", "many nodes, no fault (five here)", Tests(Replication, &["ha::several::of_five_replicas_started_at_once_one_publishes"])),
    ("OO-01", "two workers never claim a row", Tests(Both, &[
        "lease::of_several_that_begin_at_once_exactly_one_leads", "lease::of_two_relays_one_publishes_and_the_other_says"])),
    ("OO-02", "a lease expires; the late worker changes nothing", Tests(Both, &[
        "lease::a_frozen_holder_is_replaced_after_its_ttl", "ledger::a_checkpoint_under_a_moved_epoch_writes_nothing", "peers::to_03_"])),
    ("OO-03", "permanent errors condemn at once, others are retried", Tests(Both, &[
        "conformance::a_row_that_the_broker_refuses_blocks_its_aggregate::", "letters::dead::a_dead_letter_alone", "faults::a_killed_broker_costs_and_repeats_nothing",
        "kafka_security::refused::a_wrong_secret_stops_everything_until_its_file_is_mended_and_condemns_no_row"])),
    ("OO-04", "nothing unsent is removed", Tests(Both, &[
        "faults::kills_with_delete_by_replication_lose_nothing", "faults::kills_with_delete_by_polling_lose_nothing"])),
    ("OO-05", "a backlog without pauses, an empty table with them", Tests(Polling, &[
        "peers::oo_05_", "conformance::an_idle_table_costs_next_to_nothing::"])),
    ("EF-01", "fifty concurrent claims of one aggregate", No("rows are not claimed: one relay holds the lease of the table (OO-01)")),
    ("EF-02", "backpressure counts as no attempt", Tests(Both, &[
        "faults::memory_stays_bounded_while_kafka_is_away", "faults::a_killed_broker_costs_and_repeats_nothing"])),
    ("EF-03", "a megabyte; unicode in keys and headers", Tests(Both, &[
        "conformance::a_payload_of_a_megabyte_is_published::", "conformance::columns_become_headers_topic_and_key::",
        "conformance::golden_unicode_text::"])),
    ("EF-04", "fenced producer", No("the producer is idempotent and not transactional, nobody can fence it; a fatal error ends it (row 60 of the fault matrix)")),
    ("EF-05", "a dead letter tells where it comes from and why (ours is kept in PostgreSQL)", Tests(Both, &["letters::dead::what_follows_a_dead_letter_is_replayed_with_it_in_order_by"])),
    ("TO-01", "Kafka is down at the start", Tests(Both, &[
        "faults::a_relay_waits_for_servers_that_come_later", "commands::a_relay_that_starts_before_its_servers_waits_for_both"])),
    ("TO-02", "Kafka restarts, the database restarts", Tests(Both, &[
        "faults::a_killed_broker_costs_and_repeats_nothing", "faults::restarts_of_postgresql_lose_and_repeat_nothing",
        "faults::crashes_of_postgresql_lose_and_repeat_nothing"])),
    ("TO-03", "the lock is lost while a statement hangs", Tests(Both, &["peers::to_03_"])),
    ("WM-01", "commits against the order of their numbers", Tests(Both, &["peers::wm_01_"])),
    ("WM-02", "a restored copy begins its transaction ids anew", Tests(Polling, &[
        "identity::another_system_halts_and_a_copy_that_is_adopted_goes_on_without_repeating_a_row"])),
    ("WM-03", "an unrelated transaction stays open", Tests(Both, &["peers::wm_03_"])),
    ("PT-01", "only the longest acknowledged prefix is confirmed", Tests(Neither, &[
        "src/simulator/tests.rs: every_promise_holds_in_ten_thousand_schedules"])),
    ("PT-02", "injected errors, ten thousand rows, a slow first one", Tests(Both, &[
        "faults::one_bad_row_among_500_is_the_only_one_held", "conformance::a_large_transaction_is_published_in_order::",
        "conformance::a_hole_that_fills_late_is_published::"])),
    ("PT-03", "two readers of one slot", Tests(Replication, &[
        "faults::a_relay_waits_for_its_slot_and_says_who_reads_it", "refusals::a_slot_in_use_by_another_reader_is_waited_for"])),
    ("PT-04", "the process dies on one message again and again (no value ends ours)", Tests(Both, &[
        "bad_input::rows::every_row_is_published_as_documented_or_blocks", "letters::retry::what_is_blocked_survives_kills_and_takeovers"])),
    ("EV-01", "starts with new rows only, or with all", Tests(Both, &[
        "conformance::now_skips_what_stands_in_the_table::", "conformance::rows_before_the_first_start_come_first::"])),
    ("EV-02", "columns change, the table is made anew (ours halts until the new one is adopted)", Tests(Both, &[
        "bad_input::changes::a_lost_column_halts", "identity::another_table_of_the_same_name_halts"])),
    ("EV-03", "the topic holds more than was recorded, or nothing any more", Tests(Both, &[
        "peers::ev_03_", "faults::a_kill_after_an_acknowledgement_loses_nothing"])),
    ("EV-04", "the cleaner removes old rows that were published", Tests(Both, &[
        "retention::old_rows_that_were_sent_go_and_all_others_stay"])),
    ("EV-05", "the leader starts, stops, starts again", Tests(Both, &[
        "lease::after_sigterm_the_standby_publishes_at_once_and_nothing_twice", "ha::several::of_five_replicas_started_at_once"])),
    ("DK-01", "part of a batch is acknowledged", Tests(Both, &[
        "publisher::a_refused_record_leaves_a_prefix_and_is_the_only_suspect", "conformance::a_row_that_the_broker_refuses_blocks_its_aggregate::"])),
    ("DK-02", "a batch is read for longer than the lease", Tests(Both, &["peers::to_03_"])),
    ("DK-03", "renewals are slow", Tests(Both, &["peers::dk_03_"])),
    ("SQ-01", "a failed group blocks itself alone", Tests(Both, &[
        "conformance::a_reserved_header_blocks_its_aggregate::", "faults::one_bad_row_among_500_is_the_only_one_held"])),
    ("SQ-02", "the buffer is full (ours pauses and never discards)", Tests(Both, &["faults::memory_stays_bounded_while_kafka_is_away"])),
    ("SQ-03", "what is held outlives the process", Tests(Both, &[
        "letters::retry::what_is_blocked_survives_kills_and_takeovers", "letters::topics::a_held_topic_survives_kills"])),
    ("DF-01", "connections cut, columns altered, slot dropped", Tests(Both, &[
        "faults::connections_cut_every_second_or_two_do_not_stop_a_relay", "faults::lost_acknowledgements_repeat_nothing",
        "bad_input::changes::a_lost_column_halts", "sweep::a_slot_that_is_gone"])),
    ("DF-02", "each missing field is named", Tests(Both, &[
        "refusals::a_missing_column_is_named_beside_those_that_are_there",
        "bad_input::rows::every_row_is_published_as_documented_or_blocks_its_aggregate_with_the_column"])),
    ("OX-01", "what is wrong with the server is said at the start", Tests(Both, &[
        "refusals::a_wal_level_that_is_not_logical_is_named", "refusals::a_missing_table_is_named",
        "refusals::a_column_of_a_wrong_type_is_named", "sweep::a_slot_of_another_plugin_or_database_is_refused_with_the_reason"])),
    ("CD-01", "nothing acknowledged comes again, nothing unacknowledged is confirmed", Tests(Both, &[
        "peers::cd_01_", "conformance::graceful_restarts_repeat_nothing::",
        "faults::nothing_is_marked_before_it_is_in_kafka_nor_confirmed_before_it_is_marked"])),
];

#[test]
fn every_question_is_answered_once() {
    let mut asked: HashMap<&str, Vec<usize>> = HashMap::new();
    for (id, question, answer) in ANSWERS {
        let (peer, number) = id.split_once('-').expect("a peer and a number");
        let number = number.parse().expect("a number");
        asked.entry(peer).or_default().push(number);
        let is_told = match answer {
            Tests(_, names) => !names.is_empty(),
            No(reason) => !reason.is_empty(),
        };
        assert!(is_told && !question.is_empty(), "{id}");
    }
    for (peer, questions) in QUESTIONS {
        let numbers: Vec<usize> = (1..=*questions).collect();
        assert_eq!(asked.remove(peer), Some(numbers), "{peer}");
    }
    assert!(asked.is_empty(), "{asked:?}");
}

/// A test that was renamed or deleted shows nothing any more; one of one mode says nothing of the other.
#[test]
fn every_answer_is_a_test() {
    let tests = tests_of_this_program();
    for (id, _, answer) in ANSWERS {
        let Tests(modes, names) = answer else {
            continue;
        };
        let mut found = Vec::new();
        for name in *names {
            let before = found.len();
            match name.split_once(": ") {
                Some((file, test)) => found.extend(has_test(file, test).then_some(test)),
                None => found.extend(
                    tests
                        .iter()
                        .map(String::as_str)
                        .filter(|test| test.starts_with(name)),
                ),
            }
            assert!(found.len() > before, "{id}: there is no test `{name}`");
        }
        assert_modes(id, modes, &found);
    }
}

/// Tests that are named after their mode must fit; others run both modes themselves.
fn assert_modes(id: &str, modes: &Modes, tests: &[&str]) {
    let is_of = |mode: &str, test: &&str| {
        let mut segments = test.rsplit("::");
        segments.next().is_some_and(|last| last.starts_with(mode))
    };
    let is_streamed = |test: &&str| is_of("replication", test);
    let is_polled = |test: &&str| is_of("polling", test);
    let fits = match modes {
        Both => !tests.iter().all(is_streamed) && !tests.iter().all(is_polled),
        Replication => !tests.iter().any(is_polled),
        Polling => !tests.iter().any(is_streamed),
        Neither => true,
    };
    assert!(fits, "{id}: {tests:?}");
}

fn tests_of_this_program() -> Vec<String> {
    let program = std::env::current_exe().expect("this program has a path");
    let listed = Command::new(program).arg("--list").output();
    let listed = listed.expect("list the tests").stdout;
    let text = String::from_utf8_lossy(&listed);
    let tests = text.lines().filter_map(|line| line.strip_suffix(": test"));
    tests.map(str::to_owned).collect()
}

/// Whether a file of the library holds a test of this name.
fn has_test(file: &str, test: &str) -> bool {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.contains(&format!("fn {test}("))
}
