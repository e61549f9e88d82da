//! What `outboxd check` says, and whether `run` says the same.

use std::collections::HashSet;

use serde_json::Value;

use super::case::until;
use crate::harness::SOON;
use crate::harness::relay::{Relay, RelayConfig, said};

/// The answer of `check`.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Nothing is missing; with the warnings.
    Passes(Vec<String>),
    Refuses(Refusal),
}

#[derive(Clone, Debug)]
pub struct Refusal {
    /// What is missing, and the remedies.
    texts: Vec<String>,
    /// The configuration is refused as such: `run` ends.
    pub is_file: bool,
}

impl Refusal {
    /// The same, told by what `migrate` said.
    pub fn because(mut self, text: String) -> Self {
        self.texts.insert(0, text);
        self
    }

    /// One line for the list.
    pub fn line(&self) -> String {
        self.texts.first().cloned().unwrap_or_default()
    }
}

/// Asks; an error where the answer itself is no good: a refusal without a remedy.
pub fn ask(config: &RelayConfig) -> Result<Answer, String> {
    let done = config.outboxd(&["check", "--json"]);
    let code = done.status.code();
    if code == Some(2) {
        return Ok(Answer::Refuses(Refusal {
            texts: vec![said(&done)],
            is_file: true,
        }));
    }
    let report: Value = serde_json::from_slice(&done.stdout)
        .map_err(|error| format!("check: {error}: {}", said(&done)))?;
    let findings = report["findings"].as_array().cloned().unwrap_or_default();
    let of = |outcome: &str| {
        let with = findings.iter().filter(|one| one["outcome"] == outcome);
        with.map(line).collect::<Vec<_>>()
    };
    let missing = of("missing");
    if code == Some(0) && missing.is_empty() {
        return Ok(Answer::Passes(of("warning")));
    }
    let bare = findings.iter().find(|one| {
        let remedy = one["remedy"].as_str().unwrap_or_default();
        one["outcome"] == "missing" && remedy.trim().is_empty()
    });
    match bare {
        Some(finding) => Err(format!("check names no remedy: {}", line(finding))),
        None if missing.is_empty() => Err(format!("check ends with {code:?}: {}", said(&done))),
        None => Ok(Answer::Refuses(Refusal {
            texts: missing,
            is_file: false,
        })),
    }
}

/// Whether a warning says so, whatever else is missing.
pub fn warns(config: &RelayConfig, text: &str) -> Result<bool, String> {
    let done = config.outboxd(&["check", "--json"]);
    let report: Value = serde_json::from_slice(&done.stdout)
        .map_err(|error| format!("check: {error}: {}", said(&done)))?;
    let findings = report["findings"].as_array().into_iter().flatten();
    let mut warnings = findings.filter(|one| one["outcome"] == "warning");
    Ok(warnings.any(|warning| line(warning).contains(text)))
}

fn line(finding: &Value) -> String {
    let text = |key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    format!("{}: {}; {}", text("what"), text("detail"), text("remedy"))
}

/// Starts a relay that `check` refuses and waits until it says so; the relay runs on.
pub async fn refused(config: &RelayConfig, refusal: &Refusal) -> Result<Option<Relay>, String> {
    let mut relay = Relay::start(config);
    if refusal.is_file {
        let ended = tokio::task::block_in_place(|| relay.wait_exit(SOON));
        return match ended.and_then(|status| status.code()) {
            Some(2) => Ok(None),
            other => Err(format!(
                "check refuses the file, and run ends with {other:?}"
            )),
        };
    }
    let told = until("it says so", async || {
        let status = relay.try_status()?;
        let reason = status["reason"].as_str().unwrap_or_default();
        let publishes = status["state"] == "publishing";
        match !publishes && is_same(reason, refusal) {
            true => Ok(()),
            false => Err(format!("{}: {reason}", status["state"])),
        }
    });
    match told.await {
        Ok(()) => Ok(Some(relay)),
        Err(told) => Err(format!(
            "check refuses and run does not with the same reason; check: {}; run: {told}",
            refusal.texts.join(" | ")
        )),
    }
}

/// Most words of the reason stand in what `check` said, or it is the server's own sentence on the very thing.
fn is_same(reason: &str, refusal: &Refusal) -> bool {
    let reason = reason.to_lowercase();
    let is_on = |text: &String| {
        let (what, _) = text.split_once(": ").unwrap_or_default();
        let what = what.to_lowercase();
        !matches!(what.as_str(), "table" | "mode and mark" | "mark") && reason.contains(&what)
    };
    let all = refusal.texts.join(" ").to_lowercase();
    let known: HashSet<&str> = words(&all).collect();
    let (mut found, mut count) = (0, 0);
    for word in words(&reason) {
        count += 1;
        found += usize::from(known.contains(word));
    }
    count > 0 && (found * 10 >= count * 6 || refusal.texts.iter().any(is_on))
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    let parts = text.split(|one: char| !one.is_alphanumeric() && one != '_');
    parts.filter(|word| word.len() > 2)
}
