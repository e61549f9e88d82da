//! The servers of one worker: its cases run one after the other, so that one may make every COMMIT wait.

use std::collections::HashMap;

use crate::harness::postgres::Postgres;

#[derive(Default)]
pub struct Servers {
    by_major: HashMap<u32, Postgres>,
}

impl Servers {
    /// The server of a major version, started when it is first asked for.
    pub fn of(&mut self, major: u32) -> &mut Postgres {
        self.by_major
            .entry(major)
            .or_insert_with(|| Postgres::start(major))
    }
}
