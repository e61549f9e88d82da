//! What is durable beside the outbox: who publishes, where an outbox starts, whose numbers they are, what is held, and
//! what may go.

pub mod hold;
pub mod identity;
pub mod lease;
pub mod names;
mod outbox;
pub mod rename;
pub mod retention;
pub mod schema;
pub mod unsent;

pub use outbox::{Commits, OutboxState, Skipped, SkippedBy, StateError, StateTable};
