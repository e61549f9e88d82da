//! High availability: any number of relays, of which exactly one publishes, whatever happens to it.

pub mod frozen;
mod migration;
mod promotion;
pub mod rolling;
mod several;
