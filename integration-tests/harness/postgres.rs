//! A throwaway PostgreSQL cluster, of any pinned major version.
//!
//! Shared clusters serve tests that only use a database of their own; whoever stops, kills or reconfigures a server
//! starts a private one.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::OnceCell;
use tokio_postgres::{Client, NoTls};

use super::certificates::Identity;
use super::proxy::Proxy;
use super::workspace::{self, Process};

/// Every major version that is supported.
pub const MAJORS: [u32; 5] = [14, 15, 16, 17, 18];

/// The version that every test runs on.
pub const USUAL: u32 = 15;

/// Debian's own PostgreSQL 15, preferred because it brings psql, pgbench and pg_recvlogical.
const DEBIAN_15: &str = "/usr/lib/postgresql/15/bin";

/// `fsync = off` is safe here: servers crash, the machine does not, and the system keeps written pages.
const SETTINGS: &[(&str, &str)] = &[
    ("wal_level", "logical"),
    ("max_wal_senders", "100"),
    ("max_replication_slots", "1000"),
    ("max_prepared_transactions", "50"),
    ("max_connections", "300"),
    ("shared_buffers", "64MB"),
    ("max_wal_size", "2GB"),
    ("fsync", "off"),
    ("listen_addresses", "127.0.0.1"),
    ("log_line_prefix", "%m [%p] %d "),
    ("timezone", "UTC"),
];

static DATABASES: AtomicU32 = AtomicU32::new(0);

/// How a server is told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Waits for the clients to leave.
    Smart,
    /// Disconnects the clients, writes a checkpoint, waits for walsenders to be acknowledged.
    Fast,
    /// Ends at once; the next start recovers from the write-ahead log.
    Immediate,
}

/// A running or stopped cluster, removed when dropped.
#[derive(Debug)]
pub struct Postgres {
    pub major: u32,
    pub port: u16,
    folder: PathBuf,
    bin: PathBuf,
    process: Option<Process>,
}

/// A database of one test.
#[derive(Clone, Debug)]
pub struct Database {
    pub name: String,
    pub url: String,
}

impl Database {
    pub async fn client(&self) -> Client {
        connect(&self.url).await
    }

    /// The port of its server.
    pub fn port(&self) -> u16 {
        let (_, rest) = self.url.split_once("@127.0.0.1:").expect("a URL over TCP");
        let (port, _) = rest.split_once('/').expect("a URL with a database");
        port.parse().expect("a port")
    }

    /// The way to it through a proxy that can tell which connection replicates.
    pub fn url_through(&self, proxy: &Proxy) -> String {
        let (port, name) = (proxy.port, &self.name);
        format!("postgres://postgres@127.0.0.1:{port}/{name}?sslmode=disable")
    }
}

/// Migrates as the command does, in this process, over a session of the relay's own kind.
pub async fn migrate(config: &outboxd::config::Config) {
    let options = config.source.url.options().expect("a URL");
    let session = outboxd::postgres::connect(&options, "test").await;
    let client = session.expect("a session").client;
    let (options, mut out) = (Default::default(), std::io::sink());
    let migrated = outboxd::commands::migrate::run(&client, config, &options, &mut out).await;
    migrated.expect("migrate");
}

/// Connects, and drives the connection in a task.
pub async fn connect(url: &str) -> Client {
    try_connect(url)
        .await
        .unwrap_or_else(|error| panic!("connect to {url}: {error}"))
}

