//! What holds after every step: the promises S1 to S8 of the guarantees, by what the writers committed.

use std::collections::{HashMap, HashSet};

use super::database::Database;
use super::event::Event;
use super::server::{AGGREGATES, Server};
use crate::config::Mark;
use crate::row::ranges::RangeSet;

/// What the judge knows of one committed row.
struct Known {
    event: Event,
    end: u64,
    /// Its place among the rows of its aggregate.
    place: usize,
}

/// Knows the truth, and keeps the first promise that was broken.
#[derive(Default)]
pub struct Judge {
    pub broken: Option<String>,
    events: HashMap<u32, Known>,
    by_seq: HashMap<i64, u32>,
    order: [Vec<u32>; AGGREGATES],
    next: [usize; AGGREGATES],
    commits: usize,
    /// The newest version of each row that was appended.
    log: HashMap<u32, u32>,
    /// Repetitions that an ungraceful end allows.
    granted: HashMap<u32, u32>,
    /// Rows that their followers may pass: declared dead letters, or kept from the stream by a fault.
    excused: HashSet<u32>,
    /// Rows that a fault kept from the stream.
    pub missed: HashSet<u32>,
    /// Rows that were put aside: who removes one then means it.
    put_aside: HashSet<u32>,
    /// The table is read in the place of the stream: what was removed before is nobody's.
    pub reads_the_table: bool,
    /// Where the stream began anew, and how far the table was read beside it.
    made_at: u64,
    table_read: u64,
    /// Up to here every confirmed transaction was found settled.
    checked: u64,
}

impl Judge {
    pub fn breaks(&mut self, promise: &str, text: String) {
        self.broken
            .get_or_insert_with(|| format!("{promise}: {text}"));
    }

    /// Takes what was committed since, and forgets what a crash lost.
    pub fn sync(&mut self, server: &Server) {
        for commit in &server.commits[self.commits.min(server.commits.len())..] {
            for event in &commit.events {
                let order = event.aggregate.map(|aggregate| &mut self.order[aggregate]);
                let place = order.map_or(0, |order| {
                    order.push(event.id);
                    order.len() - 1
                });
                self.by_seq.insert(event.seq, event.id);
                let (event, end) = (*event, commit.end);
                self.events.insert(event.id, Known { event, end, place });
            }
        }
        self.commits = server.commits.len();
    }

    /// A crash lost every commit that ends above `flushed`.
    pub fn crashed(&mut self, server: &Server) {
        let flushed = server.flushed;
        let events = &mut self.events;
        events.retain(|_, known| known.end <= flushed);
        self.by_seq.retain(|_, id| events.contains_key(id));
        for order in &mut self.order {
            order.retain(|id| events.contains_key(id));
        }
        self.commits = server.commits.len();
    }

    pub fn event(&self, id: u32) -> Option<Event> {
        self.events.get(&id).map(|known| known.event)
    }

    pub fn in_log(&self, id: u32) -> bool {
        self.log.contains_key(&id)
    }

    /// S1, S4 and S6 for one record that was appended.
    pub fn appended(&mut self, event: Event, server: &Server) {
        self.sync(server);
        let Some(known) = self
            .events
            .get(&event.id)
            .filter(|k| k.end <= server.flushed)
        else {
            return self.breaks(
                "S1",
                format!("row {} is in the log and not durable", event.id),
            );
        };
        let place = known.place;
        let newest = self.log.insert(event.id, event.version);
        if newest.is_some_and(|newest| newest < event.version) {
            return;
        }
        if let Some(newest) = newest {
            self.log.insert(event.id, newest);
            let granted = self.granted.entry(event.id).or_insert(0);
            match granted.checked_sub(1) {
                Some(left) => *granted = left,
                None => self.breaks("S6", format!("row {} is repeated", event.id)),
            }
            return;
        }
        if let Some(aggregate) = event.aggregate {
            self.check_order(event.id, aggregate, place, server);
        }
    }

    fn check_order(&mut self, id: u32, aggregate: usize, place: usize, server: &Server) {
        if place < self.next[aggregate] && !self.may_be_passed(id, server) {
            self.breaks("S4", format!("row {id} came behind its followers"));
        }
        while self.next[aggregate] < place {
            let before = self.order[aggregate][self.next[aggregate]];
            if !self.log.contains_key(&before) && !self.may_be_passed(before, server) {
                return self.breaks("S4", format!("row {id} came before row {before}"));
            }
            self.next[aggregate] += 1;
        }
        self.next[aggregate] = self.next[aggregate].max(place + 1);
    }

