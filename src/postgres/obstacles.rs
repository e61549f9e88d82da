//! What of a server, a role or the way to them no relay can live with, in the words of `check`.
//!
//! `check` asks for all of it, a migration and the opening of a session for what would stop them.

mod pooler;
pub(crate) mod replication;
pub(crate) mod room;
pub(crate) mod writing;

pub(crate) use pooler::pooler;
