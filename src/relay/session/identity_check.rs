//! Whether the table is still the one we knew, and what follows where it is not.

use tracing::{error, warn};

use super::{Numbers, OpenError, SessionBuilder};
use crate::config::Mark;
use crate::postgres;
use crate::postgres::catalog::{Table, TableKind};
use crate::row::RowId;
use crate::state::identity::{self, History, IdentityVerdict, RowAt};
use crate::state::{OutboxState, StateTable};

/// What the state tables say of an outbox that is still the one we knew.
pub(super) struct KnownOutbox {
    pub(super) state: OutboxState,
    /// The id of the row that carries the ledger's highest number, while it stands.
    pub(super) top_id: Option<RowId>,
    /// A sent number came again in a table whose rows can move from one partition to another.
    pub(super) has_moved_rows: bool,
}

impl SessionBuilder<'_> {
    /// Compares the table with the one we knew; numbers that began anew begin a new generation.
    pub(super) async fn check_identity(
        &self,
        sql: &postgres::SqlConnection,
        states: &StateTable<'_>,
        table: &Table,
        state: OutboxState,
    ) -> Result<KnownOutbox, OpenError> {
        self.check_history(sql, states.outbox).await?;
        let now = identity::read(&sql.client, table).await?;
        let mark = self.config.source.mark;
        let Some(stored) = identity::load(&sql.client, states.outbox).await? else {
            let evidence = identity::evidence(&sql.client, table, mark, None).await?;
            if let IdentityVerdict::Halt { why, remedy } =
                identity::compare(mark, &now, &now, &evidence)
            {
                return Err(OpenError::Halt {
                    reason: why,
                    remedy,
                });
            }
            identity::store(&sql.client, states.outbox, &now).await?;
            return Ok(KnownOutbox {
                state,
                top_id: None,
                has_moved_rows: false,
            });
        };
        let tail = match mark {
            Mark::Ledger => identity::ledger_tail(&sql.client, states.outbox).await?,
            Mark::SentAt | Mark::Delete | Mark::None => None,
        };
        let evidence = identity::evidence(&sql.client, table, mark, tail.clone()).await?;
        let is_reused = self.carry_over.numbers == Numbers::Reused;
        let is_restart = is_reused && identity::began_again(&stored, &now);
        let can_move = table.kind == TableKind::Partitioned;
        let why = match identity::compare(mark, &stored, &now, &evidence) {
            // The rows that came after a TRUNCATE have reached the last number that was sent.
            IdentityVerdict::Halt { why, .. } if is_restart => Some(why),
            IdentityVerdict::Halt { why, remedy } => {
                // What was read before a TRUNCATE does not go with what was read after it.
                if identity::read(&sql.client, &self.inspect(sql).await?).await? != now {
                    return Err(OpenError::Moved {
                        outbox: states.outbox.to_owned(),
                    });
                }
                return Err(OpenError::Halt {
                    reason: why,
                    remedy,
                });
            }
            IdentityVerdict::NewGeneration { why } => Some(why),
            IdentityVerdict::Same if is_reused && !can_move => {
                Some("the stream contains a sent number again".to_owned())
            }
            IdentityVerdict::Same => None,
        };
        let Some(why) = why else {
            if stored != now {
                identity::store(&sql.client, states.outbox, &now).await?;
            }
            let is_standing = matches!(evidence.tail, Some((_, RowAt::Same)));
            let top_id = tail.filter(|_| is_standing).map(|(_, id)| id);
            return Ok(KnownOutbox {
                state,
                top_id,
                has_moved_rows: is_reused,
            });
        };
        error!(reason = %why, generation = state.generation + 1, "a new generation of numbers begins");
        // Before the identity is recorded: a crash in between must not hide what began it.
        states.begin_generation(state.generation).await?;
        identity::store(&sql.client, states.outbox, &now).await?;
        Ok(KnownOutbox {
            state: states.load().await?,
            top_id: None,
            has_moved_rows: false,
        })
    }

    /// Compares the server with the one that this process knows: what was restored does not say so itself.
    async fn check_history(
        &self,
        sql: &postgres::SqlConnection,
        outbox: &str,
    ) -> Result<(), OpenError> {
        let Some(seen) = self.history else {
            return Ok(());
        };
        let now = identity::history(&sql.client, outbox).await?;
        match seen.judge(&now) {
            History::Continues => Ok(()),
            History::Promoted { lacks_bytes } => {
                let (from, to) = (seen.timeline, now.timeline);
                warn!(
                    from,
                    to, lacks_bytes, "a standby was promoted: the timeline is another one"
                );
                if lacks_bytes > 0 {
                    error!(
                        lacks_bytes,
                        "the new primary lacks WAL that was streamed: rows may be in Kafka that it does not have"
                    );
                }
                Ok(())
            }
            History::Rewound { bytes } => Err(OpenError::Rewound {
                timeline: now.timeline,
                bytes,
            }),
        }
    }
}
