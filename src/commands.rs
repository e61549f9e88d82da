//! What people ask for beside `run`: one module for each command. `cli` holds their arguments and exit codes.

pub(crate) mod blocked;
pub(crate) mod check;
pub(crate) mod dead_letters;
pub mod demo;
pub mod migrate;
