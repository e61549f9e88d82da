//! Slot and publication: names in spaces that others share, and whose they are.
//!
//! A name is ours only if our own state says so (`outboxd.slot`). Reads the catalog and the state; never makes,
//! changes or drops anything.

mod facts;
mod verdict;

use tokio_postgres::Client;

use crate::config::{Mark, Mode, SourceConfig, TableName, TableNameError};
use crate::postgres::PostgresError;
use crate::postgres::compatibility::Incompatibility;
use crate::state::rename::RenameError;
pub(crate) use facts::Facts;
use verdict::Reading;
pub(crate) use verdict::{drop_statement, is_made_for_us, leftovers};

/// Why the names could not be found out.
#[derive(Debug, thiserror::Error)]
pub enum NamesError {
    #[error("cannot use `source.table`")]
    Table(#[from] TableNameError),
    #[error("cannot find out which slot and publication are this outbox's")]
    Sql(#[source] PostgresError),
    #[error(transparent)]
    Rename(#[from] RenameError),
    #[error("the database's name is not known without a server, and default names hold it")]
    NoDatabase,
}

impl From<tokio_postgres::Error> for NamesError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Sql(error.into())
    }
}

/// A slot and a publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Names {
    pub slot: String,
    pub publication: String,
}

/// The configuration with the names that it leaves open: those that the state knows, else the default ones.
///
/// Cancel-safe: yes, it only reads.
pub(crate) async fn resolve(
    client: &Client,
    source: &SourceConfig,
) -> Result<SourceConfig, NamesError> {
    if is_complete(source) {
        return Ok(source.clone());
    }
    let names = verdict::choose(&facts(client, source).await?, source, &source.table_name()?);
    Ok(with(source, names))
}

/// The same without a server: default names, for the database that the URL names.
pub(crate) fn resolve_offline(source: &SourceConfig) -> Result<SourceConfig, NamesError> {
    if is_complete(source) {
        return Ok(source.clone());
    }
    let options = source.url.options().map_err(|_| NamesError::NoDatabase)?;
    let default = source.table_name()?.slot(&options.dbname);
    let or_default = |name: &str| match name {
        "" => default.clone(),
        given => given.to_owned(),
    };
    let names = Names {
        slot: or_default(&source.replication.slot),
        publication: or_default(&source.replication.publication),
    };
    Ok(with(source, names))
}

fn is_complete(source: &SourceConfig) -> bool {
    !source.replication.slot.is_empty() && !source.replication.publication.is_empty()
}

fn with(source: &SourceConfig, names: Names) -> SourceConfig {
    let mut source = source.clone();
    source.replication.slot = names.slot;
    source.replication.publication = names.publication;
    source
}

/// What database and state say of the names of this outbox.
///
/// Cancel-safe: yes, it only reads.
pub(crate) async fn facts(client: &Client, source: &SourceConfig) -> Result<Facts, NamesError> {
    let TableName { schema, table } = source.table_name()?;
    Facts::read(client, &schema, &table).await
}

/// Why this outbox may not use slot and publication as they are configured; nothing where it may, or polls.
pub(crate) async fn refused(
    client: &Client,
    source: &SourceConfig,
) -> Result<Vec<Incompatibility>, NamesError> {
    if source.mode == Mode::Polling {
        return Ok(Vec::new());
    }
    refusals_of(&facts(client, source).await?, source)
}

/// The same of facts that were read, whatever the mode.
pub(crate) fn refusals_of(
    facts: &Facts,
    source: &SourceConfig,
) -> Result<Vec<Incompatibility>, NamesError> {
    let publication = verdict::publication_refusal(facts, &names_of(source), &source.table_name()?);
    Ok(slot_refused(facts, source)?
        .into_iter()
        .chain(publication)
        .collect())
}

/// Why the slot is not this outbox's to use.
pub(crate) fn slot_refused(
    facts: &Facts,
    source: &SourceConfig,
) -> Result<Option<Incompatibility>, NamesError> {
    let reading = match source.mark {
        Mark::None => Reading::BySlot,
        Mark::Ledger | Mark::SentAt | Mark::Delete => Reading::ByTable,
    };
    let table = source.table_name()?;
    Ok(verdict::slot_refusal(
        facts,
        &names_of(source),
        reading,
        &table,
    ))
}

fn names_of(source: &SourceConfig) -> Names {
    Names {
        slot: source.replication.slot.clone(),
        publication: source.replication.publication.clone(),
    }
}
