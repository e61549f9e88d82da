//! How far behind the table is: counted up to a bound, beside everything else.

use std::time::SystemTime;

use tokio_postgres::Client;

use crate::config::{Config, Mark};
use crate::outbox::Layout;
use crate::retention;
use crate::status::Kept;

/// Rows counted at most.
const ROWS_MAX: i64 = 100_000;

/// What the database says of the rows that were not sent.
pub(super) struct Measured {
    pub(super) rows: Option<u64>,
    pub(super) rows_at_least: bool,
    /// Of the oldest row that is not held.
    pub(super) oldest_at: Option<SystemTime>,
    pub(super) oldest_held_at: Option<SystemTime>,
    pub(super) kept: Option<Kept>,
}

/// What the core holds: with the ledger the rows stand below the highest number sent.
pub(super) struct HeldFacts {
    pub(super) rows: u64,
    pub(super) first: Option<i64>,
}

/// The question for one table and mark.
pub(super) struct Question {
    rows_sql: Option<String>,
    /// The highest number that was sent: everything above it was not, holes below it are brief.
    above: Option<i64>,
    held: HeldFacts,
    held_sql: Option<String>,
    /// The table, where it is asked how much it holds.
    kept_in: Option<String>,
}

impl Question {
    pub(super) fn new(
        config: &Config,
        layout: &Layout,
        sent_seq: Option<i64>,
        held: HeldFacts,
    ) -> Self {
        let table = layout.sql_name();
        let (seq, sent_at) = (layout.names.sql("seq"), layout.names.sql("sent_at"));
        let age = match layout.ours("created_at") {
            Some(_) => format!("{}::timestamptz", layout.names.sql("created_at")),
            None => "NULL::timestamptz".to_owned(),
        };
        let unsent = match config.source.mark {
            Mark::Ledger => Some(format!("{seq} > $2::int8")),
            Mark::SentAt => Some(format!(
                "{sent_at} IS NULL AND $2::int8 IS NOT DISTINCT FROM $2::int8"
            )),
            Mark::Delete => Some("$2::int8 IS NOT DISTINCT FROM $2::int8".to_owned()),
            Mark::None => None,
        };
        // The oldest ones where there are more than are counted; and an index is read no further than that.
        let order = layout
            .seq
            .map_or(String::new(), |_| format!("ORDER BY {seq}"));
        let sql = |unsent: String| {
            format!(
                "SELECT count(*), min(at) FROM (SELECT {age} AS at FROM {table} WHERE {unsent} {order} LIMIT $1) AS bounded"
            )
        };
        Self {
            rows_sql: unsent.map(sql),
            above: (config.source.mark == Mark::Ledger).then(|| sent_seq.unwrap_or(i64::MIN)),
            held_sql: layout
                .seq
                .map(|_| format!("SELECT {age} FROM {table} WHERE {seq} = $1::int8")),
            held,
            kept_in: None,
        }
    }

    /// Asks also how much the table holds.
    pub(super) fn with_kept(mut self, layout: &Layout) -> Self {
        self.kept_in = Some(layout.sql_name());
        self
    }

    /// Asks; reads only.
    ///
    /// Cancel-safe: yes.
    pub(super) async fn ask(&self, client: &Client) -> Result<Measured, tokio_postgres::Error> {
        let mut measured = Measured {
            rows: None,
            rows_at_least: false,
            oldest_at: None,
            oldest_held_at: None,
            kept: None,
        };
        if let Some(sql) = &self.rows_sql {
            let row = client.query_one(sql, &[&ROWS_MAX, &self.above]).await?;
            let rows: i64 = row.get(0);
            measured.rows = u64::try_from(rows).ok();
            measured.rows_at_least = rows == ROWS_MAX;
            measured.oldest_at = row.get(1);
        }
        if self.above.is_some() {
            measured.rows = measured.rows.map(|rows| rows + self.held.rows);
        }
        if let (Some(sql), Some(first)) = (&self.held_sql, self.held.first) {
            let row = client.query_opt(sql, &[&first]).await?;
            measured.oldest_held_at = row.and_then(|row| row.get(0));
        }
        if let Some(table) = &self.kept_in {
            measured.kept = retention::kept(client, table).await?;
        }
        Ok(measured)
    }
}
