//! Rows that may be at fault, and rows that are: sent alone, a record can only be refused for its own sake.

use std::collections::{HashMap, HashSet};

use super::RowKey;
use crate::core::Ticket;
use crate::row::RowId;

/// Producers that a row has ended in turn before it is sent alone.
const TOGETHER_MAX: u32 = 2;

/// What failed reports said of single rows; empty nearly always.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    rows: HashSet<RowKey>,
    /// The one suspect that is in flight, alone.
    alone: Option<Ticket>,
    /// Rows that the broker refused alone, and what it said.
    refused: HashMap<RowKey, String>,
    /// Rows that failed, not for their own sake, when the last producers ended, and how many of these in turn.
    troubled: HashMap<RowKey, Trouble>,
}

#[derive(Debug)]
struct Trouble {
    id: RowId,
    producers: u32,
}

impl Suspects {
    pub(super) fn has(&self, key: &RowKey) -> bool {
        !self.rows.is_empty() && self.rows.contains(key)
    }

    /// What the broker said of a row that it refused alone.
    pub(super) fn refusal(&self, key: &RowKey) -> Option<&str> {
        if self.refused.is_empty() {
            return None;
        }
        self.refused.get(key).map(String::as_str)
    }

    pub(super) fn is_one_alone(&self) -> bool {
        self.alone.is_some()
    }

    pub(super) fn send_alone(&mut self, ticket: Ticket) {
        self.alone = Some(ticket);
    }

    /// The broker has acknowledged the row: it is innocent.
    pub(super) fn delivered(&mut self, ticket: Ticket, key: &RowKey) {
        if self.alone == Some(ticket) {
            self.alone = None;
            self.rows.remove(key);
        }
    }

    /// The broker has refused the row: it is at fault if it was alone, and is sent alone from now on if not.
    pub(super) fn refuse(&mut self, ticket: Ticket, key: RowKey, error: &str) {
        if self.alone == Some(ticket) {
            self.rows.remove(&key);
            self.refused.insert(key, error.to_owned());
        } else {
            self.rows.insert(key);
        }
    }

    /// A producer has ended, and these rows failed for a reason that need not be theirs.
    ///
    /// A row that does so again is sent alone, so that it keeps no other from going out before it and can be named.
    pub(super) fn trouble(&mut self, rows: Vec<(RowKey, RowId)>) {
        let before = std::mem::take(&mut self.troubled);
        for (key, id) in rows {
            let producers = 1 + before.get(&key).map_or(0, |trouble| trouble.producers);
            if producers >= TOGETHER_MAX {
                self.rows.insert(key.clone());
            }
            self.troubled.insert(key, Trouble { id, producers });
        }
    }

    /// The row that alone ends one producer after the other.
    pub(super) fn stubborn(&self) -> Option<&RowId> {
        let mut alone = self.troubled.values();
        let is_stubborn = |trouble: &&Trouble| trouble.producers > TOGETHER_MAX;
        match (alone.next().filter(is_stubborn), alone.next()) {
            (Some(trouble), None) => Some(&trouble.id),
            _ => None,
        }
    }

    /// What became of the row is recorded.
    pub(super) fn recorded(&mut self, key: &RowKey) {
        self.refused.remove(key);
    }

    /// Nothing is in flight any more.
    pub(super) fn producer_ended(&mut self) {
        self.alone = None;
    }
}
