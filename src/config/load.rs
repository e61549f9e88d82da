//! From layers of settings to a configuration, collecting every error on the way.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::Problem;
use super::kafka_properties::{self, Partitioners};
use super::kafka_security;
use super::keys;
use super::known::known;
use super::settings::{Setting, Settings, written};
use super::{
    AdminConfig, CatchUpFrom, Config, ConfigError, ConfigErrors, FaultPolicy, FaultsConfig,
    KafkaConfig, LeaseConfig, LimitsConfig, LogConfig, Mark, Mode, OnLostSlot, Origin,
    PollingConfig, ReplicationConfig, RouteConfig, Secret, ShutdownConfig, SourceConfig,
    TopicsConfig, UrlSource, check, columns, convert, document, environment,
};

/// What becomes of the file that `source.url_file` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UrlFile {
    Read,
    Unread,
}

pub(super) fn load(file: &Path, url_file: UrlFile) -> Result<Config, ConfigErrors> {
    let text = std::fs::read_to_string(file).map_err(|source| ConfigError::Read {
        path: file.to_owned(),
        source,
    })?;
    let mut env = Vec::new();
    let mut errors = Vec::new();
    for (name, value) in std::env::vars_os() {
        let Ok(name) = name.into_string() else {
            continue;
        };
        match value.into_string() {
            Ok(value) => env.push((name, value)),
            Err(_) if name.starts_with("OUTBOXD_") => {
                errors.push(Problem::new("is not UTF-8", "write it as UTF-8").at(
                    Origin::Environment {
                        variable: name.clone(),
                    },
                    &name,
                ))
            }
            Err(_) => {}
        }
    }
    if errors.is_empty() {
        return parse(&file.display().to_string(), &text, env, url_file);
    }
    Err(ConfigErrors::new(errors))
}

pub(super) fn parse(
    file: &str,
    text: &str,
    env: impl IntoIterator<Item = (String, String)>,
    url_file: UrlFile,
) -> Result<Config, ConfigErrors> {
    let mut errors = Vec::new();
    let from_env = environment::entries(env, &mut errors);
    let from_file = document::entries(file, text)?;
    let from_env = known(from_env, &mut errors);
    let mut from_file = known(from_file, &mut errors);
    let has = |key: &str| from_env.iter().any(|entry| entry.key() == key);
    // The URL is one setting with two names: the environment's goes over the file's, whichever they use.
    if has("source.url") || has("source.url_file") {
        from_file.retain(|entry| !matches!(entry.key().as_str(), "source.url" | "source.url_file"));
    }
    let defaults = document::entries("defaults", &keys::reference_toml())?;
    let settings = Settings::new(file)
        .with_defaults(defaults)
        .with("file", from_file)
        .with("environment", from_env);
    let mut reader = KeyReader {
        settings: &settings,
        errors,
        url_file,
    };
    let config = reader.config();
    if reader.errors.is_empty() {
        return Ok(config);
    }
    Err(ConfigErrors::new(reader.errors))
}

/// Reads one key after the other and notes what is wrong; a wrong one reads as its type's default.
struct KeyReader<'a> {
    settings: &'a Settings,
    errors: Vec<ConfigError>,
    url_file: UrlFile,
}