    /// The first row of the aggregate before this one that is among `found` and not in the log.
    pub fn passes_found(&self, event: Event, found: &HashSet<u32>, server: &Server) -> Option<u32> {
        let place = self.events.get(&event.id)?.place;
        let order = &self.order[event.aggregate?];
        let mut before = order[..place].iter();
        before
            .find(|id| {
                found.contains(id) && !self.log.contains_key(id) && !server.removed.contains(id)
            })
            .copied()
    }

    /// Whether followers may pass a row: it was removed before the table was read.
    fn may_be_passed(&self, id: u32, server: &Server) -> bool {
        self.excused.contains(&id)
            || self.is_let_go(id, server)
            || server.removed.contains(&id)
                && self
                    .events
                    .get(&id)
                    .is_some_and(|known| known.end <= self.table_read)
    }

    /// Whether somebody removed a row that nothing but the table could have told.
    fn is_let_go(&self, id: u32, server: &Server) -> bool {
        server.removed.contains(&id)
            && (self.reads_the_table
                || self.missed.contains(&id)
                || self.put_aside.contains(&id)
                || self
                    .events
                    .get(&id)
                    .is_some_and(|known| known.end <= self.made_at))
    }

    /// The table was read, with every commit before this position that is seen.
    pub fn table_read(&mut self, lsn: u64) {
        self.table_read = self.table_read.max(lsn);
    }

    pub fn put_aside(&mut self, id: u32) {
        self.put_aside.insert(id);
    }

    pub fn put_aside_numbers(&mut self, numbers: &RangeSet) {
        let ids = self.ids_of(numbers);
        self.put_aside.extend(ids);
    }

    /// The rows that carry these numbers.
    pub fn ids_of(&self, numbers: &RangeSet) -> Vec<u32> {
        let numbers = numbers.ranges().flatten();
        let ids = numbers.filter_map(|seq| self.by_seq.get(&seq));
        ids.copied().collect()
    }

    /// S3 for a mark in a row, which hides every change that was not sent.
    pub fn marked_row(&mut self, event: &Event, was_polled: bool) {
        match self.log.get(&event.id) {
            None => {
                let text = format!("row {} is marked and not in the log", event.id);
                self.breaks("S3", text);
            }
            Some(version) if was_polled && *version < event.version => {
                let text = format!("row {} is marked and was changed since", event.id);
                self.breaks("S3", text);
            }
            Some(_) => {}
        }
    }

    /// A row that a mark did not find is called gone.
    pub fn gone(&mut self, id: u32, server: &Server) {
        let is_changed = |event: &Event| event.id == id && event.version > 0;
        let is_gone = server.removed.contains(&id) || server.is_marked(id);
        if !is_gone && !server.rows.values().any(is_changed) {
            self.breaks(
                "mark",
                format!("row {id} is called gone and was not seen yet"),
            );
        }
    }

    /// The row is declared passed over.
    pub fn excuse(&mut self, id: u32) {
        self.excused.insert(id);
    }

    /// A fault keeps the row from the stream.
    pub fn miss(&mut self, id: u32) {
        self.excused.insert(id);
        self.missed.insert(id);
    }

    /// An ungraceful end may repeat this row once.
    pub fn grant(&mut self, id: u32) {
        *self.granted.entry(id).or_insert(0) += 1;
    }

    /// Rows that were published and wait for their mark are published again by whoever releases them.
    pub fn grant_logged(&mut self, numbers: &RangeSet) {
        for seq in numbers.ranges().flatten() {
            if let Some(id) = self.by_seq.get(&seq).copied()
                && self.in_log(id)
            {
                self.grant(id);
            }
        }
    }

