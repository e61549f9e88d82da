//! What one session leaves to the next one, which records it. Pure.

use tracing::warn;

use crate::config::Mark;
use crate::relay::End;
use crate::row::Lsn;
use crate::source::SourceError;
use crate::source::replication::ReplicationError;

/// What is still to be recorded of reading the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CatchUp {
    /// Nothing: the recorded state says whether it is needed.
    AsRecorded,
    /// Rows that the stream will not bring stand in the table: it is to be read.
    Demanded,
    /// It was read.
    Done,
}

/// What the last session leaves to the next one, which records it.
#[derive(Debug)]
pub struct CarryOver {
    pub catch_up: CatchUp,
    /// The entries that the last session replayed.
    pub replayed: Vec<i64>,
    pub numbers: Numbers,
    /// The commit of a transaction that the slot can't send, or a position up to which the rows were polled: once the
    /// table was read, the slot moves behind it.
    pub undecodable_commit_lsn: Option<Lsn>,
}

impl CarryOver {
    /// Begins with nothing to record.
    pub fn nothing() -> Self {
        Self {
            catch_up: CatchUp::AsRecorded,
            replayed: Vec::new(),
            numbers: Numbers::AsKnown,
            undecodable_commit_lsn: None,
        }
    }

    /// Takes what follows for the next session from the end of one.
    pub(crate) fn follow(&mut self, end: &End, mark: Mark) {
        match end {
            End::CaughtUp => self.catch_up = CatchUp::Done,
            End::Replayed(ids) => self.replayed.extend(ids),
            // Where nothing is marked the table cannot say what is missing: only the stream can be read again.
            End::Reread(_) if mark == Mark::None => {}
            End::Reread(_) => self.catch_up = CatchUp::Demanded,
            End::Source(SourceError::Replication(ReplicationError::CannotSend {
                commit_lsn,
                ..
            })) if mark != Mark::None => {
                warn!(%commit_lsn, "the slot cannot send a transaction: the table is read instead");
                self.catch_up = CatchUp::Demanded;
                self.undecodable_commit_lsn = Some(*commit_lsn);
            }
            End::Renumbered(_) => self.numbers = Numbers::Reused,
            _ => {}
        }
    }

    /// Another relay published in between: what the last session left is not true any more.
    pub(crate) fn forget(&mut self) {
        self.catch_up = CatchUp::AsRecorded;
        self.replayed.clear();
        self.undecodable_commit_lsn = None;
    }
}

/// What the last session learned of the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbers {
    AsKnown,
    /// The stream brought a sent number with a commit that the ledger does not cover.
    Reused,
}
