//! What earlier runs of the same commit and size have shown, in a file below `target/`, so that a run goes on.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::harness::workspace::commit;
use crate::matrix::scene::Size;
use crate::matrix::tally::Tally;

/// One round of one row.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    pub row: u8,
    pub seconds: f64,
    pub tally: Tally,
}

/// All rounds of each row: how many, their seconds, their sum.
#[derive(Clone, Debug, Default)]
pub struct Sum {
    pub rounds: usize,
    pub seconds: f64,
    pub tally: Tally,
}

pub struct Results {
    file: PathBuf,
    sums: BTreeMap<u8, Sum>,
}

impl Results {
    /// Takes up what green rounds of this commit have shown; a red row begins anew.
    pub fn open(size: Size, is_fresh: bool) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/faults");
        fs::create_dir_all(&folder).expect("create target/faults");
        let file = folder.join(format!("{}-{size:?}.jsonl", commit()).to_lowercase());
        let text = if is_fresh {
            String::new()
        } else {
            fs::read_to_string(&file).unwrap_or_default()
        };
        let entries: Vec<Entry> = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        let mut results = Self {
            file,
            sums: BTreeMap::new(),
        };
        fs::write(&results.file, "").expect("write the results");
        let red: Vec<u8> = entries
            .iter()
            .filter(|entry| !entry.tally.is_green())
            .map(|entry| entry.row)
            .collect();
        for entry in entries
            .into_iter()
            .filter(|entry| !red.contains(&entry.row))
        {
            results.add(entry);
        }
        results
    }

    pub fn add(&mut self, entry: Entry) {
        let line = serde_json::to_string(&entry).expect("numbers and text are JSON");
        let file = fs::File::options().append(true).open(&self.file);
        file.and_then(|mut file| writeln!(file, "{line}"))
            .expect("write the results");
        let sum = self.sums.entry(entry.row).or_default();
        sum.rounds += 1;
        sum.seconds += entry.seconds;
        sum.tally.add(entry.tally);
    }

    pub fn of(&self, row: u8) -> Option<&Sum> {
        self.sums.get(&row)
    }

    pub fn rounds(&self, row: u8) -> usize {
        self.of(row).map_or(0, |sum| sum.rounds)
    }

    pub fn is_red(&self, row: u8) -> bool {
        self.of(row).is_some_and(|sum| !sum.tally.is_green())
    }

    pub fn seconds(&self) -> f64 {
        self.sums.values().map(|sum| sum.seconds).sum()
    }
}
