//! Which numbers of a streamed table will never be rows, and which rows the stream missed.
//!
//! Reads only; what is missed is told, and stands in the table unsent until somebody publishes it.

use crate::outbox::{Layout, Lsn};
use crate::postgres::Session;
use crate::ranges::RangeSet;
use crate::source::holes::{Arrivals, Death, Holes};
use crate::source::polling::PollError;
use crate::source::polling::locks::Locks;
use crate::source::polling::look_up::LookUp;
use crate::source::polling::statement::PLANNER;

/// How far the stream has come, taken at one moment.
#[derive(Clone, Debug)]
pub struct Progress {
    /// The numbers that need no look-up: sent, skipped, dead, held or in flight.
    pub settled: RangeSet,
    /// The highest number that the stream has brought.
    pub top: i64,
    /// The newest position that came in order behind all rows before it.
    pub passed: Lsn,
}

/// What became of the holes.
#[derive(Clone, Debug, Default)]
pub struct Judgement {
    /// Numbers that no row will ever carry.
    pub dead: RangeSet,
    /// Rows that stand in the table, and the stream has passed their commit without them.
    pub missed: RangeSet,
}

/// Judges the holes that the stream leaves behind, over a connection of its own.
pub struct HoleWatch {
    session: Session,
    first: i64,
    holes: Holes,
    locks: Locks,
    look_up: LookUp,
}

impl HoleWatch {
    /// Prepares for one table; `first` is the lowest number of its sequence.
    pub async fn prepare(session: Session, layout: &Layout, first: i64) -> Result<Self, PollError> {
        let table = layout.sql_name();
        let settings = session.client.batch_execute(PLANNER).await;
        PollError::check(&session, "set the planner up", settings).await?;
        Ok(Self {
            locks: Locks::prepare(&session, &table).await?,
            look_up: LookUp::prepare(&session, layout, &table).await?,
            session,
            first,
            holes: Holes::new(Death::NeedsPassage),
        })
    }

    /// Looks at the holes below the highest number once.
    ///
    /// Nothing dies on locks alone: the last look-up waits until the stream has passed the position
    /// that was read when no transaction was left that could fill the hole (design 5a).
    pub async fn judge(&mut self, progress: &Progress) -> Result<Judgement, PollError> {
        let open: RangeSet = progress.settled.gaps(self.first..=progress.top).collect();
        self.holes.track(&open);
        if self.holes.is_empty() {
            return Ok(Judgement::default());
        }
        let mut reading = self.locks.read(&self.session).await?;
        reading.position = self.position().await?;
        let plan = self
            .holes
            .plan(&reading, Arrivals::Nothing, progress.passed);
        self.locks.warn_of_forgotten(&self.holes);
        let (found, _) = self.look_up.ask(&self.session, &plan.look_up).await?;
        let dead = self.holes.answer(&plan, &found);
        Ok(Judgement {
            dead,
            missed: found.intersection(&plan.last),
        })
    }

    async fn position(&self) -> Result<Lsn, PollError> {
        let query = "SELECT pg_catalog.pg_current_wal_insert_lsn()::text";
        let row = self.session.client.query_one(query, &[]).await;
        let row = PollError::check(&self.session, "read the insert position", row).await?;
        let position = row.get::<_, &str>(0).parse();
        position.map_err(|_| PollError::Unexpected("a position it does not print"))
    }
}
