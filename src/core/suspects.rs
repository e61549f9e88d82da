//! Rows that may be at fault, and rows that are: sent alone, a record can only be refused for its own sake.

use std::collections::{HashMap, HashSet};

use super::RowKey;
use crate::publish::Ticket;

/// What failed reports said of single rows; empty nearly always.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    rows: HashSet<RowKey>,
    /// The one suspect that is in flight, alone.
    alone: Option<Ticket>,
    /// Rows that the broker refused alone, and what it said.
    refused: HashMap<RowKey, String>,
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

    /// What became of the row is recorded.
    pub(super) fn recorded(&mut self, key: &RowKey) {
        self.refused.remove(key);
    }

    /// Nothing is in flight any more.
    pub(super) fn producer_ended(&mut self) {
        self.alone = None;
    }
}
