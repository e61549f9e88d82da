//! The catalog check: whether table, server and publication are still what the session was opened on.

use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Client;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, error, info};

use super::Run;
use super::machine::Input;
use crate::config::{Config, Mark, Mode};
use crate::postgres::PostgresError;
use crate::postgres::catalog::{self, InspectError};
use crate::postgres::compatibility::{self, Incompatibility};
use crate::postgres::publication::{self, Drift};
use crate::row::Layout;
use crate::state::identity::{self, IdentityError, IdentityVerdict, ServerHistory};
use crate::state::names::{self, NamesError};
use crate::state::retention;
use crate::text::chain;

/// How often, unless sweeps come more often (docs/design.md, "The catalog check").
const CHECK_EVERY: Duration = Duration::from_secs(30);

/// What a catalog check found.
pub(super) struct Findings {
    history: ServerHistory,
    /// Why the table is not the one that the session was opened on, or does not allow what it does any more.
    moved: Option<String>,
    drift: Vec<Drift>,
    /// Slots of this outbox that nobody reads.
    unread_slots: Vec<Incompatibility>,
}

/// Why a catalog check could not be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum CatalogCheckError {
    #[error(transparent)]
    Inspect(#[from] InspectError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Names(#[from] NamesError),
    #[error("cannot look at the publication")]
    Publication(#[source] PostgresError),
}

/// Whether the session removes old rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Removing {
    Rows,
    Nothing,
}

pub(super) type CatalogCheck = AbortOnDropHandle<Result<Findings, CatalogCheckError>>;

/// How often a catalog check is made.
pub(super) fn catalog_check_every(config: &Config) -> Duration {
    CHECK_EVERY.min(config.source.replication.sweep)
}

impl Run<'_> {
    /// Begins a catalog check, beside everything else.
    pub(super) fn check_catalog(&mut self) {
        if self.catalog_check.is_some() {
            return;
        }
        let (sql, config) = (self.sql.clone(), self.relay.config.clone());
        let layout = Arc::clone(&self.machine.terms().layout);
        let removing = match self.machine.terms().removal {
            Some(_) => Removing::Rows,
            None => Removing::Nothing,
        };
        let catalog_check = async move { look(&sql.client, &config, &layout, removing).await };
        self.catalog_check = Some(AbortOnDropHandle::new(tokio::spawn(catalog_check)));
    }

    /// Ends the session when the table is another one: its opening decides what that means.
    pub(super) fn take_findings(&mut self, findings: Result<Findings, CatalogCheckError>) -> Input {
        let findings = match findings {
            Ok(findings) => findings,
            Err(CatalogCheckError::Inspect(failure @ InspectError::NotFound { .. })) => {
                return Input::TableMoved(chain(&failure));
            }
            Err(failure) => {
                debug!(
                    error = chain(&failure),
                    "could not look at table and publication"
                );
                return Input::TimePassed;
            }
        };
        self.relay.saw(findings.history);
        self.show_drift(findings.drift);
        let unread = findings.unread_slots.iter();
        let unread: Vec<String> = unread
            .map(|slot| format!("{}; {}", slot.text, slot.remedy))
            .collect();
        self.relay
            .status
            .update(|status| status.unread_slots = unread);
        findings.moved.map_or(Input::TimePassed, Input::TableMoved)
    }

    fn show_drift(&mut self, drift: Vec<Drift>) {
        let told: Vec<String> = drift
            .iter()
            .map(|drift| format!("{}; {}", drift.text, drift.remedy))
            .collect();
        let before = std::mem::replace(&mut self.relay.drift, told);
        for drift in drift {
            let Drift { text, remedy, .. } = drift;
            if before.iter().all(|told| !told.starts_with(&text)) {
                error!(
                    reason = text,
                    remedy, "the publication does not include all rows"
                );
                self.relay.status.failed(text);
            }
        }
        if !before.is_empty() && self.relay.drift.is_empty() {
            info!("the publication includes all rows again");
        }
        let drift = self.relay.drift.clone();
        self.relay.status.update(|status| status.drift = drift);
    }
}

/// Without a mark another relay may read another slot of this table.
async fn unread_slots(
    client: &Client,
    config: &Config,
) -> Result<Vec<Incompatibility>, CatalogCheckError> {
    let source = &config.source;
    if source.mark == Mark::None {
        return Ok(Vec::new());
    }
    let facts = names::facts(client, source).await?;
    let read = match source.mode {
        Mode::Replication => source.replication.slot.as_str(),
        Mode::Polling => "",
    };
    Ok(names::leftovers(&facts, read))
}

async fn look(
    client: &Client,
    config: &Config,
    layout: &Layout,
    removing: Removing,
) -> Result<Findings, CatalogCheckError> {
    let outbox = layout.outbox();
    let mut findings = Findings {
        history: identity::history(client, &outbox).await?,
        moved: None,
        drift: Vec::new(),
        unread_slots: unread_slots(client, config).await?,
    };
    let Some(stored) = identity::load(client, &outbox).await? else {
        return Ok(findings);
    };
    let table = match catalog::inspect(client, &layout.schema, &layout.table, &layout.names).await {
        Ok(table) => table,
        // Renamed it goes on being read; dropped it is another one.
        Err(InspectError::NotFound { .. }) if identity::stands(client, &stored).await? => {
            return Ok(findings);
        }
        Err(failure) => return Err(failure.into()),
    };
    let source = &config.source;
    let order_column = source.order_column.as_deref();
    let refusals = compatibility::refusals(source.mode, source.mark, order_column, &table);
    if let Some(Incompatibility { text, .. }) = refusals.into_iter().next() {
        findings.moved = Some(text);
        return Ok(findings);
    }
    // The next session publishes and keeps its rows, and says why.
    if let (Removing::Rows, Err(refusal)) = (removing, retention::row_age::age(source.mark, &table))
    {
        findings.moved = Some(refusal.text);
        return Ok(findings);
    }
    let now = identity::read(client, &table).await?;
    let tail = match config.source.mark {
        Mark::Ledger => identity::ledger_tail(client, &outbox).await?,
        Mark::SentAt | Mark::Delete | Mark::None => None,
    };
    let evidence = identity::evidence(client, &table, config.source.mark, tail).await?;
    findings.moved = match identity::compare(config.source.mark, &stored, &now, &evidence) {
        IdentityVerdict::Same => None,
        IdentityVerdict::NewGeneration { why } | IdentityVerdict::Halt { why, .. } => Some(why),
    };
    if config.source.mode == Mode::Replication {
        let adapted = publication::adapt(client, config, &table).await;
        adapted.map_err(|error| CatalogCheckError::Publication(error.into()))?;
        let drift = publication::drift(client, config, &table).await;
        findings.drift = drift.map_err(|error| CatalogCheckError::Publication(error.into()))?;
        let forbidding = findings.drift.iter().find(|drift| !drift.is_migrated);
        findings.moved = findings
            .moved
            .or(forbidding.map(|drift| drift.text.clone()));
    }
    let source = &config.source;
    let order_column = source.order_column.as_deref();
    let refusals = compatibility::refusals(source.mode, source.mark, order_column, &table);
    let refusal = refusals.into_iter().next().map(|refusal| refusal.text);
    findings.moved = findings.moved.or(refusal);
    Ok(findings)
}
