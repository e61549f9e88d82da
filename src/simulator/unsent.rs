//! Polling by the unsent mark: each page is what one snapshot shows, from the start.

use std::collections::BTreeSet;

use super::event::id_of;
use super::session::Source;
use super::world::{World, tell};
use crate::source::Batch;
use crate::source::holes::VirtualTransaction;

/// What the pages over one connection know.
pub struct Pages {
    /// Whether those that write as polling begins are waited for, and who is left of them.
    waits: bool,
    left: Option<BTreeSet<VirtualTransaction>>,
}

impl Pages {
    pub fn new(waits: bool) -> Self {
        Self { waits, left: None }
    }

    fn have_ended(&self) -> bool {
        !self.waits || self.left.as_ref().is_some_and(BTreeSet::is_empty)
    }
}

impl World {
    /// Reads the next page once every row of the last one is marked or held; nothing where the server was lost in it.
    pub fn read_page(&mut self, relay: usize) -> Option<()> {
        let session = self.relays[relay].session.as_ref()?;
        if !session.batches.is_empty() || !session.is_resolved {
            return Some(());
        }
        let in_vain = session.held.len() + session.owed;
        let limit = self.rng.usize(1..=5) + in_vain;
        let have_ended = self.look_at_page_writers(relay)?;
        let lsn = self.server.wal;
        self.judge.table_read(lsn);
        let rows = self.server.all_unsent().take(limit);
        let rows: Vec<_> = rows.map(|event| event.paged(lsn)).collect();
        self.write(2);
        if !rows.is_empty() && !self.pass_gate(lsn) {
            return None;
        }
        tell!(
            self,
            "relay {relay} reads the unsent rows {:?} at {lsn}",
            rows.iter().map(id_of).collect::<Vec<_>>()
        );
        let session = self.relays[relay].session.as_mut()?;
        let batch = Batch {
            caught_up: rows.len() < limit && have_ended,
            rows,
            ..Batch::default()
        };
        session.batches.push_back(batch);
        Some(())
    }

    /// Whether everybody has ended who wrote when polling began.
    fn look_at_page_writers(&mut self, relay: usize) -> Option<bool> {
        let pages = |world: &Self| match &world.relays[relay].session.as_ref()?.source {
            Source::Pages(pages) => Some((pages.waits, pages.have_ended())),
            _ => None,
        };
        let (waits, have_ended) = pages(self)?;
        if !waits || have_ended {
            return Some(have_ended);
        }
        let reading = self.read_locks();
        let session = self.relays[relay].session.as_mut()?;
        let Source::Pages(pages) = &mut session.source else {
            return None;
        };
        match &mut pages.left {
            None => pages.left = Some(reading.holders.into_keys().collect()),
            Some(left) => left.retain(|name| reading.holders.contains_key(name)),
        }
        Some(pages.have_ended())
    }
}