/// `connect` for servers that may be away.
pub async fn try_connect(url: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

impl Postgres {
    /// The cluster of this major version that tests share. Never stop it, never change its settings.
    pub async fn shared(major: u32) -> &'static Self {
        static SHARED: LazyLock<[OnceCell<Postgres>; MAJORS.len()]> =
            LazyLock::new(Default::default);
        let index = MAJORS
            .iter()
            .position(|other| *other == major)
            .expect("a supported major version");
        SHARED[index].get_or_init(async || Self::start(major)).await
    }

    /// Starts a private cluster.
    pub fn start(major: u32) -> Self {
        Self::start_with(major, &[])
    }

    /// Starts a private cluster with settings beyond the usual ones, which they override.
    pub fn start_with(major: u32, extra: &[(&str, &str)]) -> Self {
        let folder = workspace::folder(&format!("pg{major}"));
        workspace::hand_over(&folder);
        let mut cluster = Self {
            major,
            port: workspace::free_port(),
            bin: programs(major),
            folder,
            process: None,
        };
        cluster.initialize();
        cluster.configure(SETTINGS);
        let port = cluster.port.to_string();
        let socket_folder = cluster.folder.display().to_string();
        cluster.configure(&[("port", &port), ("unix_socket_directories", &socket_folder)]);
        cluster.configure(extra);
        cluster.restart();
        cluster
    }

    /// Starts a hot standby that streams from this cluster; `None` where `pg_basebackup` is not installed.
    pub fn start_standby(&self) -> Option<Self> {
        let program = Self::client_program("pg_basebackup")?;
        let folder = workspace::folder(&format!("pg{}-standby", self.major));
        workspace::hand_over(&folder);
        let mut standby = Self {
            major: self.major,
            port: workspace::free_port(),
            bin: self.bin.clone(),
            folder,
            process: None,
        };
        let copied = workspace::unprivileged(&mut Command::new(program))
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string()])
            .args(["-U", "postgres", "-c", "fast", "-X", "stream", "-R", "-D"])
            .arg(standby.data())
            .output()
            .expect("run pg_basebackup");
        let said = String::from_utf8_lossy(&copied.stderr);
        assert!(copied.status.success(), "pg_basebackup: {said}");
        let socket_folder = standby.folder.display().to_string();
        let port = standby.port.to_string();
        standby.configure(&[("port", &port), ("unix_socket_directories", &socket_folder)]);
        standby.restart();
        Some(standby)
    }

    /// Copies the data folder of this stopped cluster, as a cold backup does.
    pub fn back_up(&self) -> PathBuf {
        assert!(self.process.is_none(), "the server runs");
        let backup = workspace::folder("backup").join("data");
        copy(&self.data(), &backup);
        backup
    }

    /// Puts a backup in the place of this stopped cluster's data.
    pub fn restore(&self, backup: &Path) {
        assert!(self.process.is_none(), "the server runs");
        fs::remove_dir_all(self.data()).expect("remove the data folder");
        copy(backup, &self.data());
    }

    /// Prepares a standby from a backup of this cluster, for versions whose `pg_basebackup` is not installed; it is
    /// started by `restart`.
    pub fn standby_from(&self, backup: &Path, settings: &[(&str, &str)]) -> Self {
        let folder = workspace::folder(&format!("pg{}-standby", self.major));
        workspace::hand_over(&folder);
        let standby = Self {
            major: self.major,
            port: workspace::free_port(),
            bin: self.bin.clone(),
            folder,
            process: None,
        };
        standby.restore_first(backup);
        let socket_folder = standby.folder.display().to_string();
        let (port, primary) = (standby.port.to_string(), self.port);
        let primary = format!("host=127.0.0.1 port={primary} user=postgres dbname=postgres");
        standby.configure(&[
            ("port", &port),
            ("unix_socket_directories", &socket_folder),
            ("primary_conninfo", &primary),
        ]);
        standby.configure(settings);
        standby
    }

    /// A backup by `pg_basebackup` has no slots.
    fn restore_first(&self, backup: &Path) {
        copy(backup, &self.data());
        let slots = self.data().join("pg_replslot");
        for slot in fs::read_dir(slots).expect("list the slots").flatten() {
            fs::remove_dir_all(slot.path()).expect("remove a slot");
        }
        fs::write(self.data().join("standby.signal"), "").expect("make it a standby");
    }

    /// Appends settings to the configuration; they hold from the next start or `reload`.
    pub fn configure(&self, settings: &[(&str, &str)]) {
        let path = self.data().join("postgresql.conf");
        let mut file = fs::File::options()
            .append(true)
            .open(path)
            .expect("open postgresql.conf");
        for (name, value) in settings {
            writeln!(file, "{name} = '{value}'").expect("write postgresql.conf");
        }
    }

    /// Replaces `pg_hba.conf`, which trusts everybody at first; holds from `reload`.
    pub fn configure_access(&self, hba: &str) {
        fs::write(self.data().join("pg_hba.conf"), hba).expect("write pg_hba.conf");
    }

    /// Gives the server a certificate and the authority of its clients' certificates; holds from `reload`.
    pub fn configure_tls(&self, server: &Identity, clients: &Identity) {
        server.write(&self.data(), "server");
        clients.write(&self.data(), "clients");
        self.configure(&[("ssl", "on"), ("ssl_ca_file", "clients.crt")]);
    }

    /// Makes the server read its configuration again.
    pub fn reload(&mut self) {
        self.process
            .as_mut()
            .expect("the server runs")
            .signal("HUP");
    }

    /// Starts a stopped or killed cluster on its old port and waits until it takes connections.
    pub fn restart(&mut self) {
        assert!(self.process.is_none(), "the server runs");
        let mut command = Command::new(self.bin.join("postgres"));
        workspace::unprivileged(&mut command)
            .arg("-D")
            .arg(self.data())
            .env("LC_ALL", "C");
        let mut process = Process::start(&mut command, &self.folder, "log", "QUIT");
        super::wait_until_blocking("PostgreSQL is ready", super::SOON, || {
            if let Some(status) = process.exited() {
                panic!(
                    "PostgreSQL ended with {status}: {}",
                    workspace::tail(&self.log_file(), 20)
                );
            }
            let state = fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
            // The eighth line is the state, the first the process: a file of an earlier run does not count.
            let mut lines = state.lines();
            let is_own = lines.next() == Some(process.id().to_string().as_str());
            match lines.nth(6) {
                Some(state) if is_own && matches!(state.trim(), "ready" | "standby") => Ok(()),
                state => Err(format!("{state:?}")),
            }
        });
        self.process = Some(process);
    }

    /// Stops the server as `pg_ctl stop -m` does and says how long it took; panics after 90 seconds.
    pub fn stop(&mut self, mode: Stop) -> Duration {
        let mut process = self.process.take().expect("the server runs");
        let started_at = Instant::now();
        process.signal(match mode {
            Stop::Smart => "TERM",
            Stop::Fast => "INT",
            Stop::Immediate => "QUIT",
        });
        let ended = process.wait(Duration::from_secs(90));
        assert!(
            ended.is_some(),
            "PostgreSQL did not stop: {}",
            workspace::tail(&self.log_file(), 20)
        );
        started_at.elapsed()
    }

    /// Kills the postmaster with SIGKILL; its children notice and end.
    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("the server runs");
        let pid = process.id();
        process.kill();
        drop(process);
        // The next start is refused while an old backend holds the shared memory.
        super::wait_until_blocking(
            "the backends have ended",
            super::SOON,
            || match children_in(&self.data(), pid) {
                0 => Ok(()),
                count => Err(format!("{count} still run")),
            },
        );
    }

    /// Stops every process of the server with SIGSTOP, backends included.
    pub fn freeze(&self) {
        self.signal_all("STOP");
    }

    pub fn thaw(&self) {
        self.signal_all("CONT");
    }

    /// Process id of the postmaster.
    pub fn id(&self) -> u32 {
        self.process.as_ref().expect("the server runs").id()
    }

    /// `postgres://` URL over TCP.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Folder of the unix socket.
    pub fn socket_folder(&self) -> &Path {
        &self.folder
    }

    pub async fn client(&self, database: &str) -> Client {
        connect(&self.url(database)).await
    }

    /// Creates an empty database whose name begins with `prefix` and is used by nobody else.
    pub async fn create_database(&self, prefix: &str) -> Database {
        let name = format!("{prefix}_{}", DATABASES.fetch_add(1, Ordering::Relaxed));
        let client = self.client("postgres").await;
        let sql = format!("CREATE DATABASE {name} TEMPLATE template0");
        client.batch_execute(&sql).await.expect("create a database");
        Database {
            url: self.url(&name),
            name,
        }
    }

    /// A client program of Debian's PostgreSQL 15, such as `pg_recvlogical`, or `None` where it is not installed.
    pub fn client_program(name: &str) -> Option<PathBuf> {
        let program = Path::new(DEBIAN_15).join(name);
        program.exists().then_some(program)
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// The data folder.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn log_file(&self) -> PathBuf {
        self.folder.join("log")
    }

    fn initialize(&self) {
        let mut command = Command::new(self.bin.join("initdb"));
        let done = workspace::unprivileged(&mut command)
            .args([
                "-A",
                "trust",
                "-U",
                "postgres",
                "-E",
                "UTF8",
                "--locale=C",
                "--no-sync",
                "-D",
            ])
            .arg(self.data())
            .env("LC_ALL", "C")
            .current_dir(&self.folder)
            .output()
            .expect("run initdb");
        assert!(
            done.status.success(),
            "initdb: {}",
            String::from_utf8_lossy(&done.stderr)
        );
    }

    fn signal_all(&self, name: &str) {
        let pid = self.id();
        // The postmaster first, so that it starts no child unseen. A child may end in between: autovacuum's do.
        let script = r#"
            kill "-$0" "$1" || exit
            for child in $(cat "/proc/$1/task/$1/children"); do
                kill "-$0" "$child" 2>&- || [ ! -e "/proc/$child" ] || exit
            done"#;
        let sent = Command::new("sh")
            .args(["-c", script, name, &pid.to_string()])
            .status();
        assert!(
            sent.is_ok_and(|status| status.success()),
            "send {name} to the server"
        );
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "--- PostgreSQL {} ended with this log ---\n{}",
                self.major,
                workspace::tail(&self.log_file(), 40)
            );
        }
        if let Some(mut process) = self.process.take() {
            process.signal("CONT");
            process.signal("QUIT");
            process.wait(Duration::from_secs(10));
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Copies a data folder with its owner and rights, which PostgreSQL insists on.
fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(
        copied.is_ok_and(|status| status.success()),
        "copy {}",
        from.display()
    );
}

