//! What earlier runs of the same commit have shown, in a file below `target/`, so that a run goes on.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::case::Outcome;
use crate::harness::workspace::commit;

/// One case that was run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    pub case: String,
    pub seconds: f64,
    pub outcome: Outcome,
}

pub struct Results {
    file: PathBuf,
    entries: BTreeMap<String, Entry>,
}

impl Results {
    /// Takes up what held or was refused; what was broken begins anew.
    pub fn open(is_fresh: bool) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/shapes");
        fs::create_dir_all(&folder).expect("create target/shapes");
        let file = folder.join(format!("{}.jsonl", commit()));
        let text = match is_fresh {
            true => String::new(),
            false => fs::read_to_string(&file).unwrap_or_default(),
        };
        fs::write(&file, "").expect("write the results");
        let mut results = Self {
            file,
            entries: BTreeMap::new(),
        };
        let entries = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        for entry in entries {
            let entry: Entry = entry;
            if !matches!(entry.outcome, Outcome::Broken(_)) {
                results.add(entry);
            }
        }
        results
    }

    pub fn add(&mut self, entry: Entry) {
        let line = serde_json::to_string(&entry).expect("numbers and text are JSON");
        let file = fs::File::options().append(true).open(&self.file);
        file.and_then(|mut file| writeln!(file, "{line}"))
            .expect("write the results");
        self.entries.insert(entry.case.clone(), entry);
    }

    pub fn of(&self, case: &str) -> Option<&Entry> {
        self.entries.get(case)
    }
}