    /// Every row that may come again when the stream begins at `confirmed`.
    pub fn grant_behind(&mut self, confirmed: u64) {
        let behind = self
            .events
            .iter()
            .filter(|(_, known)| known.end > confirmed);
        for id in behind.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.grant(id);
        }
    }

    /// S3 for a mark that takes effect.
    pub fn marked(&mut self, sent: &RangeSet) {
        for seq in sent.ranges().flatten() {
            match self.by_seq.get(&seq) {
                Some(id) if self.log.contains_key(id) => {}
                Some(id) => {
                    let text = format!("row {id} is marked and not in the log");
                    return self.breaks("S3", text);
                }
                None => return self.breaks("S3", format!("number {seq} is marked without a row")),
            }
        }
    }

    /// S3 for a position that the server was told, be it by a relay that does not know yet that another one has released
    /// what it held: while the table is to be read, a row that stands there may lie before the position.
    pub fn confirmed(&mut self, lsn: u64, server: &Server, database: &Database, mark: Mark) {
        let is_to_be_read = mark != Mark::None && !database.caught_up;
        self.check_settled(lsn, server, |judge, event| {
            let is_sent = match mark {
                Mark::Ledger => database.is_sent(event.seq),
                Mark::None => judge.in_log(event.id),
                Mark::SentAt | Mark::Delete => {
                    let is_removed = server.removed.contains(&event.id);
                    server.is_marked(event.id)
                        || (is_removed || server.is_changed(event)) && judge.in_log(event.id)
                        || database.marks.owes(event.seq)
                }
            };
            is_sent || is_to_be_read || database.keeps(event.id, event.seq)
        });
    }

    /// The same for a slot that the leader moves while it reads the table: nothing before it is still to be read.
    pub fn passed(&mut self, lsn: u64, server: &Server, database: &Database) {
        self.check_settled(lsn, server, |_, event| {
            database.is_sent(event.seq) || database.keeps(event.id, event.seq)
        });
    }

    fn check_settled(
        &mut self,
        lsn: u64,
        server: &Server,
        is_settled: impl Fn(&Self, &Event) -> bool,
    ) {
        self.sync(server);
        if lsn > server.flushed {
            return self.breaks("S8", format!("{lsn} is confirmed and was never sent"));
        }
        let from = server
            .commits
            .partition_point(|commit| commit.end <= self.checked);
        for commit in &server.commits[from..] {
            if commit.end > lsn {
                break;
            }
            for event in &commit.events {
                let is_excused =
                    self.missed.contains(&event.id) || self.is_let_go(event.id, server);
                if !is_settled(self, event) && !is_excused {
                    let text = format!("{lsn} is confirmed and row {} not settled", event.id);
                    return self.breaks("S3", text);
                }
            }
        }
        self.checked = self.checked.max(lsn);
    }

    /// The slot was moved or made anew, not by a confirmation.
    pub fn slot_moved(&mut self, lsn: u64) {
        self.checked = self.checked.max(lsn);
        self.made_at = self.made_at.max(lsn);
    }

    /// No committed row and no open transaction may have a number called rolled back.
    pub fn rolled_back(&mut self, rolled_back: &RangeSet, server: &Server) {
        self.sync(server);
        for seq in rolled_back.ranges().flatten() {
            if let Some(id) = self.by_seq.get(&seq)
                && !server.removed.contains(id)
            {
                let text = format!("number {seq} is called rolled back and is that of row {id}");
                return self.breaks("rolled back", text);
            }
        }
        if let Some(seq) = server.drawn_open().find(|seq| rolled_back.contains(*seq)) {
            let text = format!("number {seq} is called rolled back while its transaction lives");
            self.breaks("rolled back", text);
        }
    }

    /// What is called missed was kept from the stream.
    pub fn called_missed(&mut self, numbers: &RangeSet, server: &Server) -> Vec<u32> {
        let ids = self.ids_of(numbers);
        let is_changed = |id| {
            server
                .rows
                .values()
                .any(|event| event.id == id && event.version > 0)
        };
        let is_missed = |id| self.missed.contains(&id) || is_changed(id);
        if let Some(id) = ids.iter().find(|id| !is_missed(**id)) {
            self.breaks(
                "sweep",
                format!("row {id} is called missed and is on its way"),
            );
        }
        ids
    }

    /// Rows that are neither in the log nor held.
    pub fn unsettled(&self, database: &Database, server: &Server) -> Vec<u32> {
        let mut rows: Vec<u32> = self
            .events
            .values()
            .filter(|known| !self.in_log(known.event.id))
            .filter(|known| !database.keeps(known.event.id, known.event.seq))
            .map(|known| known.event.id)
            .filter(|id| !self.is_let_go(*id, server))
            .collect();
        rows.sort_unstable();
        rows
    }
}
