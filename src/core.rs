//! The state machine of rows in flight.
