//! The walsender, and the relay's side of the stream: messages become batches, positions go back.

use super::event::Event;
use super::mutations::Mutation;
use super::server::Server;
use super::session::Source;
use super::world::{World, tell};
use crate::relay::machine::Input;
use crate::row::Lsn;
use crate::source::{Batch, Boundary, SourceError};

/// Batches that wait for the relay.
pub const BATCHES_WAITING: usize = 4;

/// One connection that streams from the slot.
pub struct Walsender {
    /// The next commit, and how many of its rows were sent.
    at: usize,
    sent_rows: usize,
    /// The newest position that was told.
    told: u64,
}

enum Message {
    Row(Event, u64),
    Commit { lsn: u64, end: u64 },
    Keepalive(u64),
}

impl Walsender {
    /// Sends every transaction whose commit record does not begin before `confirmed`.
    pub fn new(confirmed: u64, server: &Server) -> Self {
        let at = server
            .commits
            .partition_point(|commit| commit.lsn < confirmed);
        Self {
            at,
            sent_rows: 0,
            told: confirmed,
        }
    }

    fn next(&mut self, server: &Server) -> Message {
        loop {
            let commit = server.commits.get(self.at);
            let Some(commit) = commit.filter(|commit| commit.end <= server.flushed) else {
                return Message::Keepalive(server.flushed.max(self.told));
            };
            if !commit.is_published || commit.events.is_empty() {
                self.at += 1;
                continue;
            }
            if let Some(event) = commit.events.get(self.sent_rows) {
                self.sent_rows += 1;
                return Message::Row(*event, commit.lsn);
            }
            (self.at, self.sent_rows) = (self.at + 1, 0);
            self.told = self.told.max(commit.end);
            let (lsn, end) = (commit.lsn, commit.end);
            return Message::Commit { lsn, end };
        }
    }

    fn has_open(&self) -> bool {
        self.sent_rows > 0
    }
}

impl World {
    /// Reads from the source; what it hands over waits for the relay.
    pub fn read_source(&mut self, relay: usize) {
        let Some(session) = &self.relays[relay].session else {
            return;
        };
        if session.batches.len() >= BATCHES_WAITING {
            return;
        }
        let failed = match session.source {
            _ if session.lost.is_some() => true,
            Source::Stream(_) => {
                self.read_stream(relay);
                false
            }
            Source::Numbers(_) => self.poll(relay).is_none(),
            Source::Pages(_) => self.read_page(relay).is_none(),
            Source::Given => false,
        };
        if failed {
            self.give(relay, Input::SourceEnded(SourceError::Ended));
        }
    }

    fn read_stream(&mut self, relay: usize) -> Option<()> {
        let mut batch = Batch::default();
        let messages = self.rng.usize(1..8);
        for _ in 0..messages {
            let session = self.relays[relay].session.as_mut()?;
            let Source::Stream(walsender) = &mut session.source else {
                return None;
            };
            let told = walsender.told;
            match walsender.next(&self.server) {
                Message::Row(event, lsn) => batch.rows.push(event.streamed(lsn)),
                Message::Commit { lsn, end } => {
                    let at = match self.mutation {
                        Mutation::ConfirmCommitLsn => lsn,
                        _ => end,
                    };
                    boundary(&mut batch, at);
                }
                Message::Keepalive(at) if at <= told => break,
                Message::Keepalive(at) => {
                    walsender.told = at;
                    let is_open = walsender.has_open();
                    self.keepalive(&mut batch, at, is_open);
                    break;
                }
            }
        }
        if batch.rows.is_empty() && batch.boundary.is_none() {
            return None;
        }
        tell!(
            self,
            "relay {relay} reads {:?} with boundary {:?}",
            batch.rows.iter().map(|row| row.seq).collect::<Vec<_>>(),
            batch.boundary
        );
        self.relays[relay]
            .session
            .as_mut()?
            .batches
            .push_back(batch);
        Some(())
    }

    fn keepalive(&self, batch: &mut Batch, at: u64, is_open: bool) {
        if self.mutation == Mutation::KeepaliveTooEarly {
            batch.boundary = Some(Boundary {
                rows: 0,
                lsn: Lsn(at),
            });
        } else if !is_open {
            boundary(batch, at);
        }
    }

    /// A status update reaches the server.
    pub fn deliver_status(&mut self, relay: usize) {
        let Some(session) = &self.relays[relay].session else {
            return;
        };
        if session.lost.is_some() {
            self.give(relay, Input::SourceEnded(SourceError::Ended));
        } else if session.is_stream() {
            self.confirm(relay);
        } else if self.moves_slot(relay) && self.move_slot(relay).is_none() {
            self.give(relay, Input::SourceEnded(SourceError::Ended));
        }
    }

    fn confirm(&mut self, relay: usize) {
        if let Some(session) = &self.relays[relay].session {
            self.confirm_lsn(session.confirm, session.connection);
        }
    }

    /// The server takes a position from the reader of its slot.
    pub fn confirm_lsn(&mut self, lsn: u64, connection: u64) {
        let Some(slot) = &mut self.database.slot else {
            return;
        };
        if slot.reader != Some(connection) || lsn <= slot.confirmed {
            return;
        }
        slot.confirmed = lsn;
        tell!(self, "connection {connection} confirms {lsn}");
        self.judge
            .confirmed(lsn, &self.server, &self.database, self.setting.mark);
    }
}

fn boundary(batch: &mut Batch, lsn: u64) {
    batch.boundary = Some(Boundary {
        rows: batch.rows.len(),
        lsn: Lsn(lsn),
    });
}
