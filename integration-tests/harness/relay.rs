//! The relay as users run it: a process of its own with a configuration file.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use toml_edit::{DocumentMut, Item, Table};

use super::kafka::Kafka;
use super::postgres::Database;
use super::workspace::{self, Process};
use super::{SOON, wait_until};

/// The binary under test.
pub const OUTBOXD: &str = env!("CARGO_BIN_EXE_outboxd");

/// A configuration file in the making: the keys that every run needs, then whatever a test sets.
#[derive(Clone, Debug)]
pub struct RelayConfig {
    document: DocumentMut,
}

impl RelayConfig {
    /// A relay of `public.outbox` in this database; slot, publication and topics are named after it.
    pub fn new(database: &Database, kafka: &Kafka) -> Self {
        Self::of(&database.name, &database.url, &kafka.brokers())
    }

    /// `new` for servers that do not run or are not what they should be.
    pub fn of(name: &str, url: &str, brokers: &str) -> Self {
        let slot = format!("outboxd_{name}");
        Self {
            document: DocumentMut::new(),
        }
        .set("source.url", url)
        .set("source.mode", "replication")
        .set("source.mark", "ledger")
        .set("source.table", "public.outbox")
        .set("source.replication.slot", slot.as_str())
        .set("source.replication.publication", slot.as_str())
        .set("source.replication.sweep", "2s")
        .set(
            "kafka.brokers",
            toml_edit::Array::from_iter(brokers.split(',')),
        )
        .topic(&format!("{name}.${{aggregatetype}}"))
    }

    /// What slot and publication are called.
    pub fn name(&self) -> &str {
        let slot = self.document["source"]["replication"]["slot"].as_str();
        slot.expect("every configuration names a slot")
    }

    /// What begins the names of logs: a slot that is not named has a default of the relay's.
    fn log_name(&self) -> &str {
        let replication = self.document["source"].get("replication");
        let slot = replication.and_then(|section| section.get("slot"));
        slot.and_then(Item::as_str).unwrap_or("outboxd")
    }

    /// The topic of an aggregate type, by the template that this configuration has.
    pub fn topic_of(&self, aggregate_type: &str) -> String {
        let template = self.document["route"]["topic"].as_str();
        let template = template.expect("every configuration has a template");
        template.replace("${aggregatetype}", aggregate_type)
    }

    /// Sets a key by its dotted name; values are TOML values, so text is `"100ms"` and numbers are numbers.
    pub fn set(mut self, key: &str, value: impl Into<toml_edit::Value>) -> Self {
        let mut names: Vec<&str> = key.split('.').collect();
        let last = names.pop().expect("split yields one part at least");
        let mut table = self.document.as_table_mut();
        for name in names {
            let section = table
                .entry(name)
                .or_insert_with(|| Item::Table(Table::new()));
            table = section
                .as_table_mut()
                .expect("a section of the configuration");
        }
        table.insert(last, toml_edit::value(value));
        self
    }

    /// Removes a key of a section, such as `source.url`.
    pub fn without(mut self, key: &str) -> Self {
        let (section, name) = key.split_once('.').expect("a key of a section");
        let section = self.document[section].as_table_mut().expect("a section");
        section.remove(name);
        self
    }

    /// Sets a librdkafka property, whose name has dots of its own.
    pub fn kafka_property(mut self, name: &str, value: &str) -> Self {
        let kafka = self.document["kafka"]
            .as_table_mut()
            .expect("every configuration names brokers");
        let properties = kafka
            .entry("properties")
            .or_insert_with(|| Item::Table(Table::new()));
        properties
            .as_table_mut()
            .expect("a section")
            .insert(name, toml_edit::value(value));
        self
    }

    pub fn mode(self, mode: &str) -> Self {
        self.set("source.mode", mode)
    }

    pub fn mark(self, mark: &str) -> Self {
        self.set("source.mark", mark)
    }

    pub fn table(self, table: &str) -> Self {
        self.set("source.table", table)
    }

