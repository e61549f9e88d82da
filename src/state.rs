//! What is durable beside the outbox: who publishes, where an outbox starts, whose numbers they are, what is held, and
//! what may go.

pub mod hold;
pub mod identity;
pub mod lease;
mod outbox;
pub mod rename;
pub mod retention;
pub mod unsent;

pub use outbox::{Commits, OutboxState, Skipped, SkippedBy, StateError, StateTable};
