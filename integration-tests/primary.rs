//! The primary is protected from its relay: locks, connections, WAL, and what the server takes away.

mod budget;
mod frozen;
mod idle;
mod locks;
mod refused;
