//! Opening a session: is it the table we know, where do we start, what was sent, who hands out rows.
//!
//! Runs only under the lease, and the lease comes before the slot (docs/design.md, "Lease before slot").

mod background;
mod carry_over;
mod first_start;
mod identity_check;
mod mark_change;
mod replay;
mod slot;
mod slot_wait;
mod source;
mod surroundings;

use std::sync::Arc;

use thiserror::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::config::{Config, Mark, Mode, SourceConfig};
use crate::encode::{EncodeError, Encoder};
use crate::mark::change::CarryError;
use crate::mark::ledger::Ledger;
use crate::mark::{FencingToken, MarkError, Marks, Owed, load_marked};
use crate::observe::status::{SYSTEM_IDENTIFIER, StatusCell};
use crate::postgres::catalog::{self, InspectError, Table};
use crate::postgres::compatibility::{Incompatibility, Order};
use crate::postgres::slot::SlotError;
use crate::postgres::{self, ConnectOptions, PostgresError};
use crate::relay::Session;
use crate::row::Lsn;
use crate::source::SourceError;
use crate::state::hold;
use crate::state::identity::{self, IdentityError, ServerHistory};
use crate::state::lease::{LeaseState, lease_key, lease_key_of};
use crate::state::names::{self, NamesError};
use crate::state::rename::{self, RenameError};
use crate::state::schema::{self, Creates, MigrateError, Step};
use crate::state::{OutboxState, StateError, StateTable};
pub use carry_over::{CarryOver, CatchUp, Numbers};
use identity_check::KnownOutbox;
pub use slot::Decoding;

