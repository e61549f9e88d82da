//! Puts into the database what a relay needs, once: table, state, publication, slot, grants.
//!
//! Owns the numbered SQL files and what of them is still to be done. Never changes an outbox table that is
//! there, and never drops anything but its own view.

mod adopt;
mod error;
mod existing_objects;
mod foresight;
mod fragment;
mod partitioned;
mod steps;

pub(crate) use error::MigrateError;
pub(crate) use error::create_schema;

use tokio_postgres::Client;

use crate::config::{Config, Mark, Mode, SourceConfig};
use crate::postgres::compatibility::Incompatibility;
use crate::postgres::obstacles;
use crate::postgres::{Class, PostgresError};
use crate::row::columns::ColumnNames;
use crate::state::names;
use existing_objects::ExistingObjects;

/// The version of the state tables that this relay knows.
pub(crate) const STATE_VERSION: i32 = 1;

/// The group that holds the relay's grants where no role is named.
const RELAY_ROLE: &str = "outboxd_relay";

/// What `outboxd migrate` was asked for besides the configuration.
#[derive(Clone, Debug, Default)]
pub struct MigrateOptions {
    /// The role that gets the relay's grants; a group `outboxd_relay` where none is named.
    pub relay_role: Option<String>,
    /// The role that may insert.
    pub application_role: Option<String>,
    /// Make the table a partitioned one, with so many numbers in each partition.
    pub partition_rows: Option<i64>,
    /// Take the numbers as they are now for the table's own: see [`crate::state::identity`].
    pub adopt: bool,
    pub lacking: Lacking,
}

/// What a plan does about schema, column or right to look without which the steps can't be done yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lacking {
    #[default]
    Refuse,
    /// A person adds them first: the steps are those of afterwards.
    Foresee,
}

/// One thing that a migration does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub part: Part,
    /// What stands when it is done, such as ``publication `outboxd_orders` ``.
    pub description: String,
    pub sql: String,
    pub state: StepState,
}

/// What a step makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    State,
    /// Of the state: without it what is kept is found all the same, and slower.
    Index,
    Table,
    /// The decision that everything is published, of a table that is empty.
    Start,
    Function,
    View,
    Publication,
    /// That the slot is this outbox's.
    Claim,
    Slot,
    Grant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepState {
    Needed,
    AlreadyThere,
    /// Not done, and why that is no fault.
    Skipped(&'static str),
}

/// How much a relay that starts may create by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Creates {
    /// Publication and slot too: nothing was ever read through them.
    Everything,
    /// Only the state: a publication or slot that is missing now was lost, and rows with it.
    State,
}

/// The names that a migration fills in.
#[derive(Clone, Debug)]
struct Names {
    schema: String,
    table: String,
    columns: ColumnNames,
    mode: Mode,
    mark: Mark,
    /// Rows that were sent are removed in the end.
    removes: bool,
    order_column: Option<String>,
    partition_rows: Option<i64>,
    publication: String,
    slot: String,
    failover: bool,
    relay_role: Option<String>,
    application_role: Option<String>,
    lacking: Lacking,
}

impl Names {
    fn new(source: &SourceConfig, options: &MigrateOptions) -> Result<Self, MigrateError> {
        let name = source.table_name()?;
        Ok(Self {
            schema: name.schema,
            table: name.table,
            columns: source.columns.clone(),
            mode: source.mode,
            mark: source.mark,
            removes: source.retention.is_some(),
            order_column: source.order_column.clone(),
            partition_rows: options.partition_rows,
            publication: source.replication.publication.clone(),
            slot: source.replication.slot.clone(),
            failover: source.replication.failover,
            relay_role: options.relay_role.clone(),
            application_role: options.application_role.clone(),
            lacking: options.lacking,
        })
    }

    fn relay_role(&self) -> &str {
        self.relay_role.as_deref().unwrap_or(RELAY_ROLE)
    }

    /// The key of the state tables.
    fn outbox(&self) -> String {
        format!("{}.{}", self.schema, self.table)
    }
}

