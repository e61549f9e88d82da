//! Secrets in files, as they are mounted and replaced.

use std::fs;
use std::path::{Path, PathBuf};

use crate::harness::workspace;

/// Writes a file of this name into a folder of its own.
pub fn secret(name: &str, text: &str) -> PathBuf {
    let path = workspace::folder("secret").join(name);
    fs::write(&path, text).unwrap();
    path
}

/// Writes a file as a mounted secret is replaced: at once, as another file.
pub fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(&new, path).unwrap();
}

/// A property whose value is read from a file.
pub fn from_file(path: &Path) -> String {
    format!("${{file:{}}}", path.display())
}