/// The folder with `initdb` and `postgres` of a major version, runnable by the server's user.
fn programs(major: u32) -> PathBuf {
    let debian = Path::new(DEBIAN_15);
    let programs = ["initdb", "postgres", "psql", "pg_recvlogical"];
    if major == 15 && programs.iter().all(|name| debian.join(name).exists()) {
        return debian.to_path_buf();
    }
    let name = format!("postgresql-{major}");
    let fetched = workspace::servers().join(&name);
    assert!(
        fetched.join("bin/postgres").exists(),
        "`{}` is missing: run `make servers`",
        fetched.display()
    );
    if workspace::is_reachable(&fetched) {
        return fetched.join("bin");
    }
    // A checkout in /root, say: the server's user can't reach it.
    static COPIES: std::sync::Mutex<Vec<(u32, PathBuf)>> = std::sync::Mutex::new(Vec::new());
    let mut copies = COPIES.lock().expect("no test panics while it copies");
    if let Some((_, bin)) = copies.iter().find(|(other, _)| *other == major) {
        return bin.clone();
    }
    let copy = workspace::folder("programs").join(&name);
    workspace::copy_folder(&fetched, &copy);
    copies.push((major, copy.join("bin")));
    copy.join("bin")
}

/// Counts processes that still run in a data folder, the dead postmaster excepted.
fn children_in(data: &Path, postmaster: u32) -> usize {
    let Ok(processes) = fs::read_dir("/proc") else {
        return 0;
    };
    processes
        .filter_map(Result::ok)
        .filter(|process| process.file_name().to_str() != Some(postmaster.to_string().as_str()))
        .filter(|process| fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd == data))
        .count()
}
