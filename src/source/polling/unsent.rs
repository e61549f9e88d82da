//! Polling by the unsent mark: every turn reads the table's unsent rows from the start, whatever was read before.
//!
//! For tables whose numbers are not trusted or that have none. Nothing is remembered between turns, so nothing can be missed;
//! the next turn waits until every row of this one is marked or held. A turn is one page, or, while there is a backlog, a
//! pass: all that one snapshot shows, page by page, for pages of different snapshots would let a row overtake another one
//! of its aggregate.

use std::collections::HashSet;
use std::sync::Arc;

use postgres_protocol::escape::escape_identifier;
use tokio::sync::{mpsc, watch};
use tokio::time::{Duration, Instant, timeout_at};
use tokio_postgres::{RowStream, Statement};
use tokio_util::sync::CancellationToken;

use super::apart;
use super::gate::Gate;
use super::rows::{Page, RowReader};
use super::shape::Shape;
use super::statement::{PLANNER, prepare, stream};
use super::turn::at;
use super::unskipped::{Look, Unskipped};
use super::writers::Writers;
use super::{Ended, Next, PollError, Polling, jittered, send, until_stopped};
use crate::postgres::SqlConnection;
use crate::postgres::catalog::{Selection, select_columns};
use crate::row::{Layout, OutboxRow, RowId};
use crate::source::Batch;
use crate::state::Skipped;

/// How long the transaction of a pass stays open: it keeps dead rows from VACUUM, and ALTER TABLE waits for it.
const PASS_MAX: Duration = Duration::from_secs(1);
const CURSOR: &str = "outboxd_unsent";

/// How unsent rows are told from sent ones, and how the relay answers.
pub(crate) struct Unsent {
    pub mark: UnsentMark,
    pub order: Ordering,
    /// Rows that stay unsent for good.
    pub skipped: Option<Skipped>,
    /// The rows that stay unsent for now.
    pub in_vain: watch::Receiver<InVain>,
    /// How many of the batches with rows are marked or held, every row of them.
    pub resolved: watch::Receiver<u64>,
}

/// Unsent rows that each turn reads again: so many more does it ask for.
#[derive(Debug, Default)]
pub(crate) struct InVain {
    /// They are held: the source hands them out no more.
    pub held: HashSet<RowId>,
    /// So many are owed a mark.
    pub owed: usize,
}

impl InVain {
    fn rows(&self) -> usize {
        self.held.len() + self.owed
    }

    pub(crate) fn holds(&self, row: &OutboxRow) -> bool {
        row.id.as_ref().is_some_and(|id| self.held.contains(id))
    }
}

/// What orders unsent rows.
pub enum Ordering {
    /// This column; rows of equal value come by `id`.
    By(String),
    /// Nothing: that none stands is all that can be said; why, and what helps, where one does.
    Untold(Box<str>),
}

/// What an unsent row looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnsentMark {
    /// `sent_at` is NULL.
    SentAt,
    /// It is in the table: sent rows are deleted.
    Present,
}

struct Turns {
    session: SqlConnection,
    rows: RowReader,
    shape: Shape,
    gate: Gate,
    writers: Writers,
    statements: Statements,
    query: Query,
    unskipped: Option<Unskipped>,
    unsent: Unsent,
    batch_rows: usize,
    layout: Arc<Layout>,
    table: String,
    value_bytes_max: usize,
    /// Batches with rows that were handed over.
    handed_over: u64,
    /// The turn before was a full page, of this look.
    has_backlog: Option<Look>,
    /// Pages come so fast that the server does not give up a transaction in which nothing is asked meanwhile.
    is_near: bool,
    /// The last row of the turn before, where there was more behind it.
    cut_off_at: Option<RowId>,
    /// Nothing was said of having caught up since rows were left in the table.
    is_behind: bool,
}

/// The query with a limit: of all rows, and of new ones alone where others are skipped.
struct Statements {
    all: Statement,
    new: Option<Statement>,
}

impl Statements {
    async fn prepare(session: &SqlConnection, query: &Query) -> Result<Self, PollError> {
        let limited = |look| format!("{} LIMIT $1::int8", query.rows(look));
        Ok(Self {
            all: prepare(session, &limited(Look::AtAll)).await?,
            new: match query.floor {
                Some(_) => Some(prepare(session, &limited(Look::AtNew)).await?),
                None => None,
            },
        })
    }

