//! What is durable beside the outbox: who publishes, where an outbox starts, whose numbers they are, what is held, and
//! what may go.

pub(crate) mod hold;
pub(crate) mod identity;
pub mod lease;
pub(crate) mod names;
mod outbox;
pub(crate) mod rename;
pub mod retention;
pub(crate) mod schema;
pub(crate) mod unsent;

pub use outbox::{Commits, OutboxState, Skipped, SkippedBy, StateError, StateTable};