/// The whole SQL for a database that has nothing yet, one transaction a step; needs no server.
pub(crate) fn script(config: &Config, options: &MigrateOptions) -> Result<String, MigrateError> {
    let names = Names::new(&names::resolve_offline(&config.source)?, options)?;
    let mut script = String::new();
    for step in steps::steps(&names, &ExistingObjects::default())? {
        let Step {
            part,
            description,
            sql,
            ..
        } = step;
        let text = match part {
            Part::Slot => format!("-- {description}\n{sql}\n\n"),
            _ => format!("-- {description}\nBEGIN;\n{sql}\nCOMMIT;\n\n"),
        };
        script.push_str(&text);
    }
    Ok(script)
}

/// Everything a migration makes, in order, and whether it stands already.
///
/// Errors: `NewerState` for state tables of a later outboxd; the others name what cannot be looked at or used.
/// Cancel-safe: yes, it only reads.
pub(crate) async fn plan(
    client: &Client,
    config: &Config,
    options: &MigrateOptions,
) -> Result<Vec<Step>, MigrateError> {
    let names = Names::new(&config.source, options)?;
    let existing = ExistingObjects::look(client, &names).await?;
    if let Some(found) = existing.version.filter(|found| *found > STATE_VERSION) {
        return Err(MigrateError::NewerState { found });
    }
    if existing.table.is_none() && !names.columns.is_empty() {
        let table = names.outbox();
        return Err(MigrateError::NotToBeMade { table });
    }
    let is_refused = options.lacking == Lacking::Refuse;
    if existing.table.is_none() && !existing.has_schema && is_refused {
        return Err(MigrateError::NoSchema {
            schema: names.schema,
        });
    }
    steps::steps(&names, &existing)
}

/// What the server lacks for a slot that is still to be made.
///
/// Errors: `Server` with the words of `check`.
pub(crate) async fn refuse_server(
    client: &Client,
    config: &Config,
    steps: &[Step],
) -> Result<(), MigrateError> {
    let is_slot = |step: &&Step| step.part == Part::Slot && step.state == StepState::Needed;
    if !steps.iter().any(|step| is_slot(&step)) {
        return Ok(());
    }
    let slot = &config.source.replication.slot;
    let lacks = obstacles::replication::slot(client, slot).await;
    match lacks.map_err(|error| MigrateError::Look(error.into()))? {
        Some(Incompatibility { text, remedy }) => Err(MigrateError::Server { text, remedy }),
        None => Ok(()),
    }
}

/// Refuses a server on which nothing can be made, and a pooler, behind which a lock is nobody's.
///
/// Errors: `Server` with the words of `check`.
pub(crate) async fn refuse_surroundings(client: &Client) -> Result<(), MigrateError> {
    let look = async {
        match obstacles::pooler(client).await? {
            Some(refusal) => Ok(Some(refusal)),
            None => obstacles::writing::writing(client).await,
        }
    };
    let found: Result<_, tokio_postgres::Error> = look.await;
    match found.map_err(|error| MigrateError::Look(error.into()))? {
        Some(Incompatibility { text, remedy }) => Err(MigrateError::Server { text, remedy }),
        None => Ok(()),
    }
}

/// Refuses what would stop these steps half-way.
///
/// Errors: `Obstacles` names all of it.
pub(crate) async fn refuse_obstacles(
    client: &Client,
    config: &Config,
    options: &MigrateOptions,
    steps: &[Step],
) -> Result<(), MigrateError> {
    let names = Names::new(&config.source, options)?;
    let obstacles = foresight::obstacles(client, &names, steps).await;
    let obstacles = obstacles.map_err(|error| MigrateError::Look(error.into()))?;
    match obstacles.is_empty() {
        true => Ok(()),
        false => Err(MigrateError::Obstacles(obstacles)),
    }
}

/// Takes the numbers as they are now for the table's own; says what was recorded.
pub(crate) async fn adopt(
    client: &Client,
    config: &Config,
    options: &MigrateOptions,
) -> Result<&'static str, MigrateError> {
    adopt::adopt(client, &Names::new(&config.source, options)?).await
}

