//! Every row of the fault matrix: what shows it, or why nothing here can.

use futures_util::future::LocalBoxFuture;

use super::machine::Need;
use super::scene::Scene;
use super::{kafka, marks, memory, network, postgres, relay, slot};

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
    Polling,
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

use Modes::{Both, Neither, Polling, Replication};

#[rustfmt::skip]
pub static ROWS: &[Row] = &[
    // The relay's process.
    row(1, "kill -9 at random moments", Both, 10, by!(relay::killed_at_random)),
    row(3, "SIGTERM under load", Both, 4, by!(relay::stopped_under_load)),
    row(4, "SIGTERM while Kafka is dead", Both, 1, by!(relay::stopped_while_kafka_is_dead)),
    row(8, "memory while Kafka is away, rows of 64 KB", Both, 1, by!(memory::bounded_while_kafka_is_away)),
    row(12, "the machine sleeps (SIGSTOP beyond every timeout)", Both, 1, by!(relay::asleep)),
    // PostgreSQL.
    row(14, "stop -m immediate and start", Both, 1, by!(postgres::crashed)),
    row(15, "restart -m fast", Both, 1, by!(postgres::restarted)),
    row(16, "stop -m fast while Kafka is away, with a backlog", Both, 1, by!(postgres::stopped_while_kafka_is_away)),
    row(17, "kill -9 of the postmaster, of one backend", Both, 1, by!(postgres::killed)),
    row(18, "walsender terminated; every backend terminated", Both, 1, by!(postgres::walsender_terminated, postgres::all_backends_terminated)),
    row(22, "slot read by another consumer", Replication, 1, by!(slot::slot_is_read_by_another)),
    row(29, "kill -9 amid a large transaction", Both, 1, by!(relay::killed_amid_a_large_transaction)),
    row(34, "synchronous_commit = off and a crash before the flush", Polling, 1, Shown::ByTests(&["a_commit_that_a_crash_undoes_is_never_published"])),
    row(44, "password rotated, role loses REPLICATION, pg_hba rejects", Both, 1, Shown::ByTests(&["refusals::a_wrong_password_is_refused", "refusals::a_role_without_replication"])),
    // The network to PostgreSQL.
    row(47, "every connection reset each 1 to 2 s", Both, 1, by!(network::cut_again_and_again)),
    // Kafka.
    row(53, "broker killed; broker frozen", Both, 1, by!(kafka::broker_away, kafka::broker_frozen)),
    row(58, "permanent error on one record amid others of its key", Both, 1, Shown::ByTests(&["a_row_that_the_broker_refuses_blocks_its_aggregate", "publisher::a_refused_re"])),
    row(62, "unknown topic, created later", Both, 1, Shown::ByTests(&["an_unknown_topic_is_held_until_it_is_created"])),
    row(68, "coordinator down, unknown outcome of a transaction", Neither, 1, Shown::Nowhere("there is no exactly-once mode: the relay uses no transactions of Kafka")),
    row(69, "acknowledged records lost by an unclean election", Neither, 1, Shown::Nowhere("outside the promise: Kafka keeps what it acknowledged")),
    // Data and configuration.
    row(74, "SIGHUP", Both, 1, by!(relay::hung_up)),
    row(79, "state tables of a newer version", Neither, 1, Shown::ByTests(&["state_of_a_newer_version_is_refused", "migrate::a_second_run_finds_everything"])),
    // At any instant, whatever happens (O6).
    row(0, "frozen at random moments: nothing marked or confirmed early", Both, 1, by!(marks::nothing_is_early)),
];