    /// The topic template, and with it the only topics that are allowed: `prefix*` of its fixed beginning.
    pub fn topic(self, template: &str) -> Self {
        let fixed = template.split("${").next().unwrap_or_default();
        let allowed = if fixed == template {
            template.to_owned()
        } else {
            format!("{fixed}*")
        };
        self.set("route.topic", template)
            .set("route.allow", toml_edit::Array::from_iter([allowed]))
    }

    /// The file's text.
    pub fn text(&self) -> String {
        self.document.to_string()
    }

    /// Writes the file into a folder of this run.
    pub fn write(&self) -> PathBuf {
        let path = workspace::folder("config").join("outboxd.toml");
        fs::write(&path, self.text()).expect("write a configuration file");
        path
    }

    /// Runs a command such as `["check", "--json"]` with this configuration and waits for its end.
    pub fn outboxd(&self, arguments: &[&str]) -> Output {
        let config = self.write();
        let config = config.to_str().expect("folders of this run are UTF-8");
        outboxd(&[arguments, &["--config", config]].concat())
    }

    /// `outboxd migrate`, which must succeed.
    pub fn migrate(&self) {
        let done = self.outboxd(&["migrate"]);
        assert!(done.status.success(), "migrate: {}", said(&done));
    }
}

/// Runs the binary to its end.
pub fn outboxd(arguments: &[&str]) -> Output {
    Command::new(OUTBOXD)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("run outboxd")
}

/// Both outputs of a command, for panics and assertions.
pub fn said(done: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr)
    )
}

/// A running `outboxd run`, killed when dropped; its log is printed when the test panics.
#[derive(Debug)]
pub struct Relay {
    process: Process,
    folder: PathBuf,
    config: RelayConfig,
    admin: String,
    wrapper: Vec<String>,
}

impl Relay {
    /// Starts the relay; returns at once, before it publishes.
    pub fn start(config: &RelayConfig) -> Self {
        Self::start_with(config, &[])
    }

    /// `start` with environment variables.
    pub fn start_with(config: &RelayConfig, environment: &[(&str, &str)]) -> Self {
        Self::start_as(config, environment, &[])
    }

    /// `start` as the argument of another program, such as `["prlimit", "--nofile=40"]`, which must become the relay.
    pub fn start_under(config: &RelayConfig, wrapper: &[&str]) -> Self {
        Self::start_as(config, &[], wrapper)
    }

    fn start_as(config: &RelayConfig, environment: &[(&str, &str)], wrapper: &[&str]) -> Self {
        let folder = workspace::folder("relay");
        let admin = format!("127.0.0.1:{}", workspace::free_port());
        let config = config.clone().set("admin.listen", admin.as_str());
        let path = folder.join("outboxd.toml");
        fs::write(&path, config.text()).expect("write a configuration file");
        let wrapper: Vec<String> = wrapper.iter().map(|part| (*part).to_owned()).collect();
        let process = run(&folder, &path, environment, &wrapper);
        Self {
            process,
            folder,
            config,
            admin,
            wrapper,
        }
    }

    /// Ends it with SIGKILL.
    pub fn kill9(&mut self) {
        self.process.kill();
    }

    /// Sends SIGTERM and waits for the end; panics where it does not come soon.
    pub fn terminate(&mut self) -> ExitStatus {
        self.process.signal("TERM");
        self.wait_exit(SOON).expect("the relay ends after SIGTERM")
    }

    /// Starts it again with the same file and log, after `kill9` or `terminate`.
    pub fn restart(&mut self) {
        assert!(self.process.exited().is_some(), "the relay runs");
        let config = self.folder.join("outboxd.toml");
        self.process = run(&self.folder, &config, &[], &self.wrapper);
    }

    /// Stops it with SIGSTOP.
    pub fn freeze(&mut self) {
        self.process.signal("STOP");
    }

    pub fn thaw(&mut self) {
        self.process.signal("CONT");
    }

    /// Sends any signal by its name.
    pub fn signal(&mut self, name: &str) {
        self.process.signal(name);
    }