/// Errors: `NotOurs` where slot or publication are somebody else's.
pub(crate) async fn refuse_others(client: &Client, config: &Config) -> Result<(), MigrateError> {
    let refused = names::refused(client, &config.source).await?;
    match refused.into_iter().next() {
        Some(Incompatibility { text, remedy }) => Err(MigrateError::NotOurs { text, remedy }),
        None => Ok(()),
    }
}

/// Creates what a relay needs at its start and its role may create, and gives back the rest.
///
/// Never creates the table: a wrong `source.table` must not become an empty outbox.
/// Errors: `NoTable` where there is none; a step that fails for another reason than a missing right.
pub(crate) async fn ensure(
    client: &Client,
    config: &Config,
    creates: Creates,
) -> Result<Vec<Step>, MigrateError> {
    // A relay that finds everything must not wait for another one that froze with the lock in its hands.
    let steps = plan(client, config, &MigrateOptions::default()).await?;
    if !steps.iter().any(|step| is_wanted(step, creates)) {
        return Ok(Vec::new());
    }
    lock(client).await?;
    let denied = ensure_locked(client, config, creates).await;
    unlock(client).await?;
    denied
}

/// Whether a start has to create this step, or to say that there is no table.
fn is_wanted(step: &Step, creates: Creates) -> bool {
    let is_part = match step.part {
        Part::State | Part::View | Part::Table => true,
        Part::Publication | Part::Claim | Part::Slot => creates == Creates::Everything,
        Part::Index | Part::Start | Part::Function | Part::Grant => false,
    };
    is_part && step.state == StepState::Needed
}

async fn ensure_locked(
    client: &Client,
    config: &Config,
    creates: Creates,
) -> Result<Vec<Step>, MigrateError> {
    let steps = plan(client, config, &MigrateOptions::default()).await?;
    let wanted: Vec<&Step> = steps
        .iter()
        .filter(|step| is_wanted(step, creates))
        .collect();
    if creates == Creates::Everything {
        refuse_server(client, config, &steps).await?;
    }
    if wanted.iter().any(|step| step.part == Part::Table) {
        let table = config.source.table.clone();
        return Err(MigrateError::NoTable { table });
    }
    let mut denied = Vec::new();
    for step in wanted {
        // A step that builds on a denied one fails too, and belongs to the rest.
        match apply(client, step).await {
            Ok(()) => {}
            Err(MigrateError::Step { source, .. }) if is_denied(&source) || !denied.is_empty() => {
                // Nothing but people reads the view.
                if step.part != Part::View {
                    denied.push(step.clone());
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(denied)
}

pub(crate) async fn apply(client: &Client, step: &Step) -> Result<(), MigrateError> {
    // A slot waits for every transaction that is open; nothing else may wait long behind the application.
    let timeouts = match step.part {
        Part::Slot => "SET lock_timeout = 0; SET statement_timeout = 0",
        _ => "SET lock_timeout = '5s'; SET statement_timeout = '30s'",
    };
    let failed = |error: tokio_postgres::Error| MigrateError::Step {
        step: step.description.clone(),
        source: error.into(),
    };
    client.batch_execute(timeouts).await.map_err(failed)?;
    client.batch_execute(&step.sql).await.map_err(failed)
}

pub(crate) fn is_denied(error: &PostgresError) -> bool {
    error.class() == Class::Permission
}

/// One migration at a time in a database: CREATE … IF NOT EXISTS alone races.
///
/// A process that freezes with the lock loses its connection, and the lock with it.
pub(crate) async fn lock(client: &Client) -> Result<(), MigrateError> {
    let sql = "SET lock_timeout = '30s'; SET idle_session_timeout = '10s'; \
               SELECT pg_catalog.pg_advisory_lock(hashtextextended('outboxd migrate', 0))";
    client
        .batch_execute(sql)
        .await
        .map_err(|error| MigrateError::Lock(error.into()))
}

pub(crate) async fn unlock(client: &Client) -> Result<(), MigrateError> {
    let sql = "SELECT pg_catalog.pg_advisory_unlock(hashtextextended('outboxd migrate', 0)); \
               RESET lock_timeout; RESET statement_timeout; RESET idle_session_timeout";
    client
        .batch_execute(sql)
        .await
        .map_err(|error| MigrateError::Lock(error.into()))
}
