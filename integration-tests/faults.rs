//! What the world does to a relay: killed, stopped, cut off, starved, its servers down or frozen.
//!
//! Every run is under the harness's writers and judged by the oracle from the whole topic. Duplicates are bounded by
//! the window for each kill, and by zero for everything that leaves the process alive.

mod absent;
mod cut_off;
mod kafka_away;
mod killed;
mod memory;
mod no_early_mark;
mod postgres_away;
pub mod rig;
mod slot_in_use;
mod stopped;
