//! Every row of the fault matrix: what shows it, or why nothing here can.

use futures_util::future::LocalBoxFuture;

use super::machine::Need;
use super::scene::Scene;
use super::{
    bounded, failpoints, kafka, locks, marks, memory, missed, network, others, poison, postgres,
    program, relay, schema, slot, squeeze,
};

/// A scenario, as the table holds it.
pub type Scenario = for<'a> fn(&'a Scene) -> LocalBoxFuture<'a, ()>;

/// One row, by the number it has in the matrix.
pub struct Row {
    pub number: u8,
    pub fault: &'static str,
    pub modes: Modes,
    /// How often `FULL=1` runs the scenarios, each time with the counts of one round.
    pub rounds: usize,
    pub shown: Shown,
}

/// The ways to read the table in which the fault is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Modes {
    Both,
    Replication,
    /// It is not about reading.
    Neither,
}

/// What shows a row.
pub enum Shown {
    /// Scenarios that run in this program, where the machine has what they need.
    By(&'static [Need], &'static [Scenario]),
    /// Tests of `cargo test --test integration` whose names contain one of these.
    ByTests(&'static [&'static str]),
    /// Nothing, for this reason.
    Nowhere(&'static str),
}

macro_rules! by {
    ($($scenario:path),+) => { Shown::By(&[], &[$(|scene| Box::pin($scenario(scene))),+]) };
    (with $needs:expr; $($scenario:path),+) => { Shown::By(&$needs, &[$(|scene| Box::pin($scenario(scene))),+]) };
}

const fn row(number: u8, fault: &'static str, modes: Modes, rounds: usize, shown: Shown) -> Row {
    Row {
        number,
        fault,
        modes,
        rounds,
        shown,
    }
}

use Modes::{Both, Neither, Replication};

