//! Where and as whom to connect, as a `postgres://` URL says it.
//!
//! Never connects, and never repeats a piece of the URL in an error: any piece may be a password.

mod fault;
mod tls;

use std::path::PathBuf;
use std::time::Duration;

pub use fault::UrlFault;
use tls::TlsParameters;
pub use tls::{ChannelBinding, ClientCertificate, RootCertificates, SslMode, TlsOptions};

use super::Secret;

const PORT: u16 = 5432;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const APPLICATION_NAME: &str = "outboxd";
/// PostgreSQL keeps 63 bytes of an application name.
const APPLICATION_NAME_BYTES_MAX: usize = 63;

/// What a URL may say behind its `?`.
pub(super) const PARAMETERS: [&str; 13] = [
    "host",
    "port",
    "user",
    "password",
    "dbname",
    "application_name",
    "connect_timeout",
    "target_session_attrs",
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "channel_binding",
];

/// What a connection URL says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectOptions {
    /// Tried in this order; never empty.
    pub hosts: Vec<Host>,
    pub user: String,
    pub password: Option<Secret>,
    pub dbname: String,
    /// Bounds one attempt at one host, handshake and authentication included.
    pub connect_timeout: Duration,
    pub tls: TlsOptions,
    pub(crate) application_name: String,
}

/// One server to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    Tcp { name: String, port: u16 },
    Unix { directory: PathBuf, port: u16 },
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp { name, port } if name.contains(':') => write!(f, "[{name}]:{port}"),
            Self::Tcp { name, port } => write!(f, "{name}:{port}"),
            Self::Unix { .. } => write!(f, "{}", self.socket_path().display()),
        }
    }
}

impl Host {
    /// The socket's file; of a TCP host an empty path.
    pub(crate) fn socket_path(&self) -> PathBuf {
        match self {
            Self::Tcp { .. } => PathBuf::new(),
            Self::Unix { directory, port } => directory.join(format!(".s.PGSQL.{port}")),
        }
    }
}

impl ConnectOptions {
    /// Reads `postgres://user:password@host:port,host:port/dbname?parameter=value`.
    ///
    /// Defaults are libpq's: port 5432, the database named like the user. A host that begins with `/` is
    /// the folder of a unix socket.
    /// Errors: say what is wrong and what is allowed, never a value.
    pub fn parse(url: &Secret) -> Result<Self, UrlFault> {
        let rest = fault::after_scheme(url.reveal().trim())?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, dbname) = rest.split_once('/').unwrap_or((rest, ""));
        fault::check_separators(authority, dbname, query)?;
        let mut parts = Parts::default();
        if !dbname.is_empty() {
            parts.dbname = Some(decode(dbname)?);
        }
        parts.read_authority(authority)?;
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            parts.read_parameter(&decode(name)?, decode(value)?)?;
        }
        parts.finish()
    }

    /// The name that `pg_stat_activity` shows for a connection of ours.
    pub(crate) fn application_name(&self, name: &str) -> String {
        let mut full = format!("{} {name}", self.application_name);
        while full.len() > APPLICATION_NAME_BYTES_MAX {
            full.pop();
        }
        full.trim_end().to_owned()
    }

    /// The same for one of the hosts alone.
    pub(crate) fn at(&self, host: &Host) -> Self {
        Self {
            hosts: vec![host.clone()],
            ..self.clone()
        }
    }
}

/// The pieces of a URL while it is being read.
#[derive(Default)]
struct Parts {
    names: Vec<String>,
    ports: Vec<Option<u16>>,
    user: Option<String>,
    password: Option<String>,
    dbname: Option<String>,
    connect_timeout: Option<Duration>,
    application_name: Option<String>,
    tls: TlsParameters,
}

