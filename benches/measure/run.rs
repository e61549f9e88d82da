//! One whole run, as a Markdown document and as a file of JSON.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, json};

use crate::claims;
use crate::report::Section;

pub struct Run {
    pub date: String,
    pub took: Duration,
    pub machine: String,
    pub command: String,
    pub rounds: usize,
    pub sections: Vec<Section>,
}

impl Run {
    pub fn markdown(&self) -> String {
        let sections: Vec<String> = self.sections.iter().map(Section::markdown).collect();
        format!(
            "## outboxd measured\n\n{}, `{}`, {} min, {}.\n\
             Median of {} rounds in turn, with the smallest and the largest{}.\n\n{}\n{}",
            self.date,
            self.command,
            self.took.as_secs().div_ceil(60),
            self.machine,
            self.rounds,
            build(),
            claims::markdown(&self.sections),
            sections.join("\n")
        )
    }

    /// Writes `target/bench/DATE.json`, and the document beside it as `.md`; gives the latter's path.
    pub fn write(&self) -> anyhow::Result<PathBuf> {
        let sections: Map<_, _> = self
            .sections
            .iter()
            .map(|section| (section.name.clone(), section.json()))
            .collect();
        let document = json!({
            "date": self.date,
            "seconds": self.took.as_secs(),
            "machine": self.machine,
            "command": self.command,
            "optimised": !cfg!(debug_assertions),
            "claims": claims::json(&self.sections),
            "sections": sections,
        });
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench");
        fs::create_dir_all(&folder)?;
        let path = folder.join(self.date.replace(':', ""));
        fs::write(path.with_extension("json"), format!("{document:#}\n"))?;
        let path = path.with_extension("md");
        fs::write(&path, self.markdown())?;
        Ok(path)
    }
}

/// What must be said of a program that was not built to be fast.
fn build() -> &'static str {
    match cfg!(debug_assertions) {
        true => "; **built without optimisation, nothing counts**",
        false => "",
    }
}