#[rustfmt::skip]
pub static ROWS: &[Row] = &[
    // The relay's process.
    row(1, "kill -9 at random moments", Both, 10, by!(relay::killed_at_random)),
    row(2, "kill -9 after produce, after the ack, after the mark, while confirming, while replaying, while catching up", Both, 1, by!(
        failpoints::killed_after_produce, failpoints::killed_after_acknowledgement, failpoints::killed_after_mark,
        failpoints::killed_while_confirming, failpoints::killed_while_replaying, failpoints::killed_while_catching_up)),
    row(3, "SIGTERM under load", Both, 4, by!(relay::stopped_under_load)),
    row(4, "SIGTERM while Kafka is dead", Both, 1, by!(relay::stopped_while_kafka_is_dead)),
    row(6, "frozen by the cgroup freezer, with a standby", Both, 1, by!(with [Need::Cgroup("freezer")]; squeeze::frozen_group)),
    row(5, "SIGSTOP and SIGCONT with a standby", Both, 1, Shown::ByTests(&["ha::frozen::"])),
    row(7, "five replicas started at once", Replication, 1, Shown::ByTests(&["ha::several::of_five_replicas"])),
    row(8, "rows of 64 KB without end, Kafka away, in a group of 128 MiB", Both, 1, by!(with [Need::Cgroup("memory")]; memory::bounded_while_kafka_is_away, squeeze::little_memory)),
    row(9, "5 % of one processor", Both, 1, by!(with [Need::Cgroup("cpu")]; squeeze::starved)),
    row(10, "no file descriptor left", Both, 1, by!(with [Need::Prlimit]; squeeze::no_descriptors)),
    row(11, "the wall clock jumps", Both, 1, by!(with [Need::Faketime]; squeeze::clock_jumps)),
    row(12, "the machine sleeps (SIGSTOP beyond every timeout)", Both, 1, by!(relay::asleep)),
    row(13, "log to a pipe that nobody reads, to a full disk", Both, 1, by!(with [Need::FullDevice]; squeeze::log_blocked)),
    // PostgreSQL.
    row(14, "stop -m immediate and start", Both, 1, by!(postgres::crashed)),
    row(15, "restart -m fast", Both, 1, by!(postgres::restarted)),
    row(16, "stop -m fast while Kafka is away, with a backlog", Both, 1, by!(postgres::stopped_while_kafka_is_away)),
    row(17, "kill -9 of the postmaster, of one backend", Both, 1, by!(postgres::killed)),
    row(18, "walsender terminated; every backend terminated", Both, 1, by!(postgres::walsender_terminated, postgres::all_backends_terminated)),
    row(19, "slot dropped, under a running relay and while none runs", Replication, 1, by!(missed::slot_dropped)),
    row(20, "slot invalidated while the relay is away", Replication, 1, Shown::ByTests(&["sweep::a_slot_that_the_server_invalidated", "sweep::a_slot_that_is_gone"])),
    row(21, "slot invalidated while the relay is frozen", Replication, 1, Shown::ByTests(&["primary::frozen::"])),
    row(22, "slot read by another consumer", Replication, 1, by!(slot::slot_is_read_by_another)),
    row(23, "slot moved past unsent rows", Replication, 1, by!(missed::slot_advanced)),
    row(24, "publication dropped and made anew; table taken out and put back", Replication, 1, by!(missed::publication_changed)),
    row(25, "publication with a row filter; rows committed without it; rows consumed by a thief", Replication, 1, Shown::ByTests(&["sweep::rows_that", "sweep::a_filter_stops", "sweep::rows_committed"])),
    row(26, "extra columns added, renamed, retyped, dropped; table renamed; mandatory column gone", Both, 1, by!(schema::altered)),
    row(27, "payload changes its type", Both, 1, by!(schema::payload_type_changed)),
    row(28, "one transaction of 2 GB, one of a million rows", Both, 1, by!(bounded::large_transactions)),
    row(29, "kill -9 amid a large transaction", Both, 1, by!(relay::killed_amid_a_large_transaction)),
    row(30, "a row that the walsender cannot send (540 MB of bytea)", Replication, 1, Shown::ByTests(&["a_row_that_postgresql_cannot_send", "a_field_that_no_record_can_carry"])),
    row(31, "a legal row that the broker refuses for its size", Both, 1, Shown::ByTests(&["a_row_that_the_broker_refuses_blocks_its_aggregate", "a_row_above_our_limit"])),
    row(32, "a write transaction that stays open, here and in another database", Both, 1, by!(locks::long_transaction)),
    row(33, "forgotten prepared transaction", Both, 1, by!(locks::prepared_and_forgotten)),
    row(34, "synchronous_commit = off and a crash before the flush", Both, 1, Shown::ByTests(&["a_commit_that_a_crash_undoes_is_never"])),
    row(35, "failover to a standby with the slot, with synchronized_standby_slots and without", Replication, 1, Shown::ByTests(&["failover::a_promoted_standby_with_the_slot", "failover::a_promoted_standby_that_lagged"])),
    row(36, "failover to a standby without the slot", Replication, 1, Shown::ByTests(&["failover::a_promoted_standby_without"])),
    row(37, "restored from an older backup, another system, a sequence set back", Both, 1, Shown::ByTests(&["identity::"])),
    row(38, "another cluster, an unknown database", Both, 1, Shown::ByTests(&["identity::another_system_halts", "refusals::an_unknown_database", "identity::another_table"])),
    row(39, "WAL that fills the disk: alarms before", Replication, 1, Shown::ByTests(&["primary::budget::"])),
    row(40, "outbox locked exclusively; VACUUM FULL", Both, 1, by!(locks::table_locked)),
    row(41, "deadlocks with the marks", Both, 1, by!(locks::rows_locked)),
    row(42, "unsent rows deleted by others", Replication, 1, by!(schema::unsent_rows_deleted)),
    row(43, "no connection left for the relay", Both, 1, Shown::ByTests(&["primary::refused::"])),
    row(44, "password rotated, role loses REPLICATION, pg_hba rejects", Both, 1, Shown::ByTests(&["refusals::a_wrong_password_is_refused", "refusals::a_role_without_replication", "primary::refused::", "rotated_certificates_and_passwords"])),
    row(45, "idle_replication_slot_timeout while Kafka is away, streaming and with the table to read first", Replication, 1, Shown::ByTests(&["primary::idle::a_parked_relay"])),
    row(46, "decoding spills to disk", Replication, 1, by!(schema::spilled)),
    // The network to PostgreSQL.
    row(47, "every connection reset each 1 to 2 s", Both, 1, by!(network::cut_again_and_again)),
    row(48, "half-open: nothing arrives, both ways and each way", Both, 1, by!(network::black_hole)),
    row(49, "latency of 200 ms, single bytes, 100 kbit/s", Both, 1, by!(network::slow)),
    row(50, "the last confirmation of an orderly stop is lost", Replication, 1, by!(network::last_confirmation_lost)),
    row(52, "the server's name means another address, or none", Both, 1, by!(with [Need::MountNamespace]; network::name_moves)),
    row(51, "TLS: expired, wrong host, downgrade", Both, 1, Shown::ByTests(&["security::modes", "security::stripped"])),
    // Kafka.
    row(53, "broker killed; broker frozen", Both, 1, by!(kafka::broker_away, kafka::broker_frozen)),
    row(54, "acknowledgement lost after the append", Both, 1, by!(kafka::acknowledgements_lost)),
    row(55, "kill -9 while acknowledgements are withheld", Both, 1, by!(failpoints::killed_after_produce)),
    row(56, "leaders move (each of three brokers stopped in order)", Both, 1, by!(kafka::brokers_stopped_in_turn)),
    row(57, "too few replicas in sync", Both, 1, by!(kafka::too_few_replicas)),
    row(58, "permanent error on one record amid others of its key", Both, 1, Shown::ByTests(&["a_row_that_the_broker_refuses_blocks_its_aggregate", "publisher::a_refused_re", "letters::retry::"])),
    row(59, "one bad row among 500", Both, 1, by!(poison::one_among_many)),
    row(60, "the broker disowns the producer (sequence, epoch, fenced)", Replication, 1, Shown::ByTests(&["injected::a_producer_that_the_broker_disowns"])),
    row(61, "WRITE on one topic taken away for a while", Replication, 1, Shown::ByTests(&["kafka_security::refused::a_topic_that_may_not_be_written"])),
    row(62, "unknown topic, created later", Both, 1, Shown::ByTests(&["an_unknown_topic_is_held_until_it_is_created", "letters::topics::"])),
    row(63, "TLS and SASL to Kafka fail, tokens and passwords expire", Both, 1, Shown::ByTests(&["kafka_security::"])),
    row(64, "the topic grows from 3 to 6 partitions", Both, 1, Shown::ByTests(&["topics::a_topic_that_grows"])),
    row(65, "slow broker: answers 2 to 8 s late (30 s with FULL)", Both, 1, by!(kafka::broker_slow)),
    row(66, "some partitions without a broker", Both, 1, by!(kafka::partitions_away)),
    row(67, "three brokers killed in turn", Both, 1, by!(kafka::brokers_killed_in_turn)),
    row(68, "coordinator down, unknown outcome of a transaction", Neither, 1, Shown::Nowhere("there is no exactly-once mode: the relay uses no transactions of Kafka")),
    row(69, "acknowledged records lost by an unclean election", Neither, 1, Shown::Nowhere("outside the promise: Kafka keeps what it acknowledged")),
    // Data and configuration.
    row(70, "rows of every bad kind", Both, 1, Shown::ByTests(&["bad_input::"])),
    row(71, "most rows wait for a blocked one", Both, 1, by!(bounded::blocked_hot_aggregate)),
    row(72, "all rows at fault", Both, 1, Shown::ByTests(&["letters::bounds::rows_that_are_all_at_fault"])),
    row(73, "replay of dead letters while writing, killed again and again", Both, 1, Shown::ByTests(&["letters::dead::"])),
    row(74, "SIGHUP", Both, 1, by!(relay::hung_up)),
    row(75, "logical messages that are no rows", Replication, 1, by!(schema::logical_messages)),
    row(76, "row moved to another partition", Both, 1, Shown::ByTests(&["a_row_that_moves_to_another_partition"])),
    row(77, "kill -9 while the table is caught up with, with writers", Both, 1, by!(failpoints::killed_while_catching_up)),
    row(78, "rolling updates of two replicas; of the mode", Both, 1, Shown::ByTests(&["ha::rolling::"])),
    row(79, "state tables of a newer version", Neither, 1, Shown::ByTests(&["state_of_a_newer_version_is_refused", "migrate::a_second_run_finds_everything"])),
    row(80, "any three faults at once, at random", Both, 1, by!(program::soak::mixed)),
    // What others do beside the relay.
    row(81, "commits that are flushed and that nobody sees, while walsenders are cut and the relay starts again", Both, 1, by!(others::unseen)),
    row(82, "others publish all tables, and take it back", Both, 1, by!(others::published_by_others)),
    row(83, "rows changed and deleted in their own transaction and by a job, while connections are cut", Both, 1, by!(others::changed)),
    row(84, "DDL of neighbours: tables, indexes, columns, ANALYZE, VACUUM, REINDEX", Both, 1, by!(others::neighbours)),
    // What people have.
    row(85, "rows that can't be marked: triggers, rules, foreign keys, locks", Both, 1, Shown::ByTests(&["conformance::a_trigger_that_undoes_a_mark", "conformance::a_foreign_key_on_one_row", "conformance::a_row_that_changes_before"])),
    row(86, "bytes and characters that PostgreSQL cannot send as UTF-8", Both, 1, Shown::ByTests(&["values::sendable::"])),
    row(87, "20,000 topics that do not exist, in one transaction", Both, 1, Shown::ByTests(&["topics::unknown::"])),
    row(88, "a cluster that is seconds away", Both, 1, Shown::ByTests(&["topics::far::"])),
    row(89, "a first start from now on a table with a past", Both, 1, Shown::ByTests(&["first_start::a_start_from_now"])),
    row(90, "a kill after a first start of more rows than the ledger keeps in memory", Both, 1, Shown::ByTests(&["ledger::numbers_of_closed_segments"])),
    row(91, "requests that a broker cuts off for their size; the same rows while it is killed or frozen, and while connections are cut", Both, 1, Shown::ByTests(&["cut_off::", "a_row_that_is_cut_off_over_tls"])),
    // At any instant, whatever happens (O6).
    row(0, "frozen at random moments: nothing marked or confirmed early", Both, 1, by!(marks::nothing_is_early)),
];
