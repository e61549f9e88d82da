//! The stream of a replication slot as a source.

pub mod pgoutput;
pub mod wire;
