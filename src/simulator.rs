//! The relay's decisions in a simulated world: seeds become schedules of writes, faults and delays, and a judge who knows
//! what was committed looks at every step.
//!
//! The machine of a session is the product's own, with the core and the marks that it owns, and so are the tracker of
//! holes, the contest for the lease, what tells whether a row was marked, and what the supervisor makes of a session's
//! end; server, brokers and database are scripted.

mod arrival;
mod broker;
mod database;
mod ending;
pub(crate) mod event;
mod faults;
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
mod seam;
pub(crate) mod server;
mod session;
mod stream;
mod sweep;
mod tests;
mod trace;
mod unsent;
mod world;
