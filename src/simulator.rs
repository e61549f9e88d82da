//! The relay's decisions in a simulated world: seeds become schedules of writes, faults and delays, and a judge who knows
//! what was committed looks at every step.
//!
//! The core, the tracker of holes, the sets of numbers, the contest for the lease and the ledger's decisions are the
//! product's own, and what tells whether a row was marked; server, brokers, database and the loop around the core are
//! scripted.

mod broker;
mod database;
pub(crate) mod event;
mod faults;
mod feed;
mod judge;
pub(crate) mod lease;
mod marking;
mod mutations;
mod opening;
mod polling;
mod record;
mod relay;
mod row_marks;
mod schedule;
pub(crate) mod server;
mod session;
mod stream;
mod sweep;
mod tests;
mod trace;
mod unsent;
mod world;
