//! Rows that are removed or changed: in their own transaction, by jobs, and by the relay's marks.

use fastrand::Rng;

use super::writer::Step;
use super::{Habits, Server};
use crate::simulator::event::Event;

/// What a transaction is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    Insert,
    Remove,
    Change,
}

/// What a transaction does beside inserting.
#[derive(Clone, Debug, Default)]
pub struct Rework {
    /// Of its own rows those that it removed again.
    pub(super) undone: Vec<u32>,
    /// Rows of others, which it has locked.
    pub(super) removed: Vec<Event>,
    pub(super) changed: Vec<Event>,
}

impl Rework {
    pub(super) fn of_others(&self) -> impl Iterator<Item = &Event> {
        self.removed.iter().chain(&self.changed)
    }
}

impl Habits {
    pub(super) fn work(&self, rng: &mut Rng) -> Work {
        if self.removing + self.changing == 0 {
            return Work::Insert;
        }
        match rng.u8(..20) {
            roll if roll < self.removing => Work::Remove,
            roll if roll < self.removing + self.changing => Work::Change,
            _ => Work::Insert,
        }
    }
}

impl Server {
    /// A visible row that nobody has locked, and not the newest one.
    fn pick(&mut self, rng: &mut Rng) -> Option<Event> {
        let (newest, _) = self.rows.last_key_value()?;
        let older = self.rows.range(..newest).map(|(_, event)| *event);
        let free = older.filter(|event| !self.row_locks.contains(&event.id));
        let picked = rng.choice(free.collect::<Vec<_>>())?;
        self.row_locks.insert(picked.id);
        Some(picked)
    }

    pub(super) fn remove(&mut self, rng: &mut Rng, index: usize) {
        let picked = self.pick(rng);
        self.writers[index].rework.removed.extend(picked);
    }

    pub(super) fn change(&mut self, rng: &mut Rng, index: usize) {
        let Some(mut event) = self.pick(rng) else {
            return;
        };
        event.version += 1;
        event.xid = self.writers[index].xid.map_or(0, |xid| xid as u32);
        self.writers[index].rework.changed.push(event);
    }

    /// What a commit makes of the rows that are seen.
    pub(super) fn apply(&mut self, events: &[Event], rework: &Rework) {
        for event in events {
            match rework.undone.contains(&event.id) {
                true => drop(self.removed.insert(event.id)),
                false => drop(self.rows.insert(event.seq, *event)),
            }
        }
        for event in &rework.changed {
            self.rows.insert(event.seq, *event);
        }
        for event in &rework.removed {
            self.rows.remove(&event.seq);
            self.removed.insert(event.id);
        }
    }

    /// A row that stands and is not marked in itself, by its number.
    pub fn unsent(&self, seq: i64, id: u32) -> Option<&Event> {
        let event = self.rows.get(&seq)?;
        (event.id == id && !self.sent.contains(&id)).then_some(event)
    }

    /// The rows that are not marked in themselves, by number.
    pub fn all_unsent(&self) -> impl Iterator<Item = &Event> {
        let events = self.rows.values();
        events.filter(|event| !self.sent.contains(&event.id))
    }

    /// Whether a row says something else than when it was inserted: the stream does not tell it.
    pub fn is_changed(&self, event: &Event) -> bool {
        let standing = self.rows.get(&event.seq);
        standing.is_some_and(|standing| standing.id == event.id && standing.version > 0)
    }

    /// Whether somebody works on a row: who marks it waits.
    pub fn is_locked(&self, id: u32) -> bool {
        self.row_locks.contains(&id)
    }

    /// `sent_at` is set.
    pub fn set_sent(&mut self, id: u32) {
        self.sent.insert(id);
    }

    /// The relay deletes a row.
    pub fn take_row(&mut self, seq: i64) {
        if let Some(event) = self.rows.remove(&seq) {
            self.taken.insert(event.id);
        }
    }

    /// Whether the relay has marked the row in itself.
    pub fn is_marked(&self, id: u32) -> bool {
        self.sent.contains(&id) || self.taken.contains(&id)
    }
}

/// The steps of a transaction that works on rows of others.
pub(super) fn job(rng: &mut Rng, work: Step) -> Vec<Step> {
    let mut steps = vec![Step::LockTable, Step::AssignXid];
    steps.extend((0..rng.usize(1..4)).map(|_| work));
    if rng.u8(..10) < 3 {
        steps.push(Step::Linger);
    }
    match rng.u8(..10) {
        0 | 1 => steps.push(Step::Abort),
        _ => steps.extend([Step::WriteCommit, Step::Flush, Step::BecomeVisible]),
    }
    steps.extend([Step::ReleaseXid, Step::ReleaseTable]);
    steps
}
