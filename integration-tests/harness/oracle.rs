//! Judges a run: what the topics hold against what the database committed.
//!
//! `Verdict::judge` is pure. The truth is a table that writers fill in the very transactions that insert the outbox
//! rows, so a transaction of unknown outcome needs no resolution.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio_postgres::Client;
use uuid::Uuid;

use super::POLL;
use super::murmur2::partition_of;
use super::topic::{Read, TopicReader};

/// Where verdicts are written to, for the program that runs tests as rows of the matrix.
const VERDICTS: &str = "OUTBOXD_VERDICTS";

/// Whether this runs as a row of `make faults`, which judges times without allowance for a busy machine.
pub fn is_row_of_the_matrix() -> bool {
    std::env::var_os(VERDICTS).is_some()
}

/// Faults of a kind that a verdict names.
const SHOWN_MAX: usize = 10;

/// One committed outbox row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Truth {
    pub event_id: Uuid,
    pub aggregate: String,
    /// Its place among the committed rows of its aggregate; rising, with gaps where transactions rolled back.
    pub version: i64,
}

/// What a run did wrong, if anything. Faults are described by event and place, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Rows that were committed.
    pub committed: usize,
    /// Committed rows that are in the log, each counted once.
    pub published: usize,
    /// Committed rows that are not in the log.
    pub lost: Vec<String>,
    /// Records of rows that were never committed.
    pub phantom: Vec<String>,
    /// First occurrences that stand before an older row of their aggregate.
    pub out_of_order: Vec<String>,
    /// Records beyond the first of their row.
    pub duplicates: usize,
    /// The first of them.
    pub repeated: Vec<String>,
    /// Records with a wrong value, key or partition, or without a readable header `id`.
    pub wrong: Vec<String>,
    /// Repetitions that pass over a row of their aggregate, so that they are no run from before in its old order.
    pub torn: Vec<String>,
}

impl Verdict {
    /// Compares every record of the topics, in the order of their offsets, with every committed row.
    pub fn judge(truth: &[Truth], log: &[Read], partitions: &HashMap<String, i32>) -> Self {
        let by_id: HashMap<Uuid, &Truth> = truth.iter().map(|row| (row.event_id, row)).collect();
        let mut verdict = Self {
            committed: truth.len(),
            ..Self::default()
        };
        let mut seen: HashMap<Uuid, &Read> = HashMap::new();
        let mut newest: HashMap<&str, i64> = HashMap::new();
        for read in in_order(log) {
            let Some(id) = read.header("id").and_then(|id| Uuid::try_parse(id).ok()) else {
                verdict
                    .wrong
                    .push(format!("no event id at {}", place(read)));
                continue;
            };
            let Some(row) = by_id.get(&id) else {
                verdict.phantom.push(format!("{id} at {}", place(read)));
                continue;
            };
            verdict.wrong.extend(
                fault_of(read, row, partitions)
                    .map(|fault| format!("{fault}: {id} at {}", place(read))),
            );
            if let Some(first) = seen.get(&id) {
                verdict.duplicates += 1;
                if verdict.repeated.len() < SHOWN_MAX {
                    let repetition = format!("{id} at {}, first {}", place(read), place(first));
                    verdict.repeated.push(repetition);
                }
                continue;
            }
            seen.insert(id, read);
            let newest = newest.entry(&row.aggregate).or_insert(i64::MIN);
            if row.version < *newest {
                verdict.out_of_order.push(format!(
                    "{} v{} after v{newest} at {}",
                    row.aggregate,
                    row.version,
                    place(read)
                ));
            }
            *newest = row.version.max(*newest);
        }
        verdict.published = seen.len();
        verdict.torn = torn(truth, log);
        let missing = truth.iter().filter(|row| !seen.contains_key(&row.event_id));
        verdict.lost = missing
            .map(|row| format!("{} v{} {}", row.aggregate, row.version, row.event_id))
            .collect();
        verdict
    }

    /// How many rows and records are lost, phantom, out of order or wrong.
    pub fn faults(&self) -> usize {
        self.lost.len() + self.phantom.len() + self.out_of_order.len() + self.wrong.len()
    }

    /// Panics unless nothing is lost, phantom, out of order or wrong, with at most so many duplicates.
    pub fn assert_clean(&self, duplicates_max: usize) {
        self.note(duplicates_max);
        assert!(
            self.faults() == 0 && self.duplicates <= duplicates_max,
            "at most {duplicates_max} duplicates allowed\n{self}"
        );
    }
}

impl Verdict {
    /// Adds a line of numbers to the file that `OUTBOXD_VERDICTS` names, for the program that runs tests as rows of
    /// the fault matrix.
    fn note(&self, duplicates_max: usize) {
        let Ok(path) = std::env::var(VERDICTS) else {
            return;
        };
        let (lost, phantom) = (self.lost.len(), self.phantom.len());
        let (out_of_order, wrong) = (self.out_of_order.len(), self.wrong.len());
        let line = format!(
            "{} {lost} {phantom} {out_of_order} {wrong} {} {duplicates_max}\n",
            self.committed, self.duplicates
        );
        let file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(path);
        let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
        written.expect("write the verdict");
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "committed {}, published {}, duplicates {}",
            self.committed, self.published, self.duplicates
        )?;
        for one in &self.repeated {
            writeln!(f, "    {one}")?;
        }
        let faults = [
            ("lost", &self.lost),
            ("phantom", &self.phantom),
            ("out of order", &self.out_of_order),
            ("wrong", &self.wrong),
        ];
        for (name, found) in faults {
            writeln!(f, "{name} {}", found.len())?;
            for one in found.iter().take(SHOWN_MAX) {
                writeln!(f, "    {one}")?;
            }
        }
        Ok(())
    }
}

