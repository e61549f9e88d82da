//! What people ask for beside `run`: one module for each command. `cli` holds their arguments and exit codes.

pub mod blocked;
pub mod check;
pub mod dead_letters;
pub mod demo;
pub mod migrate;
