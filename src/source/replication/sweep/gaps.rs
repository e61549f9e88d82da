//! Which numbers of a streamed table will never be rows, and which rows the stream missed.
//!
//! Reads only; what is missed stands in the table unsent until it is read from there.

use crate::postgres::SqlConnection;
use crate::row::Layout;
use crate::row::ranges::RangeSet;
use crate::source::holes::{Arrivals, Holes, RollbackProof};
use crate::source::polling::PollError;
use crate::source::polling::locks::Locks;
use crate::source::polling::look_up::LookUp;
use crate::source::polling::statement::PLANNER;

use super::{Judgement, Missed, Progress, insert_position};

/// Judges the holes that the stream leaves behind, over a connection of its own.
pub struct GapWatch {
    session: SqlConnection,
    first: i64,
    /// The highest number that the table held when it was asked last: the numbers from the stream's highest up to it
    /// are a hole like any other.
    highest: i64,
    highest_sql: String,
    holes: Holes,
    locks: Locks,
    look_up: LookUp,
}

impl GapWatch {
    /// Prepares for one table; `first` is the lowest number of its sequence.
    pub(crate) async fn prepare(
        session: SqlConnection,
        layout: &Layout,
        first: i64,
    ) -> Result<Self, PollError> {
        let table = layout.sql_name();
        let settings = session.client.batch_execute(PLANNER).await;
        PollError::check(&session, "set the planner up", settings).await?;
        Ok(Self {
            locks: Locks::prepare(&session, &table).await?,
            look_up: LookUp::prepare(&session, layout, &table).await?,
            session,
            first,
            highest: i64::MIN,
            highest_sql: format!("SELECT max({})::int8 FROM {table}", layout.names.sql("seq")),
            holes: Holes::new(RollbackProof::NeedsStream),
        })
    }

    /// Looks at the holes below the highest number once.
    ///
    /// Nothing dies on locks alone: the last look-up waits until the stream has passed the position
    /// that was read when no transaction was left that could fill the hole (docs/design.md, "Holes").
    pub(super) async fn look(&mut self, progress: &Progress) -> Result<Judgement, PollError> {
        if progress.is_sweep {
            self.highest = self.read_highest().await?;
        }
        let top = progress.top.max(self.highest);
        let open: RangeSet = progress.settled.gaps(self.first..=top).collect();
        self.holes.track(&open);
        if self.holes.is_empty() {
            return Ok(Judgement::default());
        }
        let mut reading = self.locks.read(&self.session).await?;
        reading.position = insert_position(&self.session).await?;
        let plan = self
            .holes
            .plan(&reading, Arrivals::Nothing, progress.passed);
        self.locks.warn_of_forgotten(&self.holes);
        let (found, _) = self.look_up.ask(&self.session, &plan.look_up).await?;
        let rolled_back = self.holes.answer(&plan, &found);
        let numbers = found.intersection(&plan.last);
        Ok(Judgement {
            rolled_back,
            missed: Missed {
                numbers,
                ..Missed::default()
            },
        })
    }

    async fn read_highest(&self) -> Result<i64, PollError> {
        let row = self.session.client.query_one(&self.highest_sql, &[]).await;
        let row = PollError::check(&self.session, "read the highest number", row).await?;
        Ok(row.get::<_, Option<i64>>(0).unwrap_or(i64::MIN))
    }

    pub(super) fn awaits_stream(&self) -> bool {
        !self.holes.is_empty()
    }

    pub(super) fn session(&self) -> &SqlConnection {
        &self.session
    }
}
