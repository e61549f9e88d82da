//! Whether the files behind a client's secrets, keys and certificates have changed since it read them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::config::KafkaConfig;

/// What tells one content of a file from the next without reading it: a secret that is mounted by a link is a new
/// file, one that is written in place has a new time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    file: u64,
    bytes: u64,
    changed_at: (i64, i64),
}

impl Stamp {
    /// `None` while there is no such file.
    fn of(path: &Path) -> Option<Self> {
        let file = fs::metadata(path).ok()?;
        Some(Self {
            device: file.dev(),
            file: file.ino(),
            bytes: file.size(),
            changed_at: (file.mtime(), file.mtime_nsec()),
        })
    }
}

/// The files behind a client, as they stood when it was created.
#[derive(Clone, Debug)]
pub(crate) struct ClientFiles(Vec<(PathBuf, Option<Stamp>)>);

impl ClientFiles {
    /// Takes them as they stand now; to be called before the client reads them, so that no change is missed.
    pub(crate) fn of(kafka: &KafkaConfig) -> Self {
        let stamp = |path: PathBuf| {
            let stamp = Stamp::of(&path);
            (path, stamp)
        };
        Self(kafka.files().into_iter().map(stamp).collect())
    }

    /// At least one of them is another than it was.
    pub(crate) fn have_changed(&self) -> bool {
        self.0.iter().any(|(path, stamp)| Stamp::of(path) != *stamp)
    }
}