/// Reads truth and topics of one run, as often as asked.
pub struct Oracle {
    client: Client,
    reader: TopicReader,
}

impl Oracle {
    /// The client reads the truth table; the reader the topics.
    pub fn new(client: Client, reader: TopicReader) -> Self {
        Self { client, reader }
    }

    /// Judges what is there now.
    pub async fn verdict(&mut self) -> Verdict {
        let truth = truth(&self.client).await;
        let log = tokio::task::block_in_place(|| self.reader.read_to_end());
        let log = log.to_vec();
        Verdict::judge(&truth, &log, self.reader.partitions())
    }

    /// Waits until every committed row is in the log, then judges; what is missing when nothing came for `timeout` is
    /// lost. Call it when the writers have ended.
    pub async fn verdict_when_drained(&mut self, timeout: Duration) -> Verdict {
        let truth = truth(&self.client).await;
        let (mut fewest, mut changed_at) = (usize::MAX, Instant::now());
        while fewest > 0 && changed_at.elapsed() < timeout {
            let missing = self.missing(&truth);
            if missing < fewest {
                (fewest, changed_at) = (missing, Instant::now());
            }
            tokio::time::sleep(POLL).await;
        }
        self.verdict().await
    }

    /// How many of these rows are not in the log.
    pub fn missing(&mut self, truth: &[Truth]) -> usize {
        let ids = self.published();
        let missing = truth.iter().filter(|row| !ids.contains(&row.event_id));
        missing.count()
    }

    /// The rows that are in the log now.
    pub fn published(&mut self) -> HashSet<Uuid> {
        let log = tokio::task::block_in_place(|| self.reader.read_to_end());
        let ids = log.iter();
        ids.filter_map(|read| Uuid::try_parse(read.header("id")?).ok())
            .collect()
    }

    /// Everything that was read so far.
    pub fn reads(&self) -> &[Read] {
        self.reader.reads()
    }
}

/// Repetitions that are not the row after the record before them, nor an older one: a session that begins again
/// begins at or before its first unmarked row and leaves nothing out.
fn torn(truth: &[Truth], log: &[Read]) -> Vec<String> {
    let mut rows: Vec<&Truth> = truth.iter().collect();
    rows.sort_by_key(|row| (&row.aggregate, row.version));
    let places: HashMap<Uuid, usize> = rows
        .iter()
        .enumerate()
        .map(|(place, row)| (row.event_id, place))
        .collect();
    let mut newest: HashMap<&[u8], usize> = HashMap::new();
    let mut last: HashMap<&[u8], usize> = HashMap::new();
    let mut torn = Vec::new();
    for read in in_order(log) {
        let id = read.header("id").and_then(|id| Uuid::try_parse(id).ok());
        let (Some(key), Some(at)) = (read.key.as_deref(), id.and_then(|id| places.get(&id))) else {
            continue;
        };
        let is_repeated = newest.get(key).is_some_and(|newest| at <= newest);
        if is_repeated && last.get(key).is_some_and(|last| *at > last + 1) {
            let row = rows[*at];
            torn.push(format!(
                "{} v{} at {}",
                row.aggregate,
                row.version,
                place(read)
            ));
        }
        last.insert(key, *at);
        let newest = newest.entry(key).or_default();
        *newest = (*newest).max(*at);
    }
    torn
}

/// Every row of the truth table.
pub async fn truth(client: &Client) -> Vec<Truth> {
    let rows = client
        .query("SELECT event_id, aggregate, version FROM truth", &[])
        .await
        .expect("read the truth table");
    let truth = rows.iter().map(|row| Truth {
        event_id: row.get(0),
        aggregate: row.get(1),
        version: row.get(2),
    });
    truth.collect()
}

/// A payload that proves by itself that it arrived whole: JSON, so that it survives every column type.
pub fn payload(row: &Truth, padding: &str) -> String {
    let Truth {
        event_id,
        aggregate,
        version,
    } = row;
    let sha256 = digest(row, padding);
    format!(
        r#"{{"event_id":"{event_id}","aggregate":"{aggregate}","version":{version},"padding":"{padding}","sha256":"{sha256}"}}"#
    )
}

fn digest(row: &Truth, padding: &str) -> String {
    let text = format!(
        "{}|{}|{}|{padding}",
        row.event_id, row.aggregate, row.version
    );
    Sha256::digest(text)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// What is wrong with a record of a known row.
fn fault_of(read: &Read, row: &Truth, partitions: &HashMap<String, i32>) -> Option<&'static str> {
    let partition = partitions
        .get(&read.topic)
        .map(|count| partition_of(row.aggregate.as_bytes(), *count));
    if read.key.as_deref() != Some(row.aggregate.as_bytes()) {
        return Some("wrong key");
    }
    if partition != Some(read.partition) {
        return Some("wrong partition");
    }
    let value: Option<Value> = read
        .value
        .as_deref()
        .and_then(|value| serde_json::from_slice(value).ok());
    let Some(value) = value else {
        return Some("unreadable value");
    };
    let padding = value["padding"].as_str().unwrap_or_default();
    let is_own = value["event_id"] == row.event_id.to_string() && value["version"] == row.version;
    if !is_own || value["sha256"] != digest(row, padding) {
        return Some("wrong value");
    }
    None
}

/// The records of each partition by offset.
fn in_order(log: &[Read]) -> Vec<&Read> {
    let mut ordered: Vec<&Read> = log.iter().collect();
    ordered.sort_by_key(|read| (&read.topic, read.partition, read.offset));
    ordered
}

fn place(read: &Read) -> String {
    let time = read.timestamp_ms.unwrap_or_default();
    format!(
        "{} [{}] @{} t{time}",
        read.topic, read.partition, read.offset
    )
}