impl Parts {
    fn read_authority(&mut self, authority: &str) -> Result<(), UrlFault> {
        let (login, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        if !login.is_empty() {
            let (user, password) = login.split_once(':').unwrap_or((login, ""));
            self.user = Some(decode(user)?).filter(|user| !user.is_empty());
            self.password = Some(decode(password)?).filter(|password| !password.is_empty());
        }
        for host in hosts.split(',').filter(|host| !host.is_empty()) {
            let (name, port) = split_port(host)?;
            self.names.push(decode(name)?);
            self.ports.push(port);
        }
        Ok(())
    }

    fn read_parameter(&mut self, name: &str, value: String) -> Result<(), UrlFault> {
        match name {
            "host" => {
                self.names = value.split(',').map(str::to_owned).collect();
                self.ports.resize(self.names.len(), None);
            }
            "port" => self.ports = read_ports(&value)?,
            "user" => self.user = Some(value),
            "password" => self.password = Some(value),
            "dbname" => self.dbname = Some(value),
            "application_name" => self.application_name = Some(value),
            "connect_timeout" => {
                let seconds = value.parse().ok().filter(|seconds| *seconds > 0);
                let fault =
                    || UrlFault::value("connect_timeout", "5, or another number of seconds");
                let seconds = seconds.ok_or_else(fault)?;
                self.connect_timeout = Some(Duration::from_secs(seconds));
            }
            // A primary is preferred whatever it says: nothing can be marked on a standby.
            "target_session_attrs" => {
                if !matches!(value.as_str(), "any" | "read-write" | "primary") {
                    let allowed = "read-write, primary or any: on a standby nothing can be marked";
                    return Err(UrlFault::value("target_session_attrs", allowed));
                }
            }
            _ if self.tls.read(name, &value)? => {}
            _ => return Err(fault::unknown_parameter(name)),
        }
        Ok(())
    }

    fn finish(mut self) -> Result<ConnectOptions, UrlFault> {
        let user = self
            .user
            .ok_or_else(|| UrlFault::new("names no user", fault::FORM))?;
        if self.names.is_empty() {
            return Err(UrlFault::no_host());
        }
        for name in &self.names {
            fault::check_host(name)?;
        }
        if let [port] = self.ports[..] {
            self.ports.resize(self.names.len(), port);
        }
        if self.ports.len() != self.names.len() {
            return Err(UrlFault::new(
                "names another number of ports than of hosts",
                "write one port for all hosts, or one for each",
            ));
        }
        let hosts = self.names.into_iter().zip(self.ports);
        let hosts = hosts.map(|(name, port)| host(name, port.unwrap_or(PORT)));
        let application_name = self.application_name.filter(|name| !name.is_empty());
        let dbname = self.dbname.filter(|name| !name.is_empty());
        Ok(ConnectOptions {
            hosts: hosts.collect(),
            dbname: dbname.unwrap_or_else(|| user.clone()),
            user,
            password: self.password.map(Secret::new),
            connect_timeout: self.connect_timeout.unwrap_or(CONNECT_TIMEOUT),
            tls: self.tls.finish()?,
            application_name: application_name.unwrap_or_else(|| APPLICATION_NAME.to_owned()),
        })
    }
}

fn host(name: String, port: u16) -> Host {
    if name.starts_with('/') {
        let directory = PathBuf::from(name);
        Host::Unix { directory, port }
    } else {
        Host::Tcp { name, port }
    }
}

/// Splits `name:port` and `[::1]:port`.
fn split_port(host: &str) -> Result<(&str, Option<u16>), UrlFault> {
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((name, rest)) => (name, rest.strip_prefix(':')),
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    Ok((name, port.map(read_port).transpose()?.flatten()))
}

fn read_ports(value: &str) -> Result<Vec<Option<u16>>, UrlFault> {
    value.split(',').map(read_port).collect()
}

/// Reads a port; an empty one means the default.
fn read_port(text: &str) -> Result<Option<u16>, UrlFault> {
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse() {
        Ok(0) | Err(_) => Err(fault::port()),
        Ok(port) => Ok(Some(port)),
    }
}

/// Decodes `%41`; a plus sign stays one, as in libpq.
fn decode(text: &str) -> Result<String, UrlFault> {
    let wrong = UrlFault::new(
        "holds a `%` that two hexadecimal digits do not follow",
        "write %25 for a percent sign, in a password too",
    );
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let digits = rest
            .get(..2)
            .and_then(|pair| std::str::from_utf8(pair).ok());
        let value = digits
            .filter(|pair| pair.bytes().all(|digit| digit.is_ascii_hexdigit()))
            .and_then(|pair| u8::from_str_radix(pair, 16).ok())
            .ok_or_else(|| wrong.clone())?;
        decoded.push(value);
        rest = &rest[2..];
    }
    let text = String::from_utf8(decoded).map_err(|_| {
        UrlFault::new(
            "is not UTF-8 once it is decoded",
            "encode it as UTF-8: `é` is %C3%A9",
        )
    })?;
    if text.contains('\0') {
        return Err(UrlFault::new("holds a zero byte", "remove %00"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<ConnectOptions, UrlFault> {
        ConnectOptions::parse(&Secret::new(url.to_owned()))
    }

    fn tcp(name: &str, port: u16) -> Host {
        let name = name.to_owned();
        Host::Tcp { name, port }
    }

    #[test]
    fn a_full_url_is_understood() {
        let options = parse(
            "postgresql://o%40x:p%2Fw:d@db1:5433,[::1],db3/orders?connect_timeout=2&target_session_attrs=read-write&application_name=a+b&sslmode=prefer",
        )
        .unwrap();
        let hosts = vec![tcp("db1", 5433), tcp("::1", 5432), tcp("db3", 5432)];
        assert_eq!(options.hosts, hosts);
        assert_eq!(options.user, "o@x");
        assert_eq!(options.password.as_ref().unwrap().reveal(), "p/w:d");
        assert_eq!(options.dbname, "orders");
        assert_eq!(options.connect_timeout, Duration::from_secs(2));
        assert_eq!(options.application_name("lease"), "a+b lease");
    }

    #[test]
    fn defaults_are_those_of_libpq() {
        let options = parse("postgres://relay@db").unwrap();
        assert_eq!(options.hosts, [tcp("db", 5432)]);
        assert_eq!(options.dbname, "relay");
        assert_eq!(options.password, None);
        assert_eq!(options.application_name("lease"), "outboxd lease");
    }

    #[test]
    fn a_host_that_begins_with_a_slash_is_a_unix_socket() {
        let unix = Host::Unix {
            directory: "/run/pg".into(),
            port: 6000,
        };
        let by_parameter = parse("postgres:///orders?host=/run/pg&port=6000&user=relay").unwrap();
        let by_host = parse("postgres://relay@%2Frun%2Fpg:6000/orders").unwrap();
        assert_eq!(by_parameter.hosts.as_slice(), std::slice::from_ref(&unix));
        assert_eq!(by_host, by_parameter);
        assert_eq!(unix.to_string(), "/run/pg/.s.PGSQL.6000");
    }

    #[test]
    fn errors_name_the_parameter_and_never_repeat_the_url() {
        let urls = [
            ("postgres://r:s3cret@h/d?sslpassword=s3cret", "sslpassword"),
            ("postgres://r:s3cret@h/d?sslmode=s3cret", "sslmode"),
            ("postgres://r:s3cret@h/d?sslcert=s3cret", "sslkey"),
            (
                "postgres://r:s3cret@h/d?connect_timeout=s3cret",
                "connect_timeout",
            ),
            (
                "postgres://r:s3cret@h/d?target_session_attrs=s3cret",
                "target_session_attrs",
            ),
            ("postgres://r:s3cret@h:s3cret/d", "port"),
            ("postgres://r:s3cret/1@h/d", "percent-encoded"),
            ("postgres://r:1/s3cret@h/d", "percent-encoded"),
            ("postgres://r:a@s3cret/b@h/d", "percent-encoded"),
            (
                "postgres://r:a@b/s3cret@h/d?sslmode=require",
                "percent-encoded",
            ),
            ("postgres://r:a?s3cret@h/d", "percent-encoded"),
            ("postgres://r:1?s3cret=b@h/d", "percent-encoded"),
            ("postgres://r:a@s3cret?b@h/d", "percent-encoded"),
            ("postgres://r:1?user=s3cret@h/d", "percent-encoded"),
            ("postgres://r:a@s3 cret@h/d\nx", "line break"),
            ("postgres://r:a@s3cret h/d", "no host's name holds"),
            ("postgres://r@s3cret%40h/d", "no host's name holds"),
            ("postgres://r@s3cret;h/d", "no host's name holds"),
            ("jdbc:postgresql://h/d?user=r&password=s3cret", "jdbc:"),
            ("host=h user=r password=s3cret", "keywords"),
            ("\"postgres://r:s3cret@h/d\"", "quotes"),
            ("postgresql+psycopg2://r:s3cret@h/d", "driver"),
            ("postgres://r:s3cret@h/d?sslmod=require", "`sslmode`"),
            ("postgres://r:s3cret@h/d?schema=x", "source.table"),
            ("postgres://r:s3cret@h1,h2/d?port=1,2,3", "ports"),
            ("postgres://r:s3cret%@h/d", "%"),
            ("postgres://:s3cret@h/d", "user"),
            ("mysql://r:s3cret@h/d", "postgres://"),
            ("postgres://r:s3cret@/d", "host"),
        ];
        for (url, part) in urls {
            let error = parse(url).unwrap_err();
            let text = format!("{error} {error:?}");
            assert!(text.contains(part), "{text}");
            assert!(!text.contains("s3cret"), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_parsed_without_a_panic(text in "(postgres://)?.{0,60}") {
            let _ = parse(&text);
        }

        #[test]
        fn long_application_names_are_cut(name in ".{0,80}") {
            let mut options = parse("postgres://r@h").unwrap();
            options.application_name = name;
            assert!(options.application_name("é").len() <= APPLICATION_NAME_BYTES_MAX);
        }
    }
}