    fn of(&self, look: Look) -> &Statement {
        match (look, &self.new) {
            (Look::AtNew, Some(statement)) => statement,
            (Look::AtAll | Look::AtNew, _) => &self.all,
        }
    }
}

/// Polls the unsent rows of a table in the order of a column.
///
/// Held rows come again each turn. They are known by their id and take no memory.
///
/// Errors: the connection's end, or `Untold` where rows stand whose order nothing tells.
/// Ends without one when `stop` is cancelled or nobody takes batches.
/// Cancel-safe: yes.
pub(crate) async fn poll_unsent(
    polling: Polling,
    unsent: Unsent,
    batches: mpsc::Sender<Batch>,
    stop: CancellationToken,
) -> Result<(), PollError> {
    let interval = polling.interval;
    let work = async {
        let mut turns = Turns::prepare(polling, unsent).await?;
        loop {
            match turns.turn(&batches).await? {
                Next::AtOnce => {}
                Next::AfterInterval => tokio::time::sleep(jittered(interval)).await,
            }
        }
    };
    until_stopped(work, stop, &batches).await
}

impl Turns {
    async fn prepare(polling: Polling, unsent: Unsent) -> Result<Self, PollError> {
        let Polling {
            session,
            layout,
            outbox,
            table,
            oid,
            shape,
            batch_rows,
            value_bytes_max,
            caught_up,
            ..
        } = polling;
        // The statistics of a table whose rows come and go say little about the next minute.
        let settings = format!("SET plan_cache_mode = force_custom_plan; {PLANNER}");
        let settings = session.client.batch_execute(&settings).await;
        PollError::check(&session, "set the planner up", settings).await?;
        let selection = select_columns(&layout, value_bytes_max);
        let mut query = Query::new(&layout, &table, &unsent, &selection)?;
        let unskipped = match (&unsent.skipped, &unsent.order) {
            (Some(skipped), Ordering::By(order)) => {
                Unskipped::prepare(&session, &layout, order, skipped, unsent.mark).await?
            }
            _ => None,
        };
        query.floor = unskipped.as_ref().map(|unskipped| unskipped.floor.clone());
        Ok(Self {
            statements: Statements::prepare(&session, &query).await?,
            query,
            unskipped,
            layout: Arc::clone(&layout),
            table: table.clone(),
            value_bytes_max,
            gate: Gate::prepare(&session, &outbox).await?,
            writers: Writers::prepare(&session, &table, caught_up).await?,
            rows: RowReader::new(layout, &selection, value_bytes_max),
            shape: Shape::prepare(&session, oid, shape).await?,
            session,
            unsent,
            batch_rows,
            handed_over: 0,
            has_backlog: None,
            cut_off_at: None,
            is_near: false,
            is_behind: true,
        })
    }

    /// Takes one turn and waits until it is resolved.
    ///
    /// A page follows each pass, so that a pass that shows nothing but held rows before it ends keeps nothing back.
    async fn turn(&mut self, batches: &mpsc::Sender<Batch>) -> Result<Next, Ended> {
        let next = if let Some(look) = self.has_backlog.take() {
            self.pass(look, batches).await?
        } else {
            let look = match &mut self.unskipped {
                Some(unskipped) => unskipped.look(&self.session).await?,
                None => Look::AtAll,
            };
            let began = Instant::now();
            let next = self.page(look, batches).await?;
            self.has_backlog = (next == Next::AtOnce && self.is_near).then_some(look);
            if let (Some(unskipped), None, Look::AtAll) =
                (&mut self.unskipped, self.has_backlog, look)
            {
                unskipped.looked_at_all(began.elapsed());
            }
            next
        };
        let handed_over = self.handed_over;
        let resolved = self.unsent.resolved.wait_for(|&count| count >= handed_over);
        resolved.await.map_err(|_| Ended::ReceiverGone)?;
        Ok(next)
    }

