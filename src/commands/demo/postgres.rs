//! A throwaway PostgreSQL: made in a temporary folder, gone when dropped.
//!
//! Never touches another server: it is stopped by its own pid file.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio_postgres::{Client, NoTls};

use super::error::DemoError;
use super::scratch::Scratch;

const START_SECONDS_MAX: u64 = 30;

/// A user and group that PostgreSQL is run as.
#[derive(Clone, Copy, Debug)]
struct Owner {
    uid: u32,
    gid: u32,
}

impl Owner {
    /// The user `nobody` where we are root, whom PostgreSQL refuses; else `None`: it runs as we do.
    fn for_postgres(ours: &Path) -> Result<Option<Self>, DemoError> {
        let metadata = fs::metadata(ours).map_err(|source| DemoError::Scratch {
            path: ours.into(),
            source,
        })?;
        if metadata.uid() != 0 {
            return Ok(None);
        }
        let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
        Ok(Some(Self::nobody(&users).unwrap_or(Self {
            uid: 65534,
            gid: 65534,
        })))
    }

    fn nobody(users: &str) -> Option<Self> {
        let fields: Vec<&str> = users
            .lines()
            .find(|line| line.starts_with("nobody:"))?
            .split(':')
            .collect();
        Some(Self {
            uid: fields.get(2)?.parse().ok()?,
            gid: fields.get(3)?.parse().ok()?,
        })
    }
}

/// A running server with trust authentication, the superuser `postgres`, and `wal_level = logical`.
///
/// It listens on 127.0.0.1 and on a unix socket in its folder.
#[derive(Debug)]
pub struct Server {
    bin: PathBuf,
    folder: PathBuf,
    owner: Option<Owner>,
    port: u16,
    postmaster: Option<Child>,
}

impl Server {
    /// Makes a cluster in a new folder under `scratch` and starts it.
    ///
    /// `settings` are added to `postgresql.conf`. Cancel-safe: yes; what was started is stopped.
    pub async fn start(
        bin: PathBuf,
        scratch: &Scratch,
        settings: &[(&str, &str)],
    ) -> Result<Self, DemoError> {
        let owner = Owner::for_postgres(scratch.path())?;
        let folder = scratch.path().join("postgres");
        let prepared = fs::create_dir(&folder).and_then(|()| match owner {
            Some(owner) => chown(&folder, Some(owner.uid), Some(owner.gid)),
            None => Ok(()),
        });
        prepared.map_err(|source| DemoError::Scratch {
            path: folder.clone(),
            source,
        })?;
        let mut server = Self {
            bin,
            folder,
            owner,
            port: free_port()?,
            postmaster: None,
        };
        server.initialise().await?;
        server.configure(settings)?;
        server.launch()?;
        server.wait_until_ready().await?;
        Ok(server)
    }

    /// The port on 127.0.0.1, and of the unix socket.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder of the unix socket.
    pub fn socket_folder(&self) -> &Path {
        &self.folder
    }

    /// The folder of this server's own programs.
    pub fn bin(&self) -> &Path {
        &self.bin
    }

    /// A connection URL over TCP.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Connects over the unix socket; the connection ends with the client.
    pub async fn connect(&self, database: &str) -> Result<Client, tokio_postgres::Error> {
        connect(&self.folder, self.port, database).await
    }

    /// What the server's log ends with.
    pub(crate) fn log_tail(&self) -> String {
        tail(&self.folder.join("log"))
    }

    async fn initialise(&self) -> Result<(), DemoError> {
        let mut command = self.command("initdb");
        command.args([
            "-A",
            "trust",
            "-U",
            "postgres",
            "-E",
            "UTF8",
            "--locale=C",
            "--no-sync",
            "-D",
        ]);
        command.arg(self.folder.join("data"));
        output_of(tokio::process::Command::from(command), "initdb").await?;
        Ok(())
    }

    fn configure(&self, settings: &[(&str, &str)]) -> Result<(), DemoError> {
        let path = self.folder.join("data/postgresql.conf");
        let port = self.port.to_string();
        let socket_folder = self.folder.display().to_string();
        let own = [
            ("listen_addresses", "127.0.0.1"),
            ("port", &port),
            ("unix_socket_directories", &socket_folder),
            ("wal_level", "logical"),
            ("max_wal_senders", "10"),
            ("max_replication_slots", "10"),
            ("logging_collector", "off"),
        ];
        let lines: String = own
            .iter()
            .chain(settings)
            .map(|(name, value)| format!("{name} = '{value}'\n"))
            .collect();
        let appended =
            fs::read_to_string(&path).and_then(|text| fs::write(&path, format!("{text}\n{lines}")));
        appended.map_err(|source| DemoError::Scratch { path, source })
    }

    fn launch(&mut self) -> Result<(), DemoError> {
        let path = self.folder.join("log");
        let log = File::create(&path).and_then(|log| Ok((log.try_clone()?, log)));
        let (log, errors) = log.map_err(|source| DemoError::Scratch { path, source })?;
        let mut command = self.command("postgres");
        command
            .arg("-D")
            .arg(self.folder.join("data"))
            .stdout(log)
            .stderr(errors);
        let spawned = command.spawn();
        let program = self.bin.join("postgres");
        self.postmaster = Some(spawned.map_err(|source| DemoError::Spawn { program, source })?);
        Ok(())
    }

