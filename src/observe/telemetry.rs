//! What the relay says in words: its log, and the chain of an error as one text.
//!
//! The log goes to standard output through a bounded queue and a thread of its own, so that a pipe that nobody
//! reads blocks that thread and never the relay; what finds the queue full is dropped and counted.

mod lines;
mod told;

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use crate::config::{LogConfig, LogFormat};

pub(crate) use lines::{LogGuard, lines_dropped};
pub(crate) use told::Told;

/// Crates that talk more than a handful of times an hour; `log.level` may name them again.
const QUIET: &str = "librdkafka=warn,rdkafka=warn,tokio_postgres=warn,hyper=warn,ureq=warn";

/// The log can't be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TelemetryError {
    #[error(
        "cannot use `{level}` as `log.level`: expected error, warn, info, debug or trace, \
         or filters such as `info,outboxd::publish=debug`"
    )]
    Level { level: String },
    #[error("cannot start the thread that writes the log")]
    Thread(#[source] std::io::Error),
    #[error("cannot install the log, which is there already")]
    Installed(#[source] TryInitError),
}

/// Starts the log of this process; the guard writes what is queued when it is dropped.
///
/// Errors: `Level` for a filter that says nothing or can't be read.
pub(crate) fn start(config: &LogConfig) -> Result<LogGuard, TelemetryError> {
    let filter = filter(&config.level)?;
    let (writer, guard) = lines::start(std::io::stdout()).map_err(TelemetryError::Thread)?;
    let registry = tracing_subscriber::registry().with(filter);
    let installed = match config.format {
        LogFormat::Json => {
            let layer = tracing_subscriber::fmt::layer()
                .json()
                .flatten_event(true)
                .with_span_list(false)
                .with_writer(writer);
            registry.with(layer).try_init()
        }
        LogFormat::Human => {
            let has_colours =
                std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            let layer = tracing_subscriber::fmt::layer()
                .with_ansi(has_colours)
                .with_writer(writer);
            registry.with(layer).try_init()
        }
    };
    installed.map_err(TelemetryError::Installed)?;
    Ok(guard)
}

/// Reads `log.level`; a single word must be a level, else a misspelt one would silence everything.
fn filter(level: &str) -> Result<EnvFilter, TelemetryError> {
    let refused = || TelemetryError::Level {
        level: level.to_owned(),
    };
    let mut parts = level.split(',').map(str::trim);
    let is_level = |part: &str| !part.is_empty() && part.parse::<LevelFilter>().is_ok();
    let reads = parts.all(|part| part.contains(['=', '[']) || is_level(part));
    if !reads {
        return Err(refused());
    }
    EnvFilter::builder()
        .parse(format!("{QUIET},{level}"))
        .map_err(|_| refused())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_or_filters_are_read() {
        for level in [
            "info",
            "WARN",
            "off",
            "info,outboxd::publish=debug",
            "librdkafka=debug",
        ] {
            assert!(filter(level).is_ok(), "{level}");
        }
    }

    #[test]
    fn a_misspelt_level_is_refused() {
        for level in ["infoo", "", "info,lease", "outboxd=loud", "info,"] {
            assert!(filter(level).is_err(), "{level}");
        }
    }

    #[test]
    fn a_named_crate_may_talk_again() {
        let text = filter("info,librdkafka=debug")
            .expect("a filter")
            .to_string();
        assert!(text.contains("librdkafka=debug") && !text.contains("librdkafka=warn"));
    }
}