    /// Reads what one snapshot shows until `PASS_MAX` has passed or the relay takes no more.
    ///
    /// Turns of a page each, with the marks of one awaited before the next is read, were 5 to 10 times as slow.
    async fn pass(&mut self, look: Look, batches: &mpsc::Sender<Batch>) -> Result<Next, Ended> {
        let deadline = Instant::now() + PASS_MAX;
        let limit = self.rows.limit(self.batch_rows);
        let declare = format!(
            "BEGIN READ ONLY; DECLARE {CURSOR} NO SCROLL CURSOR FOR {}",
            self.query.rows(look)
        );
        self.execute(&declare).await?;
        // The cursor's snapshot is older, and what reading its rows writes to the log is newer: nobody would flush that soon.
        let written = self.gate.look(&self.session).await?;
        let fetch = format!("FETCH FORWARD {limit} FROM {CURSOR}");
        let fetch = prepare(&self.session, &fetch).await?;
        let mut position = None;
        let mut is_over = false;
        while !is_over {
            let stream = stream(&self.session, &fetch, []).await?;
            let page = self.read(stream).await?;
            if page.stuck.is_some() {
                self.execute("ROLLBACK").await?;
            }
            // What is cut off of a page is lost to the cursor.
            is_over = !page.is_whole || page.seen < limit || Instant::now() >= deadline;
            if page.rows.is_empty() {
                continue;
            }
            let lsn = match position {
                Some(lsn) => lsn,
                None => {
                    self.shape.check(&self.session).await?;
                    self.gate.wait(&self.session, written).await?
                }
            };
            position = Some(lsn);
            let batch = Batch {
                rows: at(page.rows, lsn),
                ..Batch::default()
            };
            self.handed_over += 1;
            match timeout_at(deadline, batches.reserve()).await {
                Ok(Ok(place)) => place.send(batch),
                Ok(Err(_)) => return Err(Ended::ReceiverGone),
                Err(_) => {
                    self.execute("COMMIT").await?;
                    send(batches, batch).await?;
                    return Ok(Next::AtOnce);
                }
            }
        }
        self.execute("COMMIT").await?;
        Ok(Next::AtOnce)
    }

    async fn execute(&self, sql: &str) -> Result<(), PollError> {
        let done = self.session.client.batch_execute(sql).await;
        PollError::check(&self.session, "read the unsent rows", done).await
    }

    /// Reads one page.
    async fn page(&mut self, look: Look, batches: &mpsc::Sender<Batch>) -> Result<Next, Ended> {
        self.writers.look(&self.session).await?;
        let in_vain = self.unsent.in_vain.borrow().rows();
        let limit = self.batch_rows.saturating_add(in_vain);
        let limit_rows = i64::try_from(limit).unwrap_or(i64::MAX);
        let statement = self.statements.of(look);
        let began = Instant::now();
        let stream = stream(&self.session, statement, [&limit_rows]).await?;
        let mut page = self.read(stream).await?;
        self.is_near = began.elapsed() < PASS_MAX / 2;
        if let Some(stuck) = page.stuck.take() {
            self.read_apart(stuck, look, &mut page).await?;
        }
        let Some(last) = page.rows.last() else {
            return self.rest(batches).await;
        };
        if let Ordering::Untold(why) = &self.unsent.order {
            return Err(PollError::Untold(why.clone()).into());
        }
        let last = last.id.clone();
        self.shape.check(&self.session).await?;
        let next = if page.is_whole && page.seen < limit {
            Next::AfterInterval
        } else {
            Next::AtOnce
        };
        self.is_behind = next == Next::AtOnce || !self.writers.have_ended();
        let next = self.pace(next, last);
        let lsn = self.gate.pass(&self.session).await?;
        let batch = Batch {
            rows: at(page.rows, lsn),
            caught_up: !self.is_behind,
            ..Batch::default()
        };
        self.handed_over += 1;
        send(batches, batch).await?;
        Ok(next)
    }

    /// Reads the rows of a result that are not held.
    async fn read(&mut self, stream: RowStream) -> Result<Page, PollError> {
        let in_vain = &self.unsent.in_vain;
        let is_wanted = |row: &OutboxRow| !in_vain.borrow().holds(row);
        self.rows.read(&self.session, stream, is_wanted).await
    }

    /// Adds the row behind the last one as far as it can be read; from now on no page reads it, for none would get past it.
    async fn read_apart(
        &mut self,
        stuck: PollError,
        look: Look,
        page: &mut Page,
    ) -> Result<(), PollError> {
        if self.query.unread.len() >= APART_MAX {
            return Err(stuck);
        }
        let place = page.seen;
        let sql = format!("{} LIMIT 1 OFFSET {place}", self.query.places(look));
        let found = self.session.client.query_opt(&sql, &[]).await;
        let found = PollError::check(&self.session, "look for a row", found).await?;
        let Some(found) = found else {
            return Ok(());
        };
        let condition: String = found.get(0);
        let (layout, table) = (&self.layout, &self.table);
        let row = apart::read(
            &self.session,
            layout,
            table,
            &condition,
            self.value_bytes_max,
        )
        .await?;
        page.rows.extend(row);
        self.query.unread.push(condition);
        self.statements = Statements::prepare(&self.session, &self.query).await?;
        Ok(())
    }

