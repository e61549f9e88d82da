//! Defects that are planted on purpose, to show that the judge sees them: at the seam of the machine an input is forged or
//! an effect dropped, doubled or put out of order, or the world around it does wrong.

use std::sync::Arc;

use super::schedule::{Kind, Schedule};
use crate::config::{FaultPolicy, Mark};
use crate::mark::{Recording, Statement};
use crate::publish::Outgoing;
use crate::row::Lsn;

/// What the loop of a relay gets wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    None,
    /// Rows are resolved when their mark is sent, not when it was committed.
    ConfirmBeforeMark,
    /// A transaction's boundary is where its commit record begins, not where it ends.
    ConfirmCommitLsn,
    /// A keepalive's position is taken before the rows in front of it were offered.
    KeepaliveTooEarly,
    /// A session begins without the recorded holds of aggregates.
    ForgetTheHold,
    /// The report of one row settles every row handed over before it.
    SettleOutOfOrder,
    /// A row counts as delivered when it was handed over.
    MarkBeforeAck,
    /// Statements take effect whoever holds the lease.
    LeaseUnchecked,
    /// Rows that the stream missed are published while it goes on, instead of by the catch-up.
    SweepWithoutHold,
    /// The lock reading leaves a holder out.
    DeadWhileAlive,
    /// The last look-up does not wait for the stream.
    DeadBeforePassage,
    /// A checkpoint covers rolled-back numbers too.
    RolledBackCountedAsSent,
    /// What was learned of the numbers outlives the connection.
    NumbersOutliveCrash,
    /// The slot is moved to a position before which a commit may still be invisible.
    PositionWithoutWriters,
    /// What was kept whole is replayed before older rows that stand in the table.
    ReplayPassesTheTable,
    /// Without marks, a drain ends within a transaction.
    StopWithinTransaction,
    /// A row that a query did not return counts as marked.
    AbsenceIsEvidence,
    /// Marks in rows are not recorded beside them.
    MarkUnrecorded,
    /// What the stream has passed counts as settled.
    PassedIsResolved,
    /// A mark hits a row that has changed since it was read.
    MarkHitsAnotherVersion,
    /// A slot is taken because it exists.
    SlotTaken,
    /// A mark that fails is tried again as it is, for ever.
    FailedMarkIsPassing,
    /// A stop that meets no session leaves what Kafka acknowledged without its mark.
    StopUnsettled,
    /// A session does not hear that its lease ran out, nor that it is another relay's.
    LeaseUnheard,
    /// Reports of a producer are not heard.
    ReportLost,
    /// Records are handed over twice.
    PublishedTwice,
    /// Two records change places on their way to the producer.
    PublishedOutOfOrder,
    /// What was put aside counts as recorded when its statement is sent.
    HeldBeforeRecord,
    /// Rows of a batch are not compared with what is recorded.
    LookUpForgotten,
    /// A source of unsent rows is told too early that its rows are marked.
    ResolvedTooEarly,
    /// A mark that has to wait is heard of as made.
    OwedUnheard,
    /// A mark that was refused is heard of as made.
    RefusalUnheard,
    /// A new producer works at once, beside what the old one has in flight.
    SuccessorNotAwaited,
    /// The rows of a producer that was given up stay in flight.
    DropUnheard,
}

impl Mutation {
    /// Whether the defect concerns a schedule at all: the rare ones are not looked for elsewhere.
    pub fn can_harm(self, schedule: &Schedule) -> bool {
        let has = |kind| schedule.steps.iter().any(|step| step.kind == kind);
        let setting = &schedule.setting;
        match self {
            Self::StopWithinTransaction => setting.mark == Mark::None && has(Kind::Stop),
            Self::ReplayPassesTheTable => {
                setting.policy != FaultPolicy::Block && has(Kind::Topic) && has(Kind::Operator)
            }
            Self::AbsenceIsEvidence
            | Self::MarkUnrecorded
            | Self::PassedIsResolved
            | Self::FailedMarkIsPassing
            | Self::MarkHitsAnotherVersion => setting.marks_rows(),
            Self::ResolvedTooEarly | Self::OwedUnheard => setting.marks_rows(),
            Self::RefusalUnheard => setting.habits.unmarkable > 0,
            Self::SuccessorNotAwaited => has(Kind::Grow),
            Self::DropUnheard => has(Kind::Leader) || has(Kind::Rotate),
            Self::LeaseUnheard => setting.relays > 1,
            Self::SlotTaken => has(Kind::Neighbour),
            _ => true,
        }
    }

    /// Plants the defect in records that are handed over.
    pub fn forge_outgoing(self, outgoing: &mut Vec<Outgoing>) {
        match self {
            Self::PublishedTwice => {
                let again = outgoing.last().map(|last| Outgoing {
                    ticket: last.ticket,
                    record: last.record.clone(),
                    partition: last.partition,
                });
                outgoing.extend(again);
            }
            Self::PublishedOutOfOrder if outgoing.len() > 1 => outgoing.reverse(),
            _ => {}
        }
    }

    /// Plants the defect in a statement that marks.
    pub fn forge_statement(self, statement: &mut Arc<Statement>, passed: Option<Lsn>) {
        let Some(Statement::Rows(statement)) = Arc::get_mut(statement) else {
            return;
        };
        if let Recording::Marks(resolved) = &mut statement.recording {
            match self {
                Self::PassedIsResolved => *resolved = passed.unwrap_or_default(),
                _ => statement.recording = Recording::Nothing,
            }
        }
    }
}

/// Every planted defect.
pub const ALL: [Mutation; 33] = [
    Mutation::ConfirmBeforeMark,
    Mutation::ConfirmCommitLsn,
    Mutation::KeepaliveTooEarly,
    Mutation::ForgetTheHold,
    Mutation::SettleOutOfOrder,
    Mutation::MarkBeforeAck,
    Mutation::LeaseUnchecked,
    Mutation::SweepWithoutHold,
    Mutation::DeadWhileAlive,
    Mutation::DeadBeforePassage,
    Mutation::RolledBackCountedAsSent,
    Mutation::NumbersOutliveCrash,
    Mutation::PositionWithoutWriters,
    Mutation::ReplayPassesTheTable,
    Mutation::StopWithinTransaction,
    Mutation::AbsenceIsEvidence,
    Mutation::MarkUnrecorded,
    Mutation::PassedIsResolved,
    Mutation::MarkHitsAnotherVersion,
    Mutation::SlotTaken,
    Mutation::FailedMarkIsPassing,
    Mutation::StopUnsettled,
    Mutation::LeaseUnheard,
    Mutation::ReportLost,
    Mutation::PublishedTwice,
    Mutation::PublishedOutOfOrder,
    Mutation::HeldBeforeRecord,
    Mutation::LookUpForgotten,
    Mutation::ResolvedTooEarly,
    Mutation::OwedUnheard,
    Mutation::RefusalUnheard,
    Mutation::SuccessorNotAwaited,
    Mutation::DropUnheard,
];
