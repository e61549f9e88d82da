//! The state tables and the slot, with each statement's effect as its SQL says it.

use crate::core::{Aggregate, Followers, HeldAggregate, Help, Recorded, TopicHold};
use crate::mark::FencingToken;
use crate::mark::ledger::{Checkpoint, Head, Ledger, numbers_of};
use crate::row::ranges::RangeSet;
use crate::row::{Lsn, OutboxRow, RowId};
use crate::state::hold::{CopyPolicy, HoldCheckpoint, ReplayOrder, What};
use crate::state::lease::LeaseRow;

use super::event;
use super::record::MarkRecord;
use super::server::Server;

/// One row of `outboxd.ledger`.
pub struct LedgerRow {
    pub segment: i64,
    pub sent: RangeSet,
    high_lsn: Lsn,
    last_seq: i64,
    last_id: String,
    is_closed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockedState {
    Blocked,
    Retry,
    Skip,
    Released,
}

/// One row of `outboxd.blocked`.
pub struct Blocked {
    pub what: What,
    pub state: BlockedState,
    pub held: RangeSet,
    pub row_seq: Option<i64>,
    pub row_id: String,
    reason: String,
    error: String,
    followers: Followers,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeptState {
    Held,
    Replay,
    Replayed,
    Dead,
    Discarded,
}

/// One row of `outboxd.kept`.
pub struct Kept {
    pub id: i64,
    pub seq: Option<i64>,
    pub row_id: String,
    pub state: KeptState,
    behind: Option<What>,
    row: Option<OutboxRow>,
}

/// The logical replication slot.
#[derive(Clone, Copy, Debug, Default)]
pub struct Slot {
    pub confirmed: u64,
    /// What a restart of the server makes of `confirmed`.
    pub persisted: u64,
    /// The connection that reads it.
    pub reader: Option<u64>,
    /// Another outbox made it, under the name that our configuration means.
    pub is_foreign: bool,
}

/// What the state tables of one outbox hold.
#[derive(Default)]
pub struct Database {
    pub lease: Option<LeaseRow>,
    pub ledger: Vec<LedgerRow>,
    pub blocked: Vec<Blocked>,
    pub kept: Vec<Kept>,
    pub caught_up: bool,
    pub slot: Option<Slot>,
    pub marks: MarkRecord,
    /// Rows with marks of their own were polled since the slot was read.
    pub was_polled: bool,
    kept_ids: i64,
}

impl Database {
    pub fn holds_lease(&self, token: &FencingToken) -> bool {
        let lease = self.lease.as_ref();
        lease.is_some_and(|row| row.epoch == token.epoch && !row.released)
    }

    /// `Checkpoint::run`, without the check of the lease.
    pub fn mark(&mut self, checkpoint: &Checkpoint) {
        for (segment, row) in &checkpoint.segments {
            self.ledger.push(LedgerRow {
                segment: *segment,
                sent: row.sent.clone(),
                high_lsn: row.high_lsn,
                last_seq: row.last_seq,
                last_id: row.last_id.clone(),
                is_closed: false,
            });
        }
    }

    /// `ledger::compact`.
    pub fn compact(&mut self) {
        let rows = std::mem::take(&mut self.ledger);
        for row in rows {
            let Some(known) = self.ledger.iter_mut().find(|k| k.segment == row.segment) else {
                self.ledger.push(row);
                continue;
            };
            known.sent.extend(&row.sent);
            known.high_lsn = known.high_lsn.max(row.high_lsn);
            known.is_closed |= row.is_closed;
            if row.last_seq > known.last_seq {
                (known.last_seq, known.last_id) = (row.last_seq, row.last_id);
            }
        }
    }

    /// `Audit::close`.
    pub fn close(&mut self, segment: i64) {
        for row in self.ledger.iter_mut().filter(|row| row.segment == segment) {
            row.is_closed = true;
        }
    }

    pub fn is_sent(&self, seq: i64) -> bool {
        self.ledger.iter().any(|row| row.sent.contains(seq))
    }

    /// `Ledger::load`, with the numbers below the sequence's start.
    pub fn load_ledger(&self, token: FencingToken, first: i64, skipped: RangeSet) -> Ledger {
        let mut heads: Vec<Head> = Vec::new();
        for row in &self.ledger {
            let head = heads.iter_mut().find(|head| head.segment == row.segment);
            let Some(head) = head else {
                heads.push(Head {
                    generation: 1,
                    segment: row.segment,
                    is_closed: row.is_closed,
                    high_lsn: row.high_lsn,
                    last_seq: row.last_seq,
                    last_id: row.last_id.clone(),
                });
                continue;
            };
            head.is_closed |= row.is_closed;
            head.high_lsn = head.high_lsn.max(row.high_lsn);
            if row.last_seq > head.last_seq {
                (head.last_seq, head.last_id) = (row.last_seq, row.last_id.clone());
            }
        }
        let open = |row: &&LedgerRow| {
            heads
                .iter()
                .any(|head| head.segment == row.segment && !head.is_closed)
        };
        let mut sent = RangeSet::new();
        for row in self.ledger.iter().filter(open) {
            sent.extend(&row.sent);
        }
        let mut ledger = Ledger::of_heads(token, 1, heads, RangeSet::new());
        ledger.take_sent(sent);
        ledger.begins_at(1);
        ledger.note_rolled_back(&std::iter::once(1..=first - 1).collect());
        ledger.note_kept(&skipped);
        ledger
    }

