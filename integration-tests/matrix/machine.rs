//! What this machine lets a fault use, tried out rather than assumed.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::harness::postgres::Postgres;
use crate::harness::workspace;

/// Something that a scenario can't do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A mount namespace of its own, to give the relay its own `/etc/hosts`.
    MountNamespace,
    /// A tmpfs of a limited size.
    SmallDisk,
    Cgroup(&'static str),
    Faketime,
    FullDevice,
    Prlimit,
    PgRecvlogical,
}

impl Need {
    /// What is missing, in words; `None` when it is there.
    pub fn lacks(self) -> Option<String> {
        let (is_there, missing) = match self {
            Self::MountNamespace => (
                runs("unshare -m true"),
                "`unshare -m` is not allowed".to_owned(),
            ),
            Self::SmallDisk => (
                runs("unshare -m sh -c 'mount -t tmpfs -o size=1m none /mnt'"),
                "a tmpfs can't be mounted".to_owned(),
            ),
            Self::Cgroup(controller) => (
                super::cgroup::Cgroup::is_possible(controller),
                format!("no cgroup with `{controller}` can be made"),
            ),
            Self::Faketime => (
                faketime().is_some(),
                "libfaketime is not installed (Debian: `apt install faketime`)".to_owned(),
            ),
            Self::FullDevice => (
                Path::new("/dev/full").exists(),
                "there is no /dev/full".to_owned(),
            ),
            Self::Prlimit => (
                runs("prlimit --nofile=40 true"),
                "`prlimit` is missing".to_owned(),
            ),
            Self::PgRecvlogical => (
                Postgres::client_program("pg_recvlogical").is_some(),
                "`pg_recvlogical` of PostgreSQL 15 is not installed".to_owned(),
            ),
        };
        (!is_there).then_some(missing)
    }
}

/// The library that gives a process a clock of its own.
pub fn faketime() -> Option<String> {
    let folders = [
        "/usr/lib/x86_64-linux-gnu/faketime",
        "/usr/lib/aarch64-linux-gnu/faketime",
        "/usr/lib64/faketime",
    ];
    let files = folders
        .iter()
        .map(|folder| format!("{folder}/libfaketimeMT.so.1"));
    files.into_iter().find(|file| Path::new(file).exists())
}

/// Processors, memory and system, without a name that tells whose machine it is.
pub fn class() -> String {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = memory
        .split_whitespace()
        .nth(1)
        .and_then(|kib| kib.parse::<u64>().ok());
    let gib = kib.unwrap_or_default() >> 20;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.split('-').next().unwrap_or_default().trim();
    let rights = if workspace::is_root() {
        "root"
    } else {
        "an ordinary user"
    };
    format!(
        "{processors} processors, {gib} GiB, {} {release}, as {rights}",
        std::env::consts::OS
    )
}

fn runs(script: &str) -> bool {
    let mut command = Command::new("sh");
    command.args(["-c", script]).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
