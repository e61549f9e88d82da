//! The floor of polling: a client that runs the statements of polling's turns and publishes nothing.
//!
//! It runs as a process of its own, this very program with another argument, so that its CPU time can be told.

use std::pin::pin;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::TryStreamExt;
use outboxd::postgres::catalog::{SHAPE, inspect, select_columns};
use tokio_postgres::{Client, NoTls, Statement};

/// The argument that makes this program that client; the URL follows.
pub const ARGUMENT: &str = "--select";
/// As polling asks for rows: `source.polling.batch_rows`, or fewer where they are large.
const BATCH_ROWS: usize = 2_000;
const PAGE_BYTES: usize = 4 << 20;
const VALUE_BYTES_MAX: usize = 1 << 20;
/// As the durability gate asks for them.
const POSITIONS: &str = "SELECT pg_catalog.pg_current_wal_insert_lsn(), \
    pg_catalog.pg_current_wal_flush_lsn()";

/// What the client read, and how long that took from its first statement.
#[derive(Clone, Copy, Debug)]
pub struct Said {
    pub rows: usize,
    pub elapsed: Duration,
}

/// The statements of one turn.
struct Statements {
    oid: u32,
    rows: Statement,
    shape: Statement,
    positions: Statement,
}

pub fn command(url: &str) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args([ARGUMENT, url]);
    Ok(command)
}

/// Reads what the client printed last.
pub fn said(log: &str) -> anyhow::Result<Said> {
    let last = log.lines().last().unwrap_or_default();
    let mut words = last.split_whitespace();
    let mut word = || words.next().with_context(|| format!("it printed `{last}`"));
    Ok(Said {
        rows: word()?.parse()?,
        elapsed: Duration::from_secs_f64(word()?.parse()?),
    })
}

/// Reads the whole outbox as polling does and prints how many rows it had and how many seconds that took.
pub async fn run(url: &str) -> anyhow::Result<()> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    let statements = prepare(&client).await?;
    let started_at = Instant::now();
    let (mut rows, mut bytes, mut top) = (0, 0, 0_i64);
    loop {
        let row_bytes = 1 + bytes / rows.max(1);
        let limit = (PAGE_BYTES / row_bytes).clamp(1, BATCH_ROWS) as i64;
        let page = client.query_raw(&statements.rows, [top + 1, limit]).await?;
        let mut page = pin!(page);
        let rows_before = rows;
        while let Some(row) = page.try_next().await? {
            rows += 1;
            bytes += row.raw_size_bytes();
            let seq: &str = row.get("seq");
            top = seq.parse()?;
        }
        client
            .query_one(&statements.shape, &[&statements.oid])
            .await?;
        client.query_one(&statements.positions, &[]).await?;
        if rows == rows_before {
            break;
        }
    }
    println!("{rows} {}", started_at.elapsed().as_secs_f64());
    Ok(())
}

async fn prepare(client: &Client) -> anyhow::Result<Statements> {
    let settings = "SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_sort = off; SET jit = off";
    client.batch_execute(settings).await?;
    let table = inspect(client, "public", "outbox", &Default::default()).await?;
    let selection = select_columns(&table.layout, VALUE_BYTES_MAX);
    let rows = format!(
        "SELECT {} FROM {} AS o {} WHERE o.seq >= $1::int8 ORDER BY o.seq LIMIT $2::int8",
        selection.columns,
        table.name(),
        selection.sizes
    );
    Ok(Statements {
        oid: table.oid,
        rows: client.prepare(&rows).await?,
        shape: client.prepare(SHAPE).await?,
        positions: client.prepare(POSITIONS).await?,
    })
}
