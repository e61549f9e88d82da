//! Texts that can't print themselves, and where they are read.

use std::fmt;
use std::path::{Path, PathBuf};

use super::{ConfigError, ConnectOptions};

/// A text that can't print itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The secret itself, for the one place that sends it.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// Where the connection URL comes from.
#[derive(Clone, Debug)]
pub enum UrlSource {
    Inline(Secret),
    File(PathBuf),
}

impl UrlSource {
    /// What the URL says now: a file is read again at each call, so that a rotated secret is seen.
    ///
    /// Errors: the file can't be read or is empty; `Url` says what is wrong with what it holds.
    pub fn options(&self) -> Result<ConnectOptions, ConfigError> {
        let (url, place) = match self {
            Self::Inline(url) => (url.clone(), "source.url".to_owned()),
            Self::File(path) => (read_secret(path)?, path.display().to_string()),
        };
        ConnectOptions::parse(&url).map_err(|fault| ConfigError::Url { place, fault })
    }
}

/// Reads a file that holds one secret and at most line ends behind it.
pub(super) fn read_secret(path: &Path) -> Result<Secret, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    let secret = text.trim_end_matches(['\n', '\r']);
    if secret.is_empty() {
        return Err(ConfigError::EmptyFile {
            path: path.to_owned(),
        });
    }
    Ok(Secret::new(secret.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_file_is_read_at_each_call_without_its_newline() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("url");
        let source = UrlSource::File(path.clone());
        std::fs::write(&path, "postgres://a@h/d\r\n").unwrap();
        assert_eq!(source.options().unwrap().user, "a");
        std::fs::write(&path, "postgresql://b@h/d").unwrap();
        assert_eq!(source.options().unwrap().user, "b");
    }

    #[test]
    fn a_missing_empty_or_foreign_url_file_is_named_and_its_content_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("url");
        let source = UrlSource::File(path.clone());
        let error = || source.options().unwrap_err().to_string();
        let name = path.display().to_string();
        assert_eq!(error(), format!("cannot read `{name}`"));
        std::fs::write(&path, "\n").unwrap();
        assert_eq!(error(), format!("`{name}` is empty: it must hold a secret"));
        std::fs::write(&path, "mysql://root:hunter2@h").unwrap();
        assert!(error().contains(&name) && !error().contains("hunter2"));
    }
}