    /// `Keep::keep`: the rows to be kept whole.
    pub fn keep(&mut self, keep: &HoldCheckpoint, server: &Server) {
        for row in &keep.kept {
            let seq = row.row.seq;
            let stands = seq.is_some_and(|seq| {
                let event = server.rows.get(&seq);
                event.is_some_and(|event| event.id == event::id_of(&row.row))
            });
            let is_kept = row.is_dead
                || keep.whole == CopyPolicy::All
                || keep.whole == CopyPolicy::Missing && !stands;
            if !is_kept {
                continue;
            }
            let state = if row.is_dead {
                KeptState::Dead
            } else {
                KeptState::Held
            };
            let row_id = row.row.id.as_ref().map(ToString::to_string);
            let row_id = row_id.unwrap_or_default();
            let known = self.kept.iter_mut().find(|kept| kept.row_id == row_id);
            match known {
                Some(known) if matches!(known.state, KeptState::Replay | KeptState::Replayed) => {
                    (known.state, known.behind) = (state, row.behind.clone());
                }
                Some(_) => {}
                None => {
                    self.kept_ids += 1;
                    self.kept.push(Kept {
                        id: self.kept_ids,
                        seq,
                        row_id,
                        state,
                        behind: row.behind.clone(),
                        row: Some(row.row.clone()),
                    });
                }
            }
        }
    }

    /// `Keep::block`: the entries that hold rows.
    pub fn block(&mut self, keep: &HoldCheckpoint) {
        for entry in &keep.entries {
            let fresh = Blocked {
                what: entry.what.clone(),
                state: BlockedState::Blocked,
                held: entry.held.clone(),
                row_seq: entry.row_seq,
                row_id: entry.row_id.clone(),
                reason: entry.reason.clone(),
                error: entry.error.clone(),
                followers: entry.followers,
            };
            let known = self.blocked.iter_mut().find(|b| b.what == entry.what);
            match known {
                None => self.blocked.push(fresh),
                Some(known) if known.state == BlockedState::Released => {
                    let mut held = known.held.take();
                    held.extend(&fresh.held);
                    *known = Blocked { held, ..fresh };
                }
                Some(known) => known.held.extend(&entry.held),
            }
        }
    }

    /// `hold::load`.
    pub fn recorded(&self) -> Recorded {
        let mut recorded = Recorded::default();
        let is_out = |kept: &&Kept| kept.state != KeptState::Replayed;
        for kept in self.kept.iter().filter(is_out) {
            recorded.numbers.extend(&kept.seq.into_iter().collect());
        }
        let blocked = |b: &&Blocked| b.state != BlockedState::Released;
        for entry in self.blocked.iter().filter(blocked) {
            recorded.numbers.extend(&entry.held);
            match &entry.what {
                What::Topic(topic) => {
                    let hold = TopicHold {
                        help: Help::Unknown,
                        reason: entry.error.clone(),
                        is_refused: entry.reason == "refused",
                        rows: entry.held.len().max(1),
                    };
                    recorded.topics.push((topic.clone(), hold));
                }
                What::Aggregate { kind, id } => {
                    let bytes = |text: &Option<String>| text.clone().map(String::into_bytes);
                    let (kind, id) = (bytes(kind), bytes(id));
                    let held = HeldAggregate {
                        aggregate_type: String::new(),
                        row: RowId::from_text(entry.row_id.as_bytes()),
                        reason: entry.reason.clone(),
                        error: entry.error.clone(),
                        followers: entry.followers,
                        rows: entry.held.len(),
                    };
                    let aggregate = Aggregate::of(kind.as_deref(), id.as_deref());
                    recorded.aggregates.push((aggregate, held));
                }
            }
        }
        recorded
    }

    /// `hold::release`; returns whether anything was.
    pub fn release(&mut self, topics: &[&str], has_marks: bool, server: &Server) -> bool {
        let mut is_released = false;
        for index in 0..self.blocked.len() {
            let entry = &self.blocked[index];
            let is_topic = matches!(&entry.what, What::Topic(topic) if topics.contains(&&**topic));
            let is_due = matches!(entry.state, BlockedState::Retry | BlockedState::Skip)
                || entry.state == BlockedState::Blocked && is_topic;
            if !is_due {
                continue;
            }
            is_released = true;
            self.free(index, has_marks, server);
        }
        if is_released && has_marks {
            self.caught_up = false;
        }
        is_released
    }

    /// `hold::keep_unmarked`.
    pub fn keep_unmarked(&mut self, id: u32) {
        let of_row = |entry: &&mut Blocked| entry.row_id.parse() == Ok(id);
        for entry in self.blocked.iter_mut().filter(of_row) {
            if entry.state == BlockedState::Skip {
                entry.state = BlockedState::Blocked;
            }
        }
    }

