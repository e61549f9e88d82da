//! What can be wrong with a connection URL, said without any piece of it: each may be part of a password.

use super::PARAMETERS;

pub(super) const FORM: &str = "write postgres://user:password@host:port/database";

/// Reads as one sentence behind what names the URL: "the URL `problem`; `remedy`".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}; {remedy}")]
pub struct UrlFault {
    pub problem: String,
    pub remedy: String,
}

impl UrlFault {
    pub(crate) fn new(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        let (problem, remedy) = (problem.into(), remedy.into());
        Self { problem, remedy }
    }

    /// A parameter's value that is none of these; whatever stands there is not shown.
    pub(super) fn value(parameter: &str, allowed: &str) -> Self {
        Self::new(
            format!("has a value of `{parameter}` that is not known"),
            format!("write {parameter}={allowed}"),
        )
    }

    pub(crate) fn no_host() -> Self {
        Self::new("names no host", FORM)
    }
}

/// What follows the scheme.
pub(super) fn after_scheme(url: &str) -> Result<&str, UrlFault> {
    let rest = url.strip_prefix("postgres://");
    if let Some(rest) = rest.or_else(|| url.strip_prefix("postgresql://")) {
        return match rest.contains(char::is_control) {
            false => Ok(rest),
            true => Err(UrlFault::new(
                "holds a line break or another control character",
                "write the URL alone, in one line",
            )),
        };
    }
    let lower = url.to_ascii_lowercase();
    let (problem, remedy) = if url.is_empty() {
        ("is empty", FORM)
    } else if lower.starts_with("jdbc:") {
        (
            "is one of JDBC",
            "leave out `jdbc:` and put user and password before the host: postgres://user:password@host:port/database",
        )
    } else if lower.starts_with("postgresql+") || lower.starts_with("postgres+") {
        (
            "names a driver behind `postgresql`",
            "leave it out: postgresql://user:password@host:port/database",
        )
    } else if lower.starts_with("postgres://") || lower.starts_with("postgresql://") {
        ("begins with capitals", "write postgres:// in small letters")
    } else if url.starts_with(['"', '\'']) {
        (
            "stands in quotes, which the file must not hold",
            "write it without them",
        )
    } else if ["host=", "dbname=", "user="]
        .iter()
        .any(|word| lower.contains(word))
        && !url.contains("://")
    {
        ("is a list of keywords and no URL", FORM)
    } else {
        ("is no PostgreSQL URL", FORM)
    };
    Err(UrlFault::new(problem, remedy))
}

/// Refuses a URL whose user or password seems to hold a separator: what stands behind it would pass for a host.
pub(super) fn check_separators(authority: &str, path: &str, query: &str) -> Result<(), UrlFault> {
    let is_parameter = |pair: &str| {
        let (name, _) = pair.split_once('=').unwrap_or((pair, ""));
        PARAMETERS.contains(&name)
    };
    let mut pairs = query.split('&').filter(|pair| pair.contains('@'));
    let is_login = |text: &str| text.contains(':') && !text.contains('@');
    let is_cut = pairs.any(|pair| !is_parameter(pair) || is_login(authority));
    if !path.contains('@') && !is_cut {
        return Ok(());
    }
    Err(UrlFault::new(
        "can't be read: the password holds characters that must be percent-encoded",
        "write its `@` as %40, `/` as %2F, `?` as %3F, `:` as %3A, `#` as %23 and `%` as %25 (an `@` of a database's name too)",
    ))
}

pub(super) fn check_host(name: &str) -> Result<(), UrlFault> {
    let is_legal = |c: char| c.is_alphanumeric() || "-._:%".contains(c);
    if name.starts_with('/') || !name.is_empty() && name.chars().all(is_legal) {
        return Ok(());
    }
    if name.is_empty() {
        return Err(UrlFault::no_host());
    }
    Err(UrlFault::new(
        "names a host with a character that no host's name holds",
        "write letters, digits, `.` and `-`; a password's `@`, `/`, `?` and `:` must be percent-encoded (%40, %2F, %3F, %3A)",
    ))
}

pub(super) fn port() -> UrlFault {
    UrlFault::new(
        "has a port that is no number from 1 to 65535",
        "write host:port, such as db:5432; a password's `:`, `/`, `?` and `@` must be percent-encoded (%3A, %2F, %3F, %40)",
    )
}

/// A parameter that is not read, with what to do instead; its name may be shown, for no `@` follows it.
pub(super) fn unknown_parameter(name: &str) -> UrlFault {
    if name.len() > 40
        || !name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
    {
        return UrlFault::new(
            "has a parameter that is not known",
            format!("known are {}", PARAMETERS.join(", ")),
        );
    }
    let lower = name.to_ascii_lowercase();
    let instead = INSTEAD
        .iter()
        .find(|(names, _)| names.contains(&lower.as_str()));
    if let Some((_, remedy)) = instead {
        return UrlFault::new(
            format!("has a parameter `{name}`, which is not read"),
            *remedy,
        );
    }
    let near = PARAMETERS
        .iter()
        .find(|one| strsim::damerau_levenshtein(one, &lower) <= 2);
    let remedy = match near {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("remove it; known are {}", PARAMETERS.join(", ")),
    };
    UrlFault::new(
        format!("has a parameter `{name}`, which is not known"),
        remedy,
    )
}

/// What drivers and libpq know and we do not.
const INSTEAD: &[(&[&str], &str)] = &[
    (
        &["ssl", "tls", "usessl"],
        "write sslmode=require, or verify-full",
    ),
    (
        &["schema", "currentschema", "search_path", "searchpath"],
        "write `source.table = \"schema.table\"`",
    ),
    (&["hostaddr"], "write the address in the host's place"),
    (&["options"], "set it for the role: ALTER ROLE … SET …"),
    (
        &["passfile", "service", "servicefile"],
        "no file of libpq's is read: write user, password and host into the URL",
    ),
    (
        &["sslpassword"],
        "remove it: a key with a passphrase is refused",
    ),
    (
        &["sslcrl", "sslcrldir"],
        "remove it: lists of revoked certificates are not read",
    ),
    (
        &["gssencmode", "krbsrvname", "gsslib", "require_auth"],
        "remove it: passwords and certificates are supported, Kerberos is not built in",
    ),
    (
        &[
            "keepalives",
            "keepalives_idle",
            "keepalives_interval",
            "keepalives_count",
            "tcp_user_timeout",
        ],
        "remove it: outboxd sets its own",
    ),
    (
        &[
            "pgbouncer",
            "pool_timeout",
            "connection_limit",
            "max_connections",
            "pool_max_conns",
        ],
        "remove it: outboxd has no pool of connections",
    ),
    (
        &["replication"],
        "remove it: outboxd opens a replication connection where it needs one",
    ),
    (
        &["fallback_application_name", "applicationname"],
        "write application_name",
    ),
    (
        &["client_encoding", "charset"],
        "remove it: outboxd reads UTF-8",
    ),
    (
        &[
            "sslnegotiation",
            "ssl_min_protocol_version",
            "ssl_max_protocol_version",
            "sslcompression",
            "sslsni",
        ],
        "remove it: outboxd takes TLS 1.2 and newer",
    ),
    (
        &["load_balance_hosts"],
        "remove it: hosts are tried in their order",
    ),
    (
        &["connecttimeout", "sockettimeout", "logintimeout"],
        "write connect_timeout, in seconds",
    ),
];