    /// Its exit status; `None` when it still runs after `timeout`.
    pub fn wait_exit(&mut self, timeout: Duration) -> Option<ExitStatus> {
        self.process.wait(timeout)
    }

    pub fn is_running(&mut self) -> bool {
        self.process.exited().is_none()
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// The configuration it runs with, `admin.listen` included.
    pub fn config(&self) -> &RelayConfig {
        &self.config
    }

    /// `GET /status`; panics when nobody answers soon.
    pub async fn status(&self) -> Value {
        wait_until("the relay answers /status", SOON, async || {
            self.try_status()
        })
        .await
    }

    /// `GET /status`, if somebody answers now.
    pub fn try_status(&self) -> Result<Value, String> {
        let (_, body) = self.get("/status")?;
        serde_json::from_str(&body).map_err(|error| format!("{error} in {body}"))
    }

    /// `GET /metrics`; panics when nobody answers soon.
    pub async fn metrics(&self) -> String {
        let probe = async || self.get("/metrics").map(|(_, body)| body);
        wait_until("the relay answers /metrics", SOON, probe).await
    }

    /// The sum of a metric over its labels, or `None` where it does not appear.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let metrics = self.metrics().await;
        let values = metrics.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let value = rest
                .strip_prefix(' ')
                .or_else(|| rest.starts_with('{').then(|| rest.rsplit(' ').next())?)?;
            value.trim().parse::<f64>().ok()
        });
        values.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
    }

    /// Where its admin server listens, on 127.0.0.1.
    pub fn admin_port(&self) -> u16 {
        let (_, port) = self.admin.rsplit_once(':').expect("an address with a port");
        port.parse().expect("a port")
    }

    /// Status code and body of a path of the admin server.
    pub fn get(&self, path: &str) -> Result<(u16, String), String> {
        let request = ureq::get(format!("http://{}{path}", self.admin))
            .config()
            .timeout_global(Some(Duration::from_secs(10)))
            .http_status_as_error(false)
            .build();
        let mut answer = request.call().map_err(|error| error.to_string())?;
        let body = answer
            .body_mut()
            .read_to_string()
            .map_err(|error| error.to_string())?;
        Ok((answer.status().as_u16(), body))
    }

    /// Everything it has logged, over all its restarts.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Waits until the log holds a text.
    pub async fn wait_for_log(&self, text: &str, timeout: Duration) {
        let probe = async || {
            if self.log().contains(text) {
                Ok(())
            } else {
                Err("no such line")
            }
        };
        wait_until(&format!("the relay logs `{text}`"), timeout, probe).await;
    }

    /// Resident memory now.
    pub fn rss_bytes(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// The most resident memory that this process had so far.
    pub fn rss_bytes_max(&self) -> u64 {
        self.memory("VmHWM:")
    }

    fn memory(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap_or_default();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(field))
            .unwrap_or_default();
        let kib: u64 = line
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .unwrap_or_default();
        kib * 1024
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Ok(folder) = std::env::var("OUTBOXD_RELAY_LOGS") {
            let name = format!("{}-{}.log", self.config.log_name(), self.id());
            let _ = fs::create_dir_all(&folder);
            let _ = fs::copy(self.folder.join("log"), Path::new(&folder).join(name));
        }
        if std::thread::panicking() {
            let log = workspace::tail(&self.folder.join("log"), 100);
            eprintln!(
                "--- the relay's configuration ---\n{}--- the relay's log ---\n{log}",
                self.config.text()
            );
        }
    }
}

fn run(folder: &Path, config: &Path, environment: &[(&str, &str)], wrapper: &[String]) -> Process {
    let mut words = wrapper.iter().map(String::as_str).chain([OUTBOXD]);
    let mut command = Command::new(words.next().expect("the binary at least"));
    command
        .args(words)
        .args(["run", "--config"])
        .arg(config)
        .envs(environment.iter().copied())
        .current_dir(folder);
    Process::start(&mut command, folder, "log", "KILL")
}
