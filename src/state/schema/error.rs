//! Why a migration could not be done, and what a person can do about it.

use postgres_protocol::escape::escape_identifier;

use super::existing_objects::LookError;
use super::{STATE_VERSION, Step, is_denied};
use crate::postgres::PostgresError;
use crate::postgres::catalog::InspectError;
use crate::postgres::compatibility::Incompatibility;
use crate::state::identity::IdentityError;
use crate::state::names::NamesError;
use crate::text::paste::shell_word;

/// Why a migration could not be done.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    #[error("cannot use `source.table`")]
    Name(#[from] crate::config::TableNameError),
    #[error(transparent)]
    Inspect(#[from] InspectError),
    #[error("cannot read what stands in the database already")]
    Look(#[source] PostgresError),
    #[error(
        "the schema `outboxd` is closed to role `{role}`; its owner opens it with `outboxd migrate --relay-role {role}`"
    )]
    StateDenied { role: String },
    #[error(
        "the state tables have version {found}, and this outboxd knows {STATE_VERSION}: use a newer outboxd"
    )]
    NewerState { found: i32 },
    #[error("mark `{mark}` needs a column `{column}`, and table `{table}` has none")]
    MarkNeedsColumn {
        mark: &'static str,
        column: &'static str,
        table: String,
    },
    #[error("table `{table}` can't be made a partitioned one: {why}")]
    NotPartitionable {
        table: String,
        why: &'static str,
        remedy: &'static str,
    },
    #[error(
        "table `{table}` does not exist, and `source.columns` names columns of a table that stands"
    )]
    NotToBeMade { table: String },
    #[error("table `{table}` does not exist; `outboxd migrate` creates it")]
    NoTable { table: String },
    #[error("cannot wait for another migration to end")]
    Lock(#[source] PostgresError),
    #[error("cannot create {step}")]
    Step {
        step: String,
        #[source]
        source: PostgresError,
    },
    #[error(transparent)]
    Names(#[from] NamesError),
    #[error("{text}")]
    NotOurs { text: String, remedy: String },
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("cannot begin a new generation of `{outbox}`")]
    Generation {
        outbox: String,
        #[source]
        source: PostgresError,
    },
    #[error("the numbers cannot be adopted: {why}")]
    NotAdoptable { why: String, remedy: String },
    #[error("role `{role}` may not grant: {}", what(.steps))]
    NotGranted { role: String, steps: Vec<Step> },
    #[error("nothing was done: {}", reasons(.0))]
    Obstacles(Vec<Incompatibility>),
    #[error("schema `{schema}` does not exist")]
    NoSchema { schema: String },
    #[error("{text}")]
    Server { text: String, remedy: String },
    #[error("cannot write what was done")]
    Output(#[from] std::io::Error),
}

impl MigrateError {
    /// What a person can do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::NotAdoptable { remedy, .. }
            | Self::NotOurs { remedy, .. }
            | Self::Server { remedy, .. } => Some(remedy.clone()),
            Self::NoSchema { schema } => Some(create_schema(schema)),
            Self::Obstacles(obstacles) => {
                let remedies: Vec<&str> = obstacles.iter().map(|one| one.remedy.as_str()).collect();
                Some(format!("by a superuser or the owner:\n{}", remedies.join("\n")))
            }
            Self::NotGranted { steps, .. } => Some(format!(
                "PostgreSQL did not do it and only warned; as the owner of table and schema:\n{}",
                statements(steps)
            )),
            Self::Names(NamesError::NoDatabase) => Some(
                "name the database in the URL, or set source.replication.slot and source.replication.publication"
                    .to_owned(),
            ),
            Self::NotPartitionable { remedy, .. } => Some((*remedy).to_owned()),
            Self::Step { source, .. } if is_denied(source) => Some(
                "this role may not; give the output of `outboxd migrate --print` to whoever may"
                    .to_owned(),
            ),
            Self::Inspect(InspectError::WrongTypes { wrong, .. }) => {
                let remedies: Vec<&str> = wrong.iter().map(|one| one.remedy.as_str()).collect();
                Some(remedies.join("\n"))
            }
            Self::Inspect(InspectError::MissingColumns { mapping, .. }) => Some(format!(
                "where columns have other names the configuration maps them; by names and types this may be meant:\n{mapping}"
            )),
            Self::Inspect(InspectError::UnknownColumns { .. }) => Some(
                "write the table's own names behind outboxd's in `source.columns`".to_owned(),
            ),
            Self::NotToBeMade { .. } => Some(
                "correct `source.table`; or remove `source.columns`, and `outboxd migrate` creates a table with names of its own"
                    .to_owned(),
            ),
            Self::MarkNeedsColumn { .. } => {
                Some("`outboxd check` says which marks this table allows".to_owned())
            }
            _ => None,
        }
    }
}

impl MigrateError {
    /// A policy of row security would hide rows from this role.
    pub(crate) fn is_of_policies(&self) -> bool {
        matches!(self, Self::Look(error) if error.is_of_policies())
    }
}

fn reasons(obstacles: &[Incompatibility]) -> String {
    let texts: Vec<&str> = obstacles.iter().map(|one| one.text.as_str()).collect();
    texts.join("; ")
}

fn what(steps: &[Step]) -> String {
    let names: Vec<&str> = steps.iter().map(|step| step.description.as_str()).collect();
    names.join(", ")
}

/// The SQL of steps without its comments.
fn statements(steps: &[Step]) -> String {
    let lines = steps.iter().flat_map(|step| step.sql.lines());
    let lines = lines.filter(|line| !line.starts_with("--"));
    lines.collect::<Vec<&str>>().join("\n")
}

/// Makes the schema that is missing.
pub(crate) fn create_schema(schema: &str) -> String {
    let name = escape_identifier(schema);
    format!("CREATE SCHEMA {name}; -- or correct `source.table`")
}

impl From<LookError> for MigrateError {
    fn from(error: LookError) -> Self {
        match error {
            LookError::Inspect(error) => Self::Inspect(error),
            LookError::Catalog(error) => Self::Look(error.into()),
            LookError::Denied { role } => Self::StateDenied {
                role: shell_word(&role),
            },
            LookError::Names(error) => Self::Names(error),
        }
    }
}