impl KeyReader<'_> {
    fn config(&mut self) -> Config {
        let limits = LimitsConfig {
            in_flight_rows_max: self.read("limits.in_flight_rows_max", |s| convert::whole(s, 1)),
            in_flight_bytes_max: self.read("limits.in_flight_bytes_max", convert::bytes),
        };
        let source = self.source();
        let kafka = self.kafka(&limits);
        self.apart(&source, &kafka.brokers);
        Config {
            source,
            route: self.route(),
            kafka,
            limits,
            lease: LeaseConfig {
                ttl: self.checked("lease.ttl", convert::duration, |ttl| check::lease_ttl(*ttl)),
            },
            shutdown: ShutdownConfig {
                grace: self.checked("shutdown.grace", convert::duration, |grace| {
                    check::not_zero(*grace)
                }),
            },
            faults: self.faults(),
            admin: AdminConfig {
                listen: self.checked("admin.listen", convert::text, |listen| {
                    check::listen(listen)
                }),
            },
            log: LogConfig {
                format: self.read("log.format", convert::log_format),
                level: self.checked("log.level", convert::text, |level| check::log_level(level)),
            },
        }
    }

    fn source(&mut self) -> SourceConfig {
        let mode = self.read("source.mode", convert::mode);
        let mark = self.read("source.mark", convert::mark);
        if (mode, mark) == (Mode::Polling, Mark::None) {
            let at = if self.settings.is_given("source.mark") {
                "source.mark"
            } else {
                "source.mode"
            };
            self.refuse(at, Problem::new(
                "= \"none\" can't be polled: without a mark every row would be published again at each start",
                "write \"ledger\", or set `source.mode = \"replication\"`",
            ));
        }
        let table = self.checked("source.table", convert::text, |table| check::table(table));
        let slot = self.optional("source.replication.slot", convert::text, |slot| {
            check::slot(slot)
        });
        let publication = self.optional("source.replication.publication", convert::text, |name| {
            check::identifier(name)
        });
        SourceConfig {
            url: self.url(),
            mode,
            table,
            columns: columns::read(self.settings, &mut self.errors),
            mark,
            start: self.optional("source.start", convert::start, |_| Ok(())),
            retention: self.retention(mark),
            order_column: self.optional("source.order_column", convert::text, |name| {
                check::identifier(name)
            }),
            polling: PollingConfig {
                interval: self.checked("source.polling.interval", convert::duration, |interval| {
                    check::not_zero(*interval)
                }),
                batch_rows: self.read("source.polling.batch_rows", |s| convert::whole(s, 1)),
            },
            replication: ReplicationConfig {
                slot: slot.unwrap_or_default(),
                publication: publication.unwrap_or_default(),
                wal_budget_bytes: self.read("source.replication.wal_budget", convert::bytes) as u64,
                on_lost_slot: self.on_lost_slot(mark),
                failover: self.read("source.replication.failover", convert::truth),
                sweep: self.checked("source.replication.sweep", convert::duration, |every| {
                    check::sweep(*every)
                }),
                catch_up: self.catch_up(mark),
            },
        }
    }

    /// Only a mark that stays says which rows were sent.
    fn retention(&mut self, mark: Mark) -> Option<Duration> {
        let key = "source.retention";
        let kept = self.checked(key, convert::duration_or_none, |kept| {
            check::retention(*kept)
        })?;
        match mark {
            Mark::Ledger | Mark::SentAt => {}
            Mark::Delete => self.refuse(key, Problem::new(
                "has nothing to remove: with `source.mark = \"delete\"` a row goes as soon as it was sent",
                "remove it, or write `source.mark = \"ledger\"`",
            )),
            Mark::None => self.refuse(key, Problem::new(
                "needs a mark: with `source.mark = \"none\"` nothing says which rows were sent",
                "remove it, or write `source.mark = \"ledger\"`",
            )),
        }
        Some(kept)
    }

    /// Only a mark says which rows of the table were sent.
    fn on_lost_slot(&mut self, mark: Mark) -> OnLostSlot {
        let key = "source.replication.on_lost_slot";
        let chosen = self.optional(key, convert::on_lost_slot, |_| Ok(()));
        if (mark, chosen) == (Mark::None, Some(OnLostSlot::Repair)) {
            self.refuse(key, Problem::new(
                "= \"repair\" needs a mark: with `source.mark = \"none\"` nothing says which rows of the table were sent",
                "write \"halt\" or remove it",
            ));
        }
        chosen.unwrap_or(match mark {
            Mark::None => OnLostSlot::Halt,
            Mark::Ledger | Mark::SentAt | Mark::Delete => OnLostSlot::Repair,
        })
    }

    /// Only the ledger tells how far the table was read, and what the slot brings again.
    fn catch_up(&mut self, mark: Mark) -> CatchUpFrom {
        let key = "source.replication.catch_up";
        let chosen = self.read(key, convert::catch_up);
        if chosen == CatchUpFrom::Table && mark != Mark::Ledger {
            self.refuse(key, Problem::new(
                "= \"table\" needs `source.mark = \"ledger\"`: by no other mark it is known up to which position of the WAL the table was read",
                "write \"stream\" or remove it",
            ));
        }
        chosen
    }

    fn url(&mut self) -> UrlSource {
        let url = self.optional("source.url", convert::text, |url| check::url(url));
        let file = self.optional("source.url_file", convert::text, |file| {
            check::url_file(file)
        });
        let is_given = |key: &str| self.settings.is_given(key);
        match (is_given("source.url"), is_given("source.url_file")) {
            (true, true) => {
                let problem = Problem::new("stands beside `source.url_file`", "remove one of them");
                self.refuse("source.url", problem);
            }
            (false, false) => {
                let remedy = "name a file that holds postgres://user:password@host:port/database, or set `source.url`";
                self.refuse("source.url_file", Problem::new("is missing", remedy));
            }
            _ => {}
        }
        let Some(file) = file.map(PathBuf::from) else {
            return UrlSource::Inline(Secret::new(url.unwrap_or_default()));
        };
        if self.url_file == UrlFile::Read
            && let Err(problem) = check::url_in(&file)
        {
            self.refuse("source.url_file", problem);
        }
        UrlSource::File(file)
    }

    /// Refuses one address for PostgreSQL and Kafka.
    fn apart(&mut self, source: &SourceConfig, brokers: &[String]) {
        if self.url_file == UrlFile::Unread && matches!(source.url, UrlSource::File(_)) {
            return;
        }
        // A URL that can't be read was refused already.
        let Ok(options) = source.url.options() else {
            return;
        };
        if let Err(problem) = check::servers(&options, brokers) {
            let key = match source.url {
                UrlSource::Inline(_) => "source.url",
                UrlSource::File(_) => "source.url_file",
            };
            self.refuse(key, problem);
        }
    }

    fn route(&mut self) -> RouteConfig {
        let errors = self.errors.len();
        let topic = self.checked("route.topic", convert::text, |topic| check::topic(topic));
        let allow = self.checked("route.allow", convert::list, |allow| check::allow(allow));
        if errors == self.errors.len()
            && let Err(problem) = check::topic_is_allowed(&topic, &allow)
        {
            self.refuse("route.topic", problem);
        }
        let headers = self.names("route.headers", convert::text);
        if let Err((column, problem)) = check::headers(&headers) {
            self.refuse(&format!("route.headers.{column}"), problem);
        }
        RouteConfig {
            topic,
            allow,
            null_key: self.read("route.null_key", convert::null_key),
            headers,
        }
    }

    fn kafka(&mut self, limits: &LimitsConfig) -> KafkaConfig {
        if !self.settings.is_given("kafka.brokers") {
            let problem = Problem::new(
                "is missing",
                "write the brokers as host:port, such as [\"kafka:9092\"]",
            );
            self.refuse("kafka.brokers", problem);
        }
        let allow_partitioner = self.read("kafka.allow_partitioner", convert::truth);
        let partitioners = if allow_partitioner {
            Partitioners::Any
        } else {
            Partitioners::Java
        };
        let properties = self.names("kafka.properties", convert::property);
        let errors = self.errors.len();
        for (name, value) in &properties {
            if let Err(problem) = kafka_properties::check(name, value, partitioners, limits) {
                let path = ["kafka", "properties", name].map(str::to_owned);
                self.refuse(&written(&path), problem);
            }
        }
        if errors == self.errors.len()
            && let Err((name, problem)) = kafka_security::check_together(&properties)
        {
            let path = ["kafka".to_owned(), "properties".to_owned(), name];
            self.refuse(&written(&path), problem);
        }
        KafkaConfig {
            brokers: self
                .optional("kafka.brokers", convert::list, |b| check::brokers(b))
                .unwrap_or_default(),
            properties,
            allow_partitioner,
            topics: TopicsConfig {
                create: self.read("kafka.topics.create", convert::truth),
                partitions: self.read("kafka.topics.partitions", convert::count_or_default),
                replication_factor: self
                    .read("kafka.topics.replication_factor", convert::count_or_default),
            },
        }
    }

    fn names(
        &mut self,
        table: &str,
        convert: impl Fn(Setting) -> Result<String, Problem>,
    ) -> BTreeMap<String, String> {
        let mut names = BTreeMap::new();
        for (name, setting) in self.settings.table(table) {
            match convert(setting) {
                Ok(value) => drop(names.insert(name, value)),
                Err(problem) => {
                    let path: Vec<String> =
                        table.split('.').map(str::to_owned).chain([name]).collect();
                    self.refuse(&written(&path), problem);
                }
            }
        }
        names
    }

    fn faults(&mut self) -> FaultsConfig {
        let policy = self.read("faults.policy", convert::policy);
        let after = self.read("faults.after_dead_letter", convert::after_dead_letter);
        let policy = match policy {
            FaultPolicy::Follow => after,
            FaultPolicy::Block | FaultPolicy::Halt | FaultPolicy::Continue => policy,
        };
        FaultsConfig {
            policy,
            halt_share: self.read("faults.halt_share", convert::share),
        }
    }

    fn read<T: Default>(
        &mut self,
        key: &str,
        convert: impl FnOnce(Setting) -> Result<T, Problem>,
    ) -> T {
        self.checked(key, convert, |_| Ok(()))
    }

    fn checked<T: Default>(
        &mut self,
        key: &str,
        convert: impl FnOnce(Setting) -> Result<T, Problem>,
        check: impl FnOnce(&T) -> Result<(), Problem>,
    ) -> T {
        self.optional(key, convert, check).unwrap_or_default()
    }

    fn optional<T>(
        &mut self,
        key: &str,
        convert: impl FnOnce(Setting) -> Result<T, Problem>,
        check: impl FnOnce(&T) -> Result<(), Problem>,
    ) -> Option<T> {
        let setting = self.settings.find(key)?;
        let value = convert(setting).and_then(|value| check(&value).map(|()| value));
        value.map_err(|problem| self.refuse(key, problem)).ok()
    }

    fn refuse(&mut self, key: &str, problem: Problem) {
        self.errors.push(problem.at(self.settings.origin(key), key));
    }
}
