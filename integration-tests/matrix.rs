//! The fault matrix: each row is a scenario that injects its fault and tells the oracle's verdict.
//!
//! Two programs run scenarios: `make test` some of them with small counts (`faults.rs`), `make faults` every one
//! (`program`). Every run is under the harness's writers; duplicates are bounded by the window for each kill, and by
//! zero for everything that leaves the process alive.
#![allow(dead_code, reason = "each program uses a part of the matrix")]

pub mod absent;
pub mod bounded;
pub mod cgroup;
pub mod failpoints;
pub mod kafka;
pub mod locks;
pub mod machine;
pub mod marks;
pub mod memory;
pub mod missed;
pub mod network;
pub mod others;
pub mod pair;
pub mod plain;
pub mod poison;
pub mod postgres;
pub mod program;
pub mod relay;
pub mod rig;
pub mod scene;
pub mod schema;
pub mod slot;
pub mod squeeze;
pub mod table;
pub mod tally;
