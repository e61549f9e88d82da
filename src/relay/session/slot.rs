//! The slot and publication of a session: there before the table is read, and never lost in silence.

use tracing::{error, info, warn};

use super::{OpenError, SessionBuilder, connect, insert_position, refused, slot_wait};
use crate::config::{Mark, Mode, OnLostSlot, ReplicationConfig};
use crate::observe::status::{OPENING, State};
use crate::postgres;
use crate::postgres::catalog::Table;
use crate::postgres::compatibility::Incompatibility;
use crate::postgres::obstacles;
use crate::postgres::publication::{self, Drift};
use crate::postgres::slot::{self, Consent, Fitness, Slot};
use crate::row::Lsn;
use crate::state::names::{self, Facts};
use crate::state::schema::{self, Creates};
use crate::state::{OutboxState, StateTable};

/// Whether the stream could be read to its end so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoding {
    Possible,
    /// The slot stands before changes that it can't decode: their publication did not exist then.
    MissingPublication,
}

impl SessionBuilder<'_> {
    /// Creates publication and slot where nothing was ever read through them; finds out whether they were lost.
    ///
    /// Errors: `SlotLost` once it is recorded that the table has to be read: the next opening makes what is missing.
    pub(super) async fn prepare_slot(
        &self,
        sql: &postgres::SqlConnection,
        states: &StateTable<'_>,
        state: &OutboxState,
    ) -> Result<(), OpenError> {
        if self.config.source.mode == Mode::Polling {
            return Ok(());
        }
        let name = &self.config.source.replication.slot;
        let found = slot::status(&sql.client, name).await?;
        let fitness = match &found {
            Some(slot) => Some(self.fitness(sql, slot).await?),
            None => None,
        };
        if let Some(Fitness::Foreign(reason)) = fitness {
            return Err(OpenError::Halt {
                reason,
                remedy: "name another in source.replication.slot".to_owned(),
            });
        }
        let facts = names::facts(&sql.client, &self.config.source).await?;
        self.refuse_others(&facts)?;
        if !state.caught_up {
            let is_read_through = state.slot.as_ref() == Some(name);
            if !is_read_through || fitness != Some(Fitness::Usable) {
                self.create(sql, fitness).await?;
            }
            return self.remember(states, state, &facts).await;
        }
        if let Some(known) = self.another_than(state) {
            return Err(self.switch(states, &facts, known).await?);
        }
        let lost = match fitness {
            None => Some(format!(
                "slot `{name}` is gone, and rows may have gone with it"
            )),
            Some(Fitness::Lost(reason)) => Some(reason),
            _ => None,
        };
        match lost {
            Some(reason) => Err(self.lose(states, reason).await?),
            None if self.decoding == Decoding::MissingPublication => self.bypass(sql, states).await,
            None => self.remember(states, state, &facts).await,
        }
    }

    /// Two outboxes on one slot would take each other's rows.
    fn refuse_others(&self, facts: &Facts) -> Result<(), OpenError> {
        let refusals = names::refusals_of(facts, &self.config.source)?;
        match refusals.into_iter().next() {
            Some(Incompatibility { text, remedy }) => Err(OpenError::Halt {
                reason: text,
                remedy,
            }),
            None => Ok(()),
        }
    }

    /// Has the publication bring what suits the table, and refuses one that leaves out rows, or of rows what
    /// records need.
    pub(super) async fn check_publication(
        &self,
        sql: &postgres::SqlConnection,
        table: &Table,
    ) -> Result<(), OpenError> {
        if self.config.source.mode == Mode::Polling {
            return Ok(());
        }
        let adapted = publication::adapt(&sql.client, self.config, table).await;
        adapted.map_err(|source| OpenError::Postgres {
            purpose: "its publication",
            source: source.into(),
        })?;
        let drift = publication::drift(&sql.client, self.config, table).await;
        let drift = drift.map_err(|source| OpenError::Postgres {
            purpose: "its publication",
            source: source.into(),
        })?;
        match drift.into_iter().find(|drift| !drift.is_migrated) {
            Some(Drift { text, remedy, .. }) => Err(OpenError::Halt {
                reason: text,
                remedy,
            }),
            None => Ok(()),
        }
    }

    /// The slot of before, where the configuration names another one now.
    fn another_than<'s>(&self, state: &'s OutboxState) -> Option<&'s str> {
        let known = state.slot.as_deref()?;
        let is_other = known != self.config.source.replication.slot;
        (is_other && self.config.source.mark != Mark::None).then_some(known)
    }

    /// Without a mark several relays may read one table, each through a slot of its own.
    async fn remember(
        &self,
        states: &StateTable<'_>,
        state: &OutboxState,
        facts: &Facts,
    ) -> Result<(), OpenError> {
        let ReplicationConfig {
            slot, publication, ..
        } = &self.config.source.replication;
        if !facts.has_noted(slot) && !states.note_slot(slot, publication).await? {
            return Err(OpenError::Halt {
                reason: format!("slot `{slot}` was just taken for another outbox"),
                remedy: "name another in source.replication.slot".to_owned(),
            });
        }
        if self.config.source.mark == Mark::None {
            return Ok(());
        }
        if state.slot.as_ref() != Some(slot) {
            states.set_slot(slot, publication).await?;
        }
        states.forget_dropped_slots(slot).await?;
        for Incompatibility { text, remedy } in names::leftovers(facts, slot) {
            warn!(reason = text, remedy, "a slot that nobody reads keeps WAL");
        }
        Ok(())
    }

    /// Decides what follows when the configuration names another slot than the one that was read: as for a lost one, for
    /// what was committed between the two comes through neither.
    async fn switch(
        &self,
        states: &StateTable<'_>,
        facts: &Facts,
        known: &str,
    ) -> Result<OpenError, OpenError> {
        let name = &self.config.source.replication.slot;
        let stands = facts.has_slot(known);
        let reason = match facts.slot(known).filter(|_| stands) {
            Some(slot) => format!(
                "the configuration names slot `{name}`, and the rows were read through `{known}`, which still stands and \
                 keeps {} bytes of WAL",
                slot.retained_bytes.unwrap_or_default()
            ),
            None => format!(
                "slot `{known}`, through which the rows were read, is gone, and the configuration names `{name}`"
            ),
        };
        let dropping = match stands {
            true => format!("; {} drops it", names::drop_statement(known)),
            false => String::new(),
        };
        if self.config.source.replication.on_lost_slot == OnLostSlot::Halt {
            return Ok(OpenError::Halt {
                reason,
                remedy: format!(
                    "set source.replication.slot = \"{known}\" to go on with it, or source.replication.on_lost_slot = \
                     \"repair\" to have the table read and go on with `{name}`{dropping}"
                ),
            });
        }
        states.set_caught_up(false).await?;
        let reason = format!("{reason}{dropping}");
        error!(
            slot = name,
            reason, "another slot is named: the table is read"
        );
        Ok(OpenError::SlotLost { reason })
    }

    async fn fitness(
        &self,
        sql: &postgres::SqlConnection,
        slot: &Slot,
    ) -> Result<Fitness, OpenError> {
        let query = "SELECT pg_catalog.current_database()::text";
        let row = sql.client.query_one(query, &[]).await;
        let row = row.map_err(|source| OpenError::Postgres {
            purpose: "its name",
            source: source.into(),
        })?;
        Ok(slot.fitness(row.get(0)))
    }

    /// Makes what is missing; an invalid slot goes first, for the table is read after this.
    async fn create(
        &self,
        sql: &postgres::SqlConnection,
        fitness: Option<Fitness>,
    ) -> Result<(), OpenError> {
        let name = &self.config.source.replication.slot;
        if let Some(Fitness::Lost(reason)) = fitness {
            slot::drop_slot(&sql.client, name, Consent::Given).await?;
            warn!(slot = name, reason, "dropped the invalid slot");
        }
        let pid = backend(sql).await?;
        let denied = tokio::select! {
            denied = schema::ensure(&sql.client, self.config, Creates::Everything) => denied.map_err(refused)?,
            never = slot_wait::tell(&self.options, name, pid, &self.status) => match never {},
        };
        self.status.state(State::Waiting, OPENING);
        if denied.is_empty() {
            return Ok(());
        }
        // The server's words name no role.
        match obstacles::replication::role(&sql.client, name).await {
            Ok(Some(Incompatibility { text, remedy })) => Err(OpenError::Halt {
                reason: text,
                remedy,
            }),
            Ok(None) | Err(_) => Err(OpenError::Missing(denied)),
        }
    }

    /// Lets the table be read in the place of what the slot still holds, where rows were polled since it was read: marks in
    /// rows don't say when a row was sent.
    pub(super) async fn leave_to_the_table(
        &mut self,
        sql: &postgres::SqlConnection,
        states: &StateTable<'_>,
    ) -> Result<(), OpenError> {
        let source = &self.config.source;
        let marks_rows = matches!(source.mark, Mark::SentAt | Mark::Delete);
        if !marks_rows {
            return Ok(());
        }
        if source.mode == Mode::Polling {
            return Ok(states.note_polled().await?);
        }
        if self.carry_over.undecodable_commit_lsn.is_none() && states.was_polled().await? {
            states.set_caught_up(false).await?;
            self.carry_over.undecodable_commit_lsn = Some(insert_position(sql).await?);
        }
        Ok(())
    }

    /// Moves the slot behind what it can't send or was published from the table, once the table was read beyond it.
    pub(super) async fn pass(&mut self, states: &StateTable<'_>) -> Result<(), OpenError> {
        let Some(commit_lsn) = self.carry_over.undecodable_commit_lsn else {
            return Ok(());
        };
        let session = connect(&self.options, "slot").await?;
        let name = &self.config.source.replication.slot;
        slot::advance(&session.client, name, Lsn(commit_lsn.0 + 1)).await?;
        self.carry_over.undecodable_commit_lsn = None;
        states.forget_polled().await?;
        info!(slot = name, position = %commit_lsn, "the slot has passed what was read from the table in its place");
        Ok(())
    }

    /// Decides what follows from a lost slot; the table is to be read is recorded before anything is done.
    async fn lose(&self, states: &StateTable<'_>, reason: String) -> Result<OpenError, OpenError> {
        let name = &self.config.source.replication.slot;
        if self.config.source.replication.on_lost_slot == OnLostSlot::Halt {
            return Ok(OpenError::Halt {
                reason,
                remedy: "see `outboxd slot status`; `outboxd slot drop --yes` removes an invalid one, `outboxd migrate` \
                         creates a new one, and with a mark the table is read again"
                    .to_owned(),
            });
        }
        states.set_caught_up(false).await?;
        error!(
            slot = name,
            reason,
            "replication slot lost: creating a new one, republishing unsent rows from the table"
        );
        Ok(OpenError::SlotLost { reason })
    }

    /// Goes around changes that the slot can't decode: past them, and what stands in the table is read from there.
    async fn bypass(
        &self,
        sql: &postgres::SqlConnection,
        states: &StateTable<'_>,
    ) -> Result<(), OpenError> {
        let replication = &self.config.source.replication;
        let query = "SELECT FROM pg_catalog.pg_publication WHERE pubname = $1";
        let found = sql
            .client
            .query_opt(query, &[&replication.publication])
            .await;
        let found = found.map_err(|source| OpenError::Postgres {
            purpose: "its publication",
            source: source.into(),
        })?;
        let name = &replication.publication;
        let reason = match found {
            None => format!(
                "publication `{name}` does not exist, and the slot can't pass rows without it"
            ),
            Some(_) => format!(
                "publication `{name}` did not exist when rows were committed, and the slot can't pass them"
            ),
        };
        if found.is_none() || replication.on_lost_slot == OnLostSlot::Halt {
            return Err(OpenError::Halt {
                reason,
                remedy: "`outboxd migrate` creates the publication; with `on_lost_slot = \"repair\"` the table is then read, \
                         else `outboxd slot drop --yes` and `outboxd migrate` begin anew"
                    .to_owned(),
            });
        }
        states.set_caught_up(false).await?;
        let session = connect(&self.options, "slot").await?;
        let position = insert_position(&session).await?;
        slot::advance(&session.client, &replication.slot, position).await?;
        info!(
            slot = replication.slot,
            "advanced the slot past what it can't decode"
        );
        error!(
            reason,
            "the stream cannot be decoded: the table is read instead"
        );
        Err(OpenError::SlotLost { reason })
    }
}

async fn backend(sql: &postgres::SqlConnection) -> Result<i32, OpenError> {
    let row = sql
        .client
        .query_one("SELECT pg_catalog.pg_backend_pid()", &[])
        .await;
    let row = row.map_err(|source| OpenError::Postgres {
        purpose: "its process",
        source: source.into(),
    })?;
    Ok(row.get(0))
}