/// Why a session could not be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    #[error("cannot use the connection URL")]
    Url(#[source] crate::config::ConfigError),
    #[error("cannot connect to PostgreSQL ({purpose})")]
    Postgres {
        purpose: &'static str,
        #[source]
        source: PostgresError,
    },
    #[error(transparent)]
    Migrate(#[from] MigrateError),
    #[error(transparent)]
    Names(#[from] NamesError),
    #[error(transparent)]
    Rename(#[from] RenameError),
    #[error("{}; run `outboxd migrate` with a role that may", missing(.0))]
    Missing(Vec<Step>),
    #[error("cannot read table `{table}`")]
    Inspect {
        table: String,
        #[source]
        source: InspectError,
    },
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Mark(#[from] MarkError),
    #[error(transparent)]
    Carry(#[from] CarryError),
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("table `{outbox}` was truncated or replaced while it was looked at")]
    Moved { outbox: String },
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// Recorded: the next opening makes what is missing and reads the table.
    #[error("{reason}; the table is read")]
    SlotLost { reason: String },
    /// Every replication connection is taken; one may be free at any time.
    #[error("{reason}; {remedy}")]
    NoSender { reason: String, remedy: String },
    #[error(
        "the server is on timeline {timeline} and lacks {bytes} bytes of WAL that it had: it was restored from an older \
         backup, or it is the primary from before a failover; connect outboxd to the right server, or restart it \
         to go on with this one: what was marked after the backup goes out again"
    )]
    Rewound { timeline: i32, bytes: u64 },
    #[error("{reason}; {remedy}")]
    Halt { reason: String, remedy: String },
}

fn missing(steps: &[Step]) -> String {
    let names: Vec<_> = steps.iter().map(|step| step.description.as_str()).collect();
    format!("this role may not create {}", names.join(", "))
}

/// What server or database lack, with what to do about it.
fn refused(error: MigrateError) -> OpenError {
    match (&error, error.hint()) {
        (MigrateError::Inspect(InspectError::MissingColumns { .. }), _) => OpenError::Halt {
            reason: error.to_string(),
            remedy: "`outboxd check` prints the `source.columns` that may be meant".to_owned(),
        },
        (
            MigrateError::Server { .. }
            | MigrateError::NoSchema { .. }
            | MigrateError::NotToBeMade { .. }
            | MigrateError::Inspect(InspectError::UnknownColumns { .. }),
            Some(remedy),
        ) => OpenError::Halt {
            reason: error.to_string(),
            remedy,
        },
        _ => error.into(),
    }
}

/// What a session is opened with.
pub struct SessionBuilder<'a> {
    pub config: &'a Config,
    pub options: ConnectOptions,
    pub lease: watch::Receiver<LeaseState>,
    pub epoch: i64,
    pub carry_over: &'a mut CarryOver,
    /// Topics that can be written as far as is known.
    pub topics: hold::Topics,
    pub decoding: Decoding,
    /// How far this process has seen the server's history.
    pub history: Option<&'a ServerHistory>,
    /// Says what the opening waits for.
    pub status: StatusCell,
    pub stop: CancellationToken,
}

/// Reads the URL anew, so that a rotated secret is picked up at the next connect.
pub fn connect_options(config: &Config) -> Result<ConnectOptions, OpenError> {
    config.source.url.options().map_err(OpenError::Url)
}

/// Moves the state of a renamed table to its name of now, under the lease of its former name.
pub async fn follow_rename(
    source: &SourceConfig,
    options: &ConnectOptions,
    former: &str,
    epoch: i64,
) -> Result<(), OpenError> {
    let name = source.table_name().map_err(MigrateError::Name)?;
    let outbox = format!("{}.{}", name.schema, name.table);
    let lease = lease_key_of(source, former);
    let session = connect(options, "setup").await?;
    rename::follow(&session.client, former, &outbox, &lease, epoch).await?;
    info!(
        former,
        outbox, "the table was renamed: what is known of it stands under its new name"
    );
    Ok(())
}

/// Opens a connection for one purpose.
pub async fn connect(
    options: &ConnectOptions,
    purpose: &'static str,
) -> Result<postgres::SqlConnection, OpenError> {
    let session = postgres::connect(options, purpose).await;
    session.map_err(|source| OpenError::Postgres { purpose, source })
}

/// Creates the state tables where they are missing, for the lease needs them, and finds out the names that the
/// configuration leaves open.
///
/// Gives the name too under which the state stands, where the table has another one now.
/// Errors: `Halt` where the state can't follow its table.
pub async fn prepare(
    config: &Config,
    options: &ConnectOptions,
) -> Result<(Config, Option<String>), OpenError> {
    let session = connect(options, "setup").await?;
    surroundings::refuse(&session, &config.source).await?;
    let name = config.source.table_name().map_err(MigrateError::Name)?;
    let outbox = format!("{}.{}", name.schema, name.table);
    let home = rename::home(&session.client, &name.schema, &name.table).await?;
    if let Some(Incompatibility { text, remedy }) = home.refusal(&outbox) {
        return Err(OpenError::Halt {
            reason: text,
            remedy,
        });
    }
    let source = names::resolve(&session.client, &config.source).await?;
    let config = Config {
        source,
        ..config.clone()
    };
    let denied = schema::ensure(&session.client, &config, Creates::State).await;
    let denied = denied.map_err(refused)?;
    if denied.is_empty() {
        Ok((config, home.former()))
    } else {
        Err(OpenError::Missing(denied))
    }
}

impl SessionBuilder<'_> {
    /// Opens the session.
    ///
    /// Errors: `Halt` when a person must decide; every other is worth another try.
    /// Cancel-safe: yes; what was recorded stays and is found by the next opening.
    pub async fn open(&mut self) -> Result<Session, OpenError> {
        let sql = Arc::new(connect(&self.options, "marks").await?);
        // The stream comes from where the marks go: another host of the URL may be a standby.
        self.options = self.options.at(&sql.host);
        self.show_server(&sql).await;
        let table = self.inspect(&sql).await?;
        let layout = Arc::new(table.layout.clone());
        let outbox = layout.outbox();
        let states = StateTable {
            client: &sql.client,
            outbox: &outbox,
        };
        let encoder = Encoder::new(
            &self.config.route,
            &layout,
            crate::kafka::record_bytes_max(&self.config.kafka),
        )?;
        let token = FencingToken {
            outbox: lease_key(&self.config.source),
            epoch: self.epoch,
        };
        let known = self.settle_state(&sql, &states, &table, &token).await?;
        let generation = known.state.generation;
        hold::take_out_sent(&sql.client, &token).await?;
        let recorded = hold::load(&sql.client, &token.outbox, generation).await?;
        let (mut marks, owed) = self.marks(&sql, &table, &token, &known.state).await?;
        if let Marks::Ledger(ledger) = &mut marks {
            ledger.note_kept(&recorded.numbers);
            if known.has_moved_rows {
                ledger.expect_moves();
            }
        }
        let state = known.state.clone();
        let settled = replay::settled(&marks, &recorded, &state);
        let (source, phase) = match self.replay(&sql, &table, settled, generation).await? {
            Some(replay) => replay,
            None => self.source(&table, &marks, &states, known).await?,
        };
        let watch = self.watch(&table, &marks, &source, &state).await?;
        let (lease, stop) = (self.lease.clone(), self.stop.clone());
        Ok(Session {
            source,
            watch,
            retention: self.retention(&table, &token, generation),
            history: identity::history(&sql.client, &outbox).await?,
            phase,
            order_is_told: self.order(&table) != Order::Untold,
            marks,
            state,
            recorded,
            owed,
            token,
            layout,
            encoder,
            sql,
            lease,
            stop,
        })
    }

    /// Brings what is recorded of the outbox up to date: whose numbers they are, the mark, the slot, where it starts, what is
    /// released.
    async fn settle_state(
        &mut self,
        sql: &postgres::SqlConnection,
        states: &StateTable<'_>,
        table: &Table,
        token: &FencingToken,
    ) -> Result<KnownOutbox, OpenError> {
        // The right server first: nothing is recorded, made or dropped on another one.
        let state = states.load().await?;
        let mut known = self.check_identity(sql, states, table, state).await?;
        self.record_carry_over(states, token).await?;
        known.state = states.load().await?;
        self.change_mark(table, states, token, &known.state).await?;
        self.prepare_slot(sql, states, &known.state).await?;
        self.leave_to_the_table(sql, states).await?;
        // A slot that was made on an empty table leaves nothing to read from it.
        known.state = states.load().await?;
        self.check_publication(sql, table).await?;
        if known.state.start.is_none() {
            self.decide_start(sql, states, table).await?;
            known.state = states.load().await?;
        }
        self.carry_over.numbers = Numbers::AsKnown;
        if self.release(sql, table, token).await? {
            known.state = states.load().await?;
        }
        Ok(known)
    }

    /// Shows which server it is; what the role may not ask is not known.
    async fn show_server(&self, sql: &postgres::SqlConnection) {
        let row = sql.client.query_one(SYSTEM_IDENTIFIER, &[]).await;
        self.status.update(|status| {
            status.server = Some(sql.host.to_string());
            status.system_identifier = row.ok().map(|row| row.get(0));
        });
    }

    /// Records what the last session left, once.
    async fn record_carry_over(
        &mut self,
        states: &StateTable<'_>,
        token: &FencingToken,
    ) -> Result<(), OpenError> {
        if !self.carry_over.replayed.is_empty() {
            hold::replayed(states.client, token, &self.carry_over.replayed).await?;
            self.carry_over.replayed.clear();
        }
        match self.carry_over.catch_up {
            CatchUp::AsRecorded => {}
            CatchUp::Demanded => states.set_caught_up(false).await?,
            CatchUp::Done => states.set_caught_up(true).await?,
        }
        self.carry_over.catch_up = CatchUp::AsRecorded;
        Ok(())
    }

    /// Releases what somebody asked for and the topics that can be written again; tells whether there was any.
    async fn release(
        &self,
        sql: &postgres::SqlConnection,
        table: &Table,
        token: &FencingToken,
    ) -> Result<bool, OpenError> {
        let source = &self.config.source;
        if let Mark::SentAt | Mark::Delete = source.mark {
            // A row that is skipped does not stay unsent.
            let rows = hold::to_skip(&sql.client, &token.outbox).await?;
            let marks = Marks::rows(source.mark, table, token.clone());
            if let Some(statement) = marks.statement(&rows, None) {
                let outcome = statement.run(&sql.client).await?;
                hold::keep_unmarked(&sql.client, token, &outcome).await?;
            }
        }
        // Where the table tells no order it is not read again: what is held is kept whole.
        let is_read = source.mark != Mark::None && self.order(table) != Order::Untold;
        let layout = is_read.then_some(&table.layout);
        let released = hold::release(&sql.client, token, &self.topics, layout).await?;
        for entry in &released {
            let (why, topic) = (&entry.why, entry.topic.as_deref());
            info!(
                why,
                topic,
                event_id = entry.row_id,
                actor = entry.actor,
                "released"
            );
        }
        Ok(!released.is_empty())
    }

    async fn inspect(&self, sql: &postgres::SqlConnection) -> Result<Table, OpenError> {
        let name = self
            .config
            .source
            .table_name()
            .map_err(MigrateError::Name)?;
        let columns = &self.config.source.columns;
        let table = catalog::inspect(&sql.client, &name.schema, &name.table, columns).await;
        let table = table.map_err(|source| OpenError::Inspect {
            table: self.config.source.table.clone(),
            source,
        })?;
        let source = &self.config.source;
        let refusals = crate::postgres::compatibility::refusals(
            source.mode,
            source.mark,
            source.order_column.as_deref(),
            &table,
        );
        if let Some(refusal) = refusals.into_iter().next() {
            return Err(OpenError::Halt {
                reason: refusal.text,
                remedy: refusal.remedy,
            });
        }
        Ok(table)
    }

    async fn marks(
        &self,
        sql: &postgres::SqlConnection,
        table: &Table,
        token: &FencingToken,
        state: &OutboxState,
    ) -> Result<(Marks, Owed), OpenError> {
        let token = token.clone();
        let mut owed = Owed::new();
        let marks = match self.config.source.mark {
            Mark::Ledger => {
                let skipped = state.skipped().clone();
                let ledger = Ledger::load(&sql.client, token, state.generation, skipped).await;
                let mut ledger = ledger?;
                ledger.begins_at(table.first_number());
                Marks::Ledger(ledger)
            }
            Mark::None => Marks::None,
            mark => {
                let position = insert_position(sql).await?;
                let (record, unpaid) = load_marked(&sql.client, &token.outbox).await?;
                owed = unpaid;
                match self.config.source.mode {
                    Mode::Polling => Marks::rows(mark, table, token),
                    Mode::Replication => {
                        Marks::rows_beside_a_stream(mark, table, token, record, position)
                    }
                }
            }
        };
        Ok((marks, owed))
    }
}

async fn insert_position(sql: &postgres::SqlConnection) -> Result<Lsn, OpenError> {
    let row = sql
        .client
        .query_one("SELECT pg_current_wal_insert_lsn()::text", &[])
        .await;
    let row = row.map_err(|source| OpenError::Postgres {
        purpose: "its position",
        source: source.into(),
    })?;
    Ok(row
        .get::<_, &str>(0)
        .parse()
        .expect("PostgreSQL prints a pg_lsn as an LSN"))
}