    async fn wait_until_ready(&mut self) -> Result<(), DemoError> {
        let deadline = Instant::now() + Duration::from_secs(START_SECONDS_MAX);
        while self.connect("postgres").await.is_err() {
            let ended = self
                .postmaster
                .as_mut()
                .is_none_or(|child| !matches!(child.try_wait(), Ok(None)));
            if ended || Instant::now() > deadline {
                return Err(DemoError::PostgresDown {
                    log: self.log_tail(),
                });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// One of the server's programs, as its owner, in a process group of its own: Ctrl-C is ours.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        command
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .process_group(0);
        command.env("LC_ALL", "C");
        if let Some(owner) = self.owner {
            command.uid(owner.uid).gid(owner.gid);
        }
        command
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some(mut postmaster) = self.postmaster.take() else {
            return;
        };
        if matches!(postmaster.try_wait(), Ok(Some(_))) {
            return;
        }
        let mut stop = self.command("pg_ctl");
        stop.args(["stop", "-s", "-w", "-t", "10", "-m", "immediate", "-D"]);
        stop.arg(self.folder.join("data"))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if !stop.status().is_ok_and(|status| status.success()) {
            // A postmaster that writes no pid file yet: it is still our child.
            let _ = postmaster.kill();
        }
        let _ = postmaster.wait();
    }
}

/// Connects to a server on this machine over its unix socket, without a password.
pub(crate) async fn connect(
    socket_folder: &Path,
    port: u16,
    database: &str,
) -> Result<Client, tokio_postgres::Error> {
    let mut config = tokio_postgres::Config::new();
    config
        .host_path(socket_folder)
        .port(port)
        .user("postgres")
        .dbname(database);
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Runs a command to its end and gives what it printed.
pub async fn output_of(
    mut command: tokio::process::Command,
    name: &str,
) -> Result<String, DemoError> {
    let program = PathBuf::from(command.as_std().get_program());
    let ended = command.kill_on_drop(true).output().await;
    let output = ended.map_err(|source| DemoError::Spawn { program, source })?;
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    match output.status.success() {
        true => Ok(text),
        false => Err(DemoError::Command {
            command: name.into(),
            status: output.status,
            output: text,
        }),
    }
}

/// Finds the folder of PostgreSQL's programs: the given one, the PATH's, or the newest that Debian installed.
pub fn find_bin(given: Option<&Path>) -> Result<PathBuf, DemoError> {
    if let Some(folder) = given {
        return match is_bin(folder) {
            true => std::path::absolute(folder).map_err(|source| DemoError::Scratch {
                path: folder.into(),
                source,
            }),
            false => Err(DemoError::NotPostgres(folder.into())),
        };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path =
        std::env::split_paths(&path).find(|folder| folder.is_absolute() && is_bin(folder));
    on_path
        .map(resolved)
        .or_else(newest_packaged)
        .ok_or(DemoError::NoPostgres)
}

/// Where links lead: beside the linked programs stand the others.
fn resolved(folder: PathBuf) -> PathBuf {
    let program = fs::canonicalize(folder.join("postgres")).ok();
    let real = program.and_then(|program| program.parent().map(Path::to_owned));
    real.filter(|real| is_bin(real)).unwrap_or(folder)
}

fn newest_packaged() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
    let folders = versions.flatten().map(|version| version.path().join("bin"));
    folders
        .filter(|folder| is_bin(folder))
        .max_by_key(|folder| {
            let version = folder
                .parent()
                .and_then(Path::file_name)
                .and_then(|name| name.to_str());
            version.and_then(|version| version.parse::<u32>().ok())
        })
}

fn is_bin(folder: &Path) -> bool {
    ["initdb", "postgres", "pg_ctl"]
        .iter()
        .all(|program| folder.join(program).is_file())
}

/// Finds a port on 127.0.0.1 that nobody uses at this moment.
///
/// Below the ports that Linux gives to outgoing connections (32768 to 60999), so that a program that
/// is killed finds its port still free when it starts again.
pub fn free_port() -> Result<u16, DemoError> {
    let mut bound = Ok(());
    for _ in 0..100 {
        let port = fastrand::u16(20_000..32_000);
        bound = std::net::TcpListener::bind(("127.0.0.1", port)).map(drop);
        if bound.is_ok() {
            return Ok(port);
        }
    }
    let failed = |source| DemoError::Scratch {
        path: "127.0.0.1".into(),
        source,
    };
    Err(failed(
        bound
            .err()
            .unwrap_or_else(|| std::io::ErrorKind::AddrInUse.into()),
    ))
}

/// The last lines of a log file, indented.
pub fn tail(path: &Path) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let last: Vec<String> = lines
        .iter()
        .rev()
        .take(15)
        .rev()
        .map(|line| format!("  {line}"))
        .collect();
    last.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_found_among_the_users() {
        let users =
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:99:98:nobody:/nonexistent:/usr/sbin/nologin\n";
        let owner = Owner::nobody(users).unwrap();
        assert_eq!((owner.uid, owner.gid), (99, 98));
        assert!(Owner::nobody("root:x:0:0::/root:/bin/sh\n").is_none());
    }

    #[test]
    fn a_folder_without_the_programs_is_refused() {
        let folder = std::env::temp_dir();
        assert!(matches!(
            find_bin(Some(&folder)),
            Err(DemoError::NotPostgres(_))
        ));
    }

    #[tokio::test]
    async fn a_throwaway_server_leaves_nothing_behind() {
        let Ok(bin) = find_bin(None) else { return };
        let scratch = Scratch::new().unwrap();
        let path = scratch.path().to_owned();
        let server = Server::start(bin, &scratch, &[("work_mem", "8MB")])
            .await
            .unwrap();
        let client = server.connect("postgres").await.unwrap();
        let row = client.query_one("SHOW wal_level", &[]).await.unwrap();
        assert_eq!(row.get::<_, &str>(0), "logical");
        let port = server.port();
        drop(server);
        drop(scratch);
        assert!(!path.exists());
        assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
    }
}
