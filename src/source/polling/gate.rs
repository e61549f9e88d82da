//! The durability gate: rows may be visible before their commit is on disk.
//!
//! Owns the wait until everything that was visible is flushed, and the arithmetic of WAL pages behind it.

use std::time::{Duration, Instant};

use tokio_postgres::Statement;
use tokio_postgres::types::PgLsn;
use tracing::debug;

use super::PollError;
use crate::postgres::SqlConnection;
use crate::row::Lsn;

/// The first pause between two looks at the flush position; later ones double.
const PAUSE_MIN: Duration = Duration::from_millis(1);
/// Well below `wal_writer_delay`, 200 ms, which is what an asynchronous commit waits for.
const PAUSE_MAX: Duration = Duration::from_millis(20);
/// The lock is written to the log, so that its commit waits for all that was written before; it stops nobody: an UPDATE of
/// the lease changes no key.
const FLUSH: &str = "SELECT FROM outboxd.lease WHERE outbox = $1 FOR KEY SHARE";
/// A server that does not flush for so long has trouble of its own.
const LONG: Duration = Duration::from_secs(1);

/// How the server divides its WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WalGeometry {
    pub page_bytes: u64,
    pub segment_bytes: u64,
}

impl WalGeometry {
    /// The flush position that an insert position waits for.
    ///
    /// The insert position at the very start of a page is given behind its header, which nobody flushes while the server is
    /// idle: it stands for the page's start. Every other one is taken as it is.
    /// Source: PostgreSQL, `XLogBytePosToRecPtr`, `SizeOfXLogShortPHD` (24) and `SizeOfXLogLongPHD` (40).
    pub(crate) fn flushed_at(&self, insert: Lsn) -> Lsn {
        let offset = insert.0 % self.page_bytes;
        let is_first_page = insert.0 % self.segment_bytes < self.page_bytes;
        let header = if is_first_page { 40 } else { 24 };
        if offset == header {
            Lsn(insert.0 - offset)
        } else {
            insert
        }
    }
}

/// Waits until what was read is durable.
pub(super) struct Gate {
    geometry: WalGeometry,
    outbox: String,
    position: Statement,
    flush: Statement,
}

/// Where the log stood.
#[derive(Clone, Copy)]
pub(super) struct WalPosition {
    insert: Lsn,
    flushed: Lsn,
}

impl Gate {
    pub(super) async fn prepare(session: &SqlConnection, outbox: &str) -> Result<Self, PollError> {
        let what = "read the size of WAL pages";
        let query = "SELECT pg_catalog.current_setting('wal_block_size')::int8, \
             pg_catalog.pg_size_bytes(pg_catalog.current_setting('wal_segment_size'))";
        let row = session.client.query_one(query, &[]).await;
        let row = PollError::check(session, what, row).await?;
        let geometry = WalGeometry {
            page_bytes: size(row.get(0))?,
            segment_bytes: size(row.get(1))?,
        };
        let query = "SELECT pg_catalog.pg_current_wal_insert_lsn(), \
             pg_catalog.pg_current_wal_flush_lsn()";
        let position = session.client.prepare(query).await;
        let position = PollError::check(session, "prepare the WAL positions", position).await?;
        let flush = session.client.prepare(FLUSH).await;
        let flush = PollError::check(session, "prepare a flush of the WAL", flush).await?;
        Ok(Self {
            geometry,
            outbox: outbox.to_owned(),
            position,
            flush,
        })
    }

    /// Waits until every row that an earlier statement saw is flushed; returns the insert position, which bounds their commits.
    ///
    /// Lets the server flush at once what nobody waits for: it would take up to two rounds of its writer, 0.4 s. Not for an
    /// open transaction, which flushes nothing before it ends.
    /// Cancel-safe: yes.
    pub(super) async fn pass(&self, session: &SqlConnection) -> Result<Lsn, PollError> {
        let position = self.look(session).await?;
        if position.flushed < self.geometry.flushed_at(position.insert) {
            let flushed = session.client.execute(&self.flush, &[&self.outbox]).await;
            PollError::check(session, "flush the WAL", flushed).await?;
        }
        self.wait(session, position).await
    }

    /// Where the log stands: every row that an earlier statement saw was committed before.
    pub(super) async fn look(&self, session: &SqlConnection) -> Result<WalPosition, PollError> {
        let row = session.client.query_one(&self.position, &[]).await;
        let row = PollError::check(session, "read the WAL positions", row).await?;
        let lsn = |column| Lsn(u64::from(row.get::<_, PgLsn>(column)));
        Ok(WalPosition {
            insert: lsn(0),
            flushed: lsn(1),
        })
    }

    /// Waits until the log is flushed as far as it was written at that moment; returns that position.
    ///
    /// Cancel-safe: yes.
    pub(super) async fn wait(
        &self,
        session: &SqlConnection,
        position: WalPosition,
    ) -> Result<Lsn, PollError> {
        let WalPosition {
            insert,
            mut flushed,
        } = position;
        let needed = self.geometry.flushed_at(insert);
        let (began, mut pause, mut is_told) = (Instant::now(), Duration::ZERO, false);
        while flushed < needed {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
            flushed = self.look(session).await?.flushed;
            if !is_told && began.elapsed() > LONG {
                debug!(lsn = %needed, %flushed, "rows wait for the server to flush its WAL");
                is_told = true;
            }
        }
        Ok(insert)
    }
}

/// A size that can be divided by.
fn size(bytes: i64) -> Result<u64, PollError> {
    let size = u64::try_from(bytes).ok().filter(|&bytes| bytes > 0);
    size.ok_or(PollError::Unexpected("a WAL page size of zero"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GEOMETRY: WalGeometry = WalGeometry {
        page_bytes: 8192,
        segment_bytes: 16 << 20,
    };

    #[test]
    fn a_position_behind_a_page_header_stands_for_the_start_of_the_page() {
        let page = 0x0300_0000 + 3 * 8192;
        assert_eq!(GEOMETRY.flushed_at(Lsn(page + 24)), Lsn(page));
    }

    #[test]
    fn the_first_page_of_a_segment_has_a_longer_header() {
        let segment = 0x0300_0000;
        assert_eq!(GEOMETRY.flushed_at(Lsn(segment + 40)), Lsn(segment));
        assert_eq!(GEOMETRY.flushed_at(Lsn(segment + 24)), Lsn(segment + 24));
        let second = segment + 8192;
        assert_eq!(GEOMETRY.flushed_at(Lsn(second + 40)), Lsn(second + 40));
    }

    #[test]
    fn every_other_position_is_taken_as_it_is() {
        let page = 0x0300_0000 + 8192;
        for offset in (0..8192).filter(|&offset| offset != 24) {
            assert_eq!(GEOMETRY.flushed_at(Lsn(page + offset)), Lsn(page + offset));
        }
    }
}
