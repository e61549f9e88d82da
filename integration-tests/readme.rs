//! The README's steps for an own table, as they stand there: pasted line by line, with other addresses and another kcat.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::kafka::Kafka;
use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::relay::{OUTBOXD, said};
use crate::harness::workspace::{self, Process};
use crate::harness::{SOON, wait_until};

const README: &str = include_str!("../README.md");
/// Stands in the README and in the configurations that it names.
const URL: &str = "postgres://postgres:postgres@localhost:5432/postgres";
const BROKER: &str = "localhost:9092";

/// Asks whether the topic stands when it is called, and shows no record.
const KCAT: &str = "#!/bin/sh
while [ \"$1\" != -t ]; do shift; done
echo \"$2\" > asked.new && mv asked.new asked
while [ ! -e answer ]; do sleep 0.05; done
[ \"$(cat answer)\" = there ]
";

/// The shell blocks of a section.
fn blocks(heading: &str) -> Vec<&'static str> {
    let (_, section) = README.split_once(heading).expect("the section stands");
    let section = section.split("\n## ").next().unwrap_or_default();
    let blocks = section.split("```sh\n").skip(1);
    blocks
        .map(|block| block.split("```").next().unwrap_or_default())
        .collect()
}

struct Terminals {
    folder: PathBuf,
    url: String,
    broker: String,
    path: String,
}

impl Terminals {
    fn new(url: &str, broker: &str) -> Option<Self> {
        let folder = workspace::folder("readme");
        let psql = Postgres::client_program("psql")?;
        let programs = folder.join("programs");
        fs::create_dir_all(&programs).unwrap();
        fs::write(programs.join("kcat"), KCAT).unwrap();
        fs::set_permissions(programs.join("kcat"), fs::Permissions::from_mode(0o755)).unwrap();
        let own = Path::new(OUTBOXD).parent().expect("a folder");
        let psql = psql.parent().expect("a folder");
        let paths = [&programs, own, psql].map(|path| path.display().to_string());
        let terminals = Self {
            path: format!("{}:{}", paths.join(":"), std::env::var("PATH").unwrap()),
            url: url.to_owned(),
            broker: broker.to_owned(),
            folder,
        };
        fs::create_dir_all(terminals.folder.join("config")).unwrap();
        for name in ["config/minimal.toml", "config/polling.toml"] {
            let text =
                fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap();
            fs::write(terminals.folder.join(name), terminals.here(&text)).unwrap();
        }
        Some(terminals)
    }

    /// The text with the addresses of this run.
    fn here(&self, text: &str) -> String {
        assert!(text.contains(URL) || text.contains(BROKER), "{text}");
        text.replace(URL, &self.url).replace(BROKER, &self.broker)
    }

    /// A terminal of its own: it knows nothing of what the other one exports.
    fn command(&self, script: &str) -> Command {
        let mut command = Command::new("bash");
        command
            .args(["-e", "-u", "-o", "pipefail", "-c", script])
            .current_dir(&self.folder)
            .env("PATH", &self.path)
            .env(
                "OUTBOXD_ADMIN__LISTEN",
                format!("127.0.0.1:{}", workspace::free_port()),
            );
        command
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_steps_for_an_own_table_work_as_they_are_pasted() {
    let postgres = Postgres::shared(USUAL).await;
    // A topic that nobody has used.
    let kafka = Kafka::start();
    let [first, second] = blocks("## On your own table")[..] else {
        panic!("the section has two blocks");
    };
    for file in ["config/minimal.toml", "config/polling.toml"] {
        let database = postgres.create_database("readme").await;
        let Some(terminals) = Terminals::new(&database.url, &kafka.brokers()) else {
            eprintln!("skipped: psql is not installed");
            return;
        };
        let (build, first) = first.split_once('\n').expect("several lines");
        assert!(build.starts_with("cargo build --release"), "{build}");
        // `check` fails where something is missing, as a person sees and reads on; `run` is to be ended from here.
        let first = terminals.here(first).replace("config/minimal.toml", file);
        let first = first.replace("outboxd check ", "! outboxd check ");
        let first = first.replace("outboxd run ", "exec outboxd run ");
        let mut command = terminals.command(&first);
        let _relay = Process::start(&mut command, &terminals.folder, "first.log", "KILL");
        migrated(&database.client().await).await;
        let mut command = terminals.command(&terminals.here(second));
        let second = tokio::task::spawn_blocking(move || command.output().expect("run bash"));
        let asked = terminals.folder.join("asked");
        let topic = wait_until("kcat is called", SOON, async || {
            fs::read_to_string(&asked).map_err(|error| error.to_string())
        })
        .await;
        let reads = kafka.reader(&[topic.trim()]).read_to_end().to_vec();
        fs::write(terminals.folder.join("answer"), "there").unwrap();
        let newest = reads.last().expect("its record is there");
        assert_eq!(
            (newest.key_text(), newest.value_text()),
            (Some("42"), Some("{\"total\": 99}"))
        );
        assert!(newest.header("id").is_some());
        let done = second.await.unwrap();
        assert!(done.status.success(), "{}", said(&done));
        assert!(said(&done).contains("| OrderPlaced"), "{}", said(&done));
    }
}

/// Somebody reads what the first terminal says before he goes on in the second.
async fn migrated(client: &tokio_postgres::Client) {
    wait_until("migrate has made the view", SOON, async || {
        let sql = "SELECT to_regclass('outbox_status') IS NOT NULL";
        let row = client.query_one(sql, &[]).await;
        match row.map_err(|error| error.to_string())?.get(0) {
            true => Ok(()),
            false => Err("not yet".to_owned()),
        }
    })
    .await;
}
