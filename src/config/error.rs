//! What is wrong with a configuration, where it stands, and what to do about it.
//!
//! Never holds the value of a secret: a value enters an error only through `shown`.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;

use super::UrlFault;

/// Where a setting stands; sorts by line, the environment last.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// A line of the file, counted from 1.
    Line {
        file: String,
        line: usize,
    },
    /// The file as a whole: a key is missing.
    File {
        file: String,
    },
    Environment {
        variable: String,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line { file, line } => write!(f, "{file}:{line}"),
            Self::File { file } => f.write_str(file),
            Self::Environment { variable } => write!(f, "environment variable {variable}"),
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{at}: unknown key `{key}`; {remedy}")]
    UnknownKey {
        at: Origin,
        key: String,
        remedy: String,
    },
    #[error("{at}: `{key}` {problem}; {remedy}")]
    Refused {
        at: Origin,
        key: String,
        problem: String,
        remedy: String,
    },
    #[error("{file}:{line}:{column}: not valid TOML: {problem}")]
    Syntax {
        file: String,
        line: usize,
        column: usize,
        problem: &'static str,
    },
    #[error("cannot read `{path}`")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("`{path}` is empty: it must hold a secret")]
    EmptyFile { path: PathBuf },
    #[error("`{place}`: the connection URL {fault}")]
    Url { place: String, fault: UrlFault },
}

impl ConfigError {
    fn rank(&self) -> (Origin, usize) {
        match self {
            Self::UnknownKey { at, .. } | Self::Refused { at, .. } => (at.clone(), 0),
            Self::Syntax {
                file, line, column, ..
            } => {
                let (file, line) = (file.clone(), *line);
                (Origin::Line { file, line }, *column)
            }
            Self::Read { path, .. } | Self::EmptyFile { path } => {
                let file = path.display().to_string();
                (Origin::File { file }, 0)
            }
            Self::Url { place, .. } => (
                Origin::File {
                    file: place.clone(),
                },
                0,
            ),
        }
    }
}

/// Everything that is wrong with a configuration, sorted by line; printed one `error: ` line each.
#[derive(Debug)]
pub struct ConfigErrors(Vec<ConfigError>);

impl ConfigErrors {
    pub(super) fn new(mut errors: Vec<ConfigError>) -> Self {
        errors.sort_by_key(ConfigError::rank);
        Self(errors)
    }
}

impl From<ConfigError> for ConfigErrors {
    fn from(error: ConfigError) -> Self {
        Self(vec![error])
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "error: {error}")?;
            if let Some(cause) = error.source() {
                write!(f, "\n  caused by: {cause}")?;
            }
        }
        Ok(())
    }
}

impl Error for ConfigErrors {}

/// What is wrong with one value, before it is known where it stands.
///
/// Reads as one sentence behind the key: "`key` `problem`; `remedy`".
pub(super) struct Problem {
    pub problem: String,
    pub remedy: String,
}

impl Problem {
    pub(crate) fn new(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }

    pub(crate) fn at(self, at: Origin, key: &str) -> ConfigError {
        ConfigError::Refused {
            at,
            key: key.to_owned(),
            problem: self.problem,
            remedy: self.remedy,
        }
    }
}

impl From<UrlFault> for Problem {
    fn from(fault: UrlFault) -> Self {
        Self::new(fault.problem, fault.remedy)
    }
}

/// A value in quotes for a message, unless it looks like a URL or credentials, or is long.
///
/// Only for keys that hold no secret: this guards against one that was put into the wrong place.
pub(super) fn shown(text: &str) -> String {
    if is_harmless(text) {
        format!("{text:?}")
    } else {
        "(value not shown)".to_owned()
    }
}

/// The name of a key, guarded in the same way.
pub(super) fn shown_name(name: &str) -> String {
    if is_harmless(name) {
        name.escape_default().to_string().replace("\\\"", "\"")
    } else {
        "…".to_owned()
    }
}

fn is_harmless(text: &str) -> bool {
    !text.contains("://") && !text.contains('@') && text.len() <= 80
}
