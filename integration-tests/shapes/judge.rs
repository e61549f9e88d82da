//! Judges a run: every record of the topics against every row that was committed. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::events::{Event, Wanted};
use super::shape::{Payload, Shape, payload_text};
use crate::harness::murmur2::partition_of;
use crate::harness::topic::Read;

/// Faults of a kind that are told.
const TOLD_MAX: usize = 4;

/// What is wrong, in words; empty where the promises hold.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    faults: BTreeMap<&'static str, Vec<String>>,
}

impl Verdict {
    fn fault(&mut self, what: &'static str, text: String) {
        self.faults.entry(what).or_default().push(text);
    }

    /// One line for each kind of fault but those that a halted relay has.
    pub fn lines(&self) -> Vec<String> {
        let lines = self.faults.iter().map(|(what, texts)| {
            let some: Vec<&str> = texts.iter().take(TOLD_MAX).map(String::as_str).collect();
            format!("{} {what}: {}", texts.len(), some.join(", "))
        });
        lines.collect()
    }

    pub fn but_repeated(mut self) -> Self {
        self.faults.remove(REPEATED);
        self
    }

    /// What may not be said of a relay that publishes nothing either.
    pub fn but_lost(mut self) -> Self {
        self.faults.remove(LOST);
        self
    }
}

const LOST: &str = "lost";
const REPEATED: &str = "repeated";

/// A log with what is needed to judge it.
pub struct Log<'a> {
    pub shape: &'a Shape,
    pub reads: &'a [Read],
    pub partitions: &'a HashMap<String, i32>,
    /// The topic of an aggregate type.
    pub topic_of: &'a dyn Fn(&str) -> String,
}

/// The rows that have to be in Kafka and are not.
pub fn missing<'a>(events: &'a [Event], reads: &[Read]) -> Vec<&'a Event> {
    let seen: HashSet<u64> = reads.iter().filter_map(number_of).collect();
    let wanted = events.iter().filter(|one| one.wanted == Wanted::Always);
    wanted.filter(|one| !seen.contains(&one.number)).collect()
}

pub fn judge(events: &[Event], log: &Log<'_>) -> Verdict {
    let mut verdict = Verdict::default();
    for event in missing(events, log.reads) {
        verdict.fault(LOST, name(event));
    }
    let by_number: HashMap<u64, &Event> = events.iter().map(|one| (one.number, one)).collect();
    let mut seen: HashMap<u64, u32> = HashMap::new();
    let mut newest: HashMap<(&str, String), u64> = HashMap::new();
    for read in in_order(log.reads) {
        let event = number_of(read).and_then(|number| by_number.get(&number));
        let Some(event) = event else {
            verdict.fault("phantom", place(read));
            continue;
        };
        if event.wanted == Wanted::Never {
            verdict.fault("phantom", format!("{} at {}", name(event), place(read)));
        }
        let state = match fault_of(read, event, log) {
            Ok(state) => state,
            Err(fault) => {
                verdict.fault(
                    "wrong",
                    format!("{fault}: {} at {}", name(event), place(read)),
                );
                continue;
            }
        };
        if let Some(before) = seen.insert(event.number, state) {
            // A row that was changed after it was read may come again in its new state.
            if before >= state {
                verdict.fault(REPEATED, format!("{} at {}", name(event), place(read)));
            }
            continue;
        }
        let newest = newest.entry(event.aggregate()).or_default();
        if event.number < *newest {
            let text = format!("{} after {newest} at {}", name(event), place(read));
            verdict.fault("out of order", text);
        }
        *newest = event.number.max(*newest);
    }
    spelling(events, log.reads, &mut verdict);
    verdict
}

/// One value is spelt in one way: blanks at the end are all sent or none.
fn spelling(events: &[Event], reads: &[Read], verdict: &mut Verdict) {
    let by_number: HashMap<u64, &Event> = events.iter().map(|one| (one.number, one)).collect();
    let mut ids = HashSet::new();
    let mut keys = HashSet::new();
    for read in reads {
        let Some(event) = number_of(read).and_then(|number| by_number.get(&number)) else {
            continue;
        };
        if event.id.ends_with(' ') {
            ids.insert(read.header("id").is_some_and(|id| id.ends_with(' ')));
        }
        keys.insert(read.key_text().is_some_and(|key| key.ends_with(' ')));
    }
    for (what, spelt) in [("id", ids), ("key", keys)] {
        if spelt.len() > 1 {
            verdict.fault("wrong", format!("{what} with and without blanks"));
        }
    }
}

/// The state of the row that a record holds, or what is wrong with it.
fn fault_of(read: &Read, event: &Event, log: &Log<'_>) -> Result<u32, String> {
    let (kind, aggregate) = event.aggregate();
    if read.topic != (log.topic_of)(kind) {
        return Err("wrong topic".to_owned());
    }
    let key = read.key_text().unwrap_or("nothing");
    if key.trim_end() != format!("{aggregate}{}", log.shape.key_suffix) {
        return Err(format!("key `{key}`"));
    }
    let count = log.partitions.get(&read.topic).copied().unwrap_or(1);
    if read.partition != partition_of(key.as_bytes(), count) {
        return Err("wrong partition".to_owned());
    }
    let id = read.header("id").unwrap_or("nothing");
    if id.trim_end() != event.id.trim_end() {
        return Err(format!("id `{id}`, not `{}`", event.id));
    }
    let value = read.value_text().unwrap_or_default();
    let is_of = |state: &u32| {
        let text = payload_text(event.number, *state);
        match log.shape.payload {
            Payload::Of(_) => value == text,
            Payload::By(..) => value.contains(&text),
        }
    };
    let state = event.states.iter().find(|state| is_of(state));
    state
        .copied()
        .ok_or_else(|| format!("a value that was never committed, `{value}`"))
}

/// The row's number, from the payload.
fn number_of(read: &Read) -> Option<u64> {
    let (_, rest) = read.value_text()?.split_once("\"n\": ")?;
    let digits = rest.split(|one: char| !one.is_ascii_digit()).next()?;
    digits.parse().ok()
}

/// The records of each partition by offset.
fn in_order(reads: &[Read]) -> Vec<&Read> {
    let mut ordered: Vec<&Read> = reads.iter().collect();
    ordered.sort_by_key(|read| (&read.topic, read.partition, read.offset));
    ordered
}

fn name(event: &Event) -> String {
    let (kind, aggregate) = event.aggregate();
    format!("{} of {kind} {aggregate}", event.number)
}

fn place(read: &Read) -> String {
    format!("[{}] @{}", read.partition, read.offset)
}
