//! The folder of this test run, its ports and its processes.
//!
//! Owns the promise that nothing is left behind: every process writes a `pid` file into its folder, and a small
//! shell (the janitor) waits for this process to end, kills what is listed and removes the folder. It sees the end
//! by its standard input closing, so it also works after `kill -9` and Ctrl-C.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

const JANITOR: &str = r#"
trap '' HUP INT TERM
cat >/dev/null
each() { for file in "$0"/*/pid; do [ -f "$file" ] && read -r signal pid <"$file" && "$1" "$signal" "$pid"; done; }
end() { kill -CONT "$2" 2>/dev/null; kill "-$1" "$2" 2>/dev/null; }
alive() { kill -0 "$2" 2>/dev/null && running=yes; }
destroy() { kill -KILL "$2" 2>/dev/null; }
each end
for attempt in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    running=no; each alive
    [ "$running" = no ] && break
    sleep 0.2
done
each destroy
rm -rf "$0"
[ -d "$0" ] && sleep 1 && rm -rf "$0"
"#;

/// The user that servers run as when the tests run as root: PostgreSQL refuses root.
const NOBODY: u32 = 65534;

/// Outside the ports that Linux gives to outgoing connections (32768 to 60999), so that a stopped server finds its
/// port still free.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

static RUN: LazyLock<PathBuf> = LazyLock::new(|| {
    remove_stale_runs();
    let run = std::env::temp_dir().join(format!("outboxd-tests-{}", std::process::id()));
    fs::create_dir_all(&run).expect("create the folder of this run");
    let janitor = Command::new("sh")
        .args(["-c", JANITOR])
        .arg(&run)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .expect("start the janitor");
    // Its standard input closes when this process ends, and not before.
    std::mem::forget(janitor);
    run
});

static FOLDERS: AtomicU32 = AtomicU32::new(0);
static PORTS_GIVEN: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(Mutex::default);

/// Creates a folder of this run, removed when the tests end.
pub fn folder(name: &str) -> PathBuf {
    let number = FOLDERS.fetch_add(1, Ordering::Relaxed);
    let folder = RUN.join(format!("{name}-{number}"));
    fs::create_dir(&folder).expect("create a folder for a server");
    folder
}

/// Finds a port that nobody listens on and that no other test was given.
pub fn free_port() -> u16 {
    let mut given = PORTS_GIVEN
        .lock()
        .expect("no test panics while it holds the ports");
    loop {
        let port = fastrand::u16(PORTS);
        if !given.contains(&port) && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            given.insert(port);
            return port;
        }
    }
}

/// The folder into which `make servers` puts Kafka and PostgreSQL.
pub fn servers() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(".servers")
}

/// Whether the tests run as root.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// Makes a command run as an ordinary user when the tests run as root.
pub fn unprivileged(command: &mut Command) -> &mut Command {
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

/// Gives a folder to the user of `unprivileged`.
pub fn hand_over(folder: &Path) {
    if is_root() {
        std::os::unix::fs::chown(folder, Some(NOBODY), Some(NOBODY))
            .expect("chown a server's folder");
    }
}

/// Whether the user of `unprivileged` can run programs below this folder.
pub fn is_reachable(folder: &Path) -> bool {
    !is_root()
        || folder
            .ancestors()
            .all(|part| fs::metadata(part).is_ok_and(|part| part.mode() & 0o1 != 0))
}

/// A child process in a folder of this run, killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pid_file: PathBuf,
}

impl Process {
    /// Starts the command with its output appended to `<folder>/<log>`; `end` is the signal that ends it for good.
    pub fn start(command: &mut Command, folder: &Path, log: &str, end: &str) -> Self {
        let log = File::options()
            .create(true)
            .append(true)
            .open(folder.join(log))
            .expect("open a log");
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("share a log"))
            .stderr(log)
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("start {:?}: {error}", command.get_program()));
        let pid_file = folder.join("pid");
        fs::write(&pid_file, format!("{end} {}\n", child.id())).expect("write a pid file");
        Self { child, pid_file }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by its name, such as `TERM`; does nothing to a process that has ended.
    pub fn signal(&mut self, name: &str) {
        if self.exited().is_none() {
            let pid = self.child.id().to_string();
            let sent = Command::new("sh")
                .args(["-c", r#"kill "-$0" "$1""#, name, &pid])
                .status();
            assert!(
                sent.is_ok_and(|status| status.success()) || self.exited().is_some(),
                "send {name} to {pid}"
            );
        }
    }

    /// The exit status, if it has ended.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("ask for a child's status")
    }

    /// Waits for the end; `None` when it still runs after `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> Option<ExitStatus> {
        let started_at = Instant::now();
        loop {
            match self.exited() {
                None if started_at.elapsed() < timeout => {
                    std::thread::sleep(Duration::from_millis(10))
                }
                status => return status,
            }
        }
    }

    /// Ends it with SIGKILL, frozen or not.
    pub fn kill(&mut self) -> ExitStatus {
        let _ = self.child.kill();
        self.child.wait().expect("wait for a killed child")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_file(&self.pid_file);
    }
}

/// The last lines of a log, for panics.
pub fn tail(log: &Path, lines: usize) -> String {
    let text = fs::read(log)
        .map(|text| String::from_utf8_lossy(&text).into_owned())
        .unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Copies a folder with everything in it, keeping modes.
pub fn copy_folder(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(
        copied.is_ok_and(|status| status.success()),
        "copy {} to {}",
        from.display(),
        to.display()
    );
}

/// The commit under test, with a `+` where files were changed since.
pub fn commit() -> String {
    let hash = git(&["rev-parse", "--short", "HEAD"]);
    let is_changed = !git(&[
        "status",
        "--porcelain",
        "--untracked-files=no",
        "--",
        ".",
        ":!docs",
    ])
    .is_empty();
    format!("{hash}{}", if is_changed { "+" } else { "" })
}

fn git(arguments: &[&str]) -> String {
    let output = Command::new("git")
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    text.ok()
        .filter(|text| !text.is_empty())
        .unwrap_or_default()
}

/// Removes folders whose test process is gone and whose janitor was killed with it.
fn remove_stale_runs() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else {
        return;
    };
    for entry in entries.filter_map(io::Result::ok) {
        let name = entry.file_name();
        let Some(pid) = name
            .to_str()
            .and_then(|name| name.strip_prefix("outboxd-tests-"))
        else {
            continue;
        };
        let is_old = entry
            .metadata()
            .and_then(|folder| folder.modified())
            .is_ok_and(|at| at.elapsed().is_ok_and(|age| age > Duration::from_secs(60)));
        if is_old && !Path::new("/proc").join(pid).exists() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