    /// The numbers that are read again once a request is fulfilled.
    pub fn held_of_requests(&self) -> Vec<RangeSet> {
        let is_request =
            |entry: &&Blocked| matches!(entry.state, BlockedState::Retry | BlockedState::Skip);
        let requests = self.blocked.iter().filter(is_request);
        requests.map(|entry| entry.held.clone()).collect()
    }

    /// The rows at fault that somebody asked to skip.
    pub fn skipped(&self) -> impl Iterator<Item = (i64, u32)> {
        let skipped = self.blocked.iter();
        let skipped = skipped.filter(|entry| entry.state == BlockedState::Skip);
        skipped.filter_map(|entry| Some((entry.row_seq?, entry.row_id.parse().ok()?)))
    }

    fn free(&mut self, index: usize, has_marks: bool, server: &Server) {
        let entry = &mut self.blocked[index];
        let skipped = (entry.state == BlockedState::Skip).then(|| entry.row_id.clone());
        let (what, row_seq) = (entry.what.clone(), entry.row_seq);
        let held = entry.held.take();
        entry.state = BlockedState::Released;
        for row in self.ledger.iter_mut() {
            if held.within(numbers_of(row.segment)).next().is_some() {
                row.is_closed = false;
            }
        }
        let is_follow = entry.followers == Followers::Die;
        let is_copy = |kept: &Kept| {
            let is_due = match kept.state {
                KeptState::Held => true,
                KeptState::Dead => is_follow,
                _ => false,
            };
            is_due && kept.behind.as_ref() == Some(&what) && skipped.as_ref() != Some(&kept.row_id)
        };
        let stands =
            |kept: &Kept| kept.state == KeptState::Held && has_marks && stands_unsent(kept, server);
        self.kept.retain(|kept| !(is_copy(kept) && stands(kept)));
        for kept in self.kept.iter_mut().filter(|kept| is_copy(kept)) {
            kept.state = KeptState::Replay;
        }
        let Some(row_id) = skipped else { return };
        match self.kept.iter_mut().find(|kept| kept.row_id == row_id) {
            Some(kept) => kept.state = KeptState::Discarded,
            None => {
                self.kept_ids += 1;
                self.kept.push(Kept {
                    id: self.kept_ids,
                    seq: row_seq,
                    row_id,
                    state: KeptState::Discarded,
                    behind: Some(what),
                    row: None,
                });
            }
        }
    }

    /// `hold::to_replay`.
    pub fn to_replay(&self, most: usize, lsn: u64, order: ReplayOrder) -> Vec<(i64, OutboxRow)> {
        let due = self.kept.iter().filter(|k| k.state == KeptState::Replay);
        let mut due: Vec<_> = due
            .filter_map(|kept| Some((kept.id, kept.row.clone()?)))
            .collect();
        due.sort_by_key(|(id, row)| match order {
            ReplayOrder::ByNumber => (row.seq, *id),
            ReplayOrder::AsKept => (None, *id),
        });
        due.truncate(most);
        for (_, row) in &mut due {
            row.lsn = Lsn(lsn);
        }
        due
    }

    /// `hold::take_out_sent`.
    pub fn take_out_sent(&mut self) {
        let ledger = &self.ledger;
        let is_sent = |seq| ledger.iter().any(|row| row.sent.contains(seq));
        for kept in &mut self.kept {
            if kept.state == KeptState::Replay && kept.seq.is_some_and(is_sent) {
                kept.state = KeptState::Replayed;
            }
        }
    }

    /// `hold::replayed`.
    pub fn replayed(&mut self, ids: &[i64]) {
        for kept in self.kept.iter_mut() {
            if ids.contains(&kept.id) && kept.state == KeptState::Replay {
                kept.state = KeptState::Replayed;
            }
        }
    }

    /// `hold::is_asked_for`.
    pub fn is_asked_for(&self) -> bool {
        let asked = |b: &Blocked| matches!(b.state, BlockedState::Retry | BlockedState::Skip);
        let replay = |kept: &Kept| kept.state == KeptState::Replay;
        self.blocked.iter().any(asked) || self.kept.iter().any(replay)
    }

    /// Whether a row is recorded as held, dead, discarded or waiting for its replay.
    pub fn keeps(&self, id: u32, seq: i64) -> bool {
        let blocked = |b: &Blocked| b.state != BlockedState::Released && b.held.contains(seq);
        self.blocked.iter().any(blocked) || self.is_kept(id)
    }

    /// Whether a row is kept whole, or discarded.
    pub fn is_kept(&self, id: u32) -> bool {
        let is_it =
            |kept: &Kept| kept.state != KeptState::Replayed && kept.row_id.parse::<u32>() == Ok(id);
        self.kept.iter().any(is_it)
    }
}

/// `stands_in`.
fn stands_unsent(kept: &Kept, server: &Server) -> bool {
    let id = kept.row_id.parse().unwrap_or(0);
    kept.seq.is_some_and(|seq| server.unsent(seq, id).is_some())
}
