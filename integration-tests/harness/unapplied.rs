//! Commits that are flushed and that nobody sees, for as long as a test likes.

use std::process::Command;

use super::postgres::Postgres;
use super::workspace::{self, Process};
use super::{SOON, wait_until};

/// The newest server that Debian's `pg_receivewal` of version 15 reads from.
const MAJOR_MAX: u32 = 15;

/// A standby that writes all it gets and applies nothing: COMMIT with `remote_apply` waits for it, flushed and unseen,
/// and COMMIT with `on` does not.
pub struct Unapplied {
    receiver: Process,
}

impl Unapplied {
    /// `None` where the program is not installed or the server too new for it.
    pub async fn start(server: &mut Postgres) -> Option<Self> {
        if server.major > MAJOR_MAX {
            return None;
        }
        let program = Postgres::client_program("pg_receivewal")?;
        let folder = workspace::folder("unapplied");
        let mut command = Command::new(program);
        command
            .args(["-h", "127.0.0.1", "-p", &server.port.to_string()])
            .args(["-U", "postgres", "--synchronous", "-D"])
            .arg(&folder);
        let receiver = Process::start(&mut command, &folder, "log", "KILL");
        server.configure(&[("synchronous_standby_names", "pg_receivewal")]);
        server.reload();
        let client = server.client("postgres").await;
        let sql = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
        wait_until("the standby is synchronous", SOON, async || {
            let row = client.query_one(sql, &[]).await;
            match row.map_err(|error| error.to_string())?.get::<_, i64>(0) {
                1 => Ok(()),
                other => Err(other.to_string()),
            }
        })
        .await;
        Some(Self { receiver })
    }

    /// Lets every COMMIT through that waits.
    pub async fn end(self, server: &mut Postgres) {
        server.configure(&[("synchronous_standby_names", "")]);
        server.reload();
        let client = server.client("postgres").await;
        let sql = "SELECT current_setting('synchronous_standby_names')";
        wait_until("no standby is waited for", SOON, async || {
            let row = client.query_one(sql, &[]).await;
            match row.map_err(|error| error.to_string())?.get::<_, &str>(0) {
                "" => Ok(()),
                other => Err(other.to_owned()),
            }
        })
        .await;
        drop(self.receiver);
    }
}