    /// Ends a turn that found nothing; says so once.
    async fn rest(&mut self, batches: &mpsc::Sender<Batch>) -> Result<Next, Ended> {
        if self.writers.have_ended() && std::mem::take(&mut self.is_behind) {
            let caught_up = Batch {
                caught_up: true,
                ..Batch::default()
            };
            send(batches, caught_up).await?;
        }
        self.cut_off_at = None;
        Ok(Next::AfterInterval)
    }

    /// A full turn that ends where the full one before ended showed nothing but rows that are owed a mark: the next waits.
    fn pace(&mut self, next: Next, last: Option<RowId>) -> Next {
        if next == Next::AfterInterval {
            self.cut_off_at = None;
            return next;
        }
        let stood_still = last.is_some() && last == self.cut_off_at;
        self.cut_off_at = last;
        match stood_still {
            true => Next::AfterInterval,
            false => next,
        }
    }
}

/// The unsent rows in their order.
struct Query {
    columns: String,
    from: String,
    sizes: String,
    /// Every unsent row but those that are skipped: none of these takes a place within a limit.
    condition: String,
    /// What orders the rows, and the column itself.
    order: String,
    order_by: String,
    /// The highest value of skipped rows in that column: new rows are not below it.
    floor: Option<String>,
    /// The conditions that find rows which can't be sent; while they stand as they are they are not read again.
    unread: Vec<String>,
}

impl Query {
    fn new(
        layout: &Layout,
        table: &str,
        unsent: &Unsent,
        selection: &Selection,
    ) -> Result<Self, PollError> {
        let column = |index: usize| layout.columns.get(index).map(|column| column.name.as_str());
        let id = escape_identifier(column(layout.id).ok_or(PollError::NoOrder)?);
        let unsent_only = match (unsent.mark, layout.sent_at.and_then(column)) {
            (UnsentMark::SentAt, Some(sent_at)) => {
                format!("o.{} IS NULL", escape_identifier(sent_at))
            }
            (UnsentMark::SentAt, None) => {
                return Err(PollError::Unexpected("a table without `sent_at`"));
            }
            (UnsentMark::Present, _) => "true".to_owned(),
        };
        let skipped = unsent.skipped.as_ref();
        let not_skipped = skipped.map_or(String::new(), |skipped| {
            format!(" AND NOT ({})", skipped.condition)
        });
        // `o.`: a bare name in ORDER BY means the selected text.
        let (order, order_by) = match &unsent.order {
            Ordering::By(column) => {
                let order_by = format!("o.{}", escape_identifier(column));
                (format!("ORDER BY {order_by}, o.{id}"), order_by)
            }
            Ordering::Untold(_) => Default::default(),
        };
        let Selection { columns, sizes, .. } = selection;
        Ok(Self {
            columns: columns.clone(),
            from: format!("{table} AS o"),
            sizes: sizes.clone(),
            condition: format!("{unsent_only}{not_skipped}"),
            order,
            order_by,
            floor: None,
            unread: Vec::new(),
        })
    }

    fn rows(&self, look: Look) -> String {
        let Self { columns, sizes, .. } = self;
        self.select(&format!("{columns}, o.xmin"), sizes, look)
    }

    /// For each row the condition that finds this version of it.
    fn places(&self, look: Look) -> String {
        let place = "pg_catalog.format('o.tableoid = %s AND o.ctid = %L AND o.xmin = %L', o.tableoid, o.ctid, o.xmin)";
        self.select(place, "", look)
    }

    fn select(&self, what: &str, sizes: &str, look: Look) -> String {
        let Self {
            from,
            condition,
            order,
            order_by,
            floor,
            unread,
            ..
        } = self;
        let floor = match (look, floor) {
            (Look::AtNew, Some(floor)) => format!(" AND {order_by} >= {floor}"),
            (Look::AtAll | Look::AtNew, _) => String::new(),
        };
        let unread: String = unread
            .iter()
            .map(|one| format!(" AND NOT ({one})"))
            .collect();
        format!("SELECT {what} FROM {from} {sizes} WHERE {condition}{floor}{unread} {order}")
    }
}

/// Rows that can't be sent, up to which the others are read without them.
const APART_MAX: usize = 1_000;
