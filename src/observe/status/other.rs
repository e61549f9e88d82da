//! Whether the relay that answers is the one that was asked for.

use super::Status;
use crate::config::SourceConfig;
use crate::postgres;

/// What a server says that no other one does.
pub(crate) const SYSTEM_IDENTIFIER: &str =
    "SELECT system_identifier::text FROM pg_catalog.pg_control_system()";

/// Names the outbox of the relay that answers, where it is another one than this configuration's.
///
/// What either side does not know makes no difference.
pub(super) async fn differs(source: &SourceConfig, theirs: &Status) -> Option<String> {
    let mut ours = Status::starting(source);
    let options = source.url.options().ok();
    if let Some(options) = &options {
        ours.locate(source, options);
    }
    if differ(&ours, theirs) {
        return Some(named(theirs));
    }
    let is_elsewhere = match (&ours.server, &theirs.server) {
        (Some(ours), Some(theirs)) => !theirs
            .split(',')
            .any(|host| ours.split(',').any(|one| one == host)),
        _ => false,
    };
    // One server may have several names.
    let (options, theirs_is) = (options?, theirs.system_identifier.as_ref()?);
    if !is_elsewhere {
        return None;
    }
    let session = postgres::connect(&options, "status").await.ok()?;
    let row = session
        .client
        .query_one(SYSTEM_IDENTIFIER, &[])
        .await
        .ok()?;
    (row.get::<_, &str>(0) != theirs_is).then(|| named(theirs))
}

fn differ(ours: &Status, theirs: &Status) -> bool {
    let differ = |ours: &Option<String>, theirs: &Option<String>| {
        ours.is_some() && theirs.is_some() && ours != theirs
    };
    ours.table != theirs.table
        || differ(&ours.database, &theirs.database)
        || differ(&ours.slot, &theirs.slot)
}

fn named(status: &Status) -> String {
    let mut parts = vec![format!("table {}", status.table)];
    let rest = [
        ("database", &status.database),
        ("server", &status.server),
        ("slot", &status.slot),
    ];
    for (what, name) in rest {
        parts.extend(name.as_ref().map(|name| format!("{what} {name}")));
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::config::Config;

    fn status(url: &str, rest: &str) -> (Status, SourceConfig) {
        let text = format!("[source]\nurl = \"{url}\"\n{rest}\n[kafka]\nbrokers = [\"k:1\"]\n");
        let config = Config::parse("o.toml", &text, []).unwrap().source;
        let mut status = Status::starting(&config);
        status.locate(&config, &config.url.options().unwrap());
        (status, config)
    }

    #[tokio::test]
    async fn another_database_table_or_slot_is_another_relay() {
        let slot = |name: &str| format!("[source.replication]\nslot = \"{name}\"");
        let (_, ours) = status("postgres://u@h/a", &slot("s"));
        for (url, rest) in [
            ("postgres://u@h/b", slot("s")),
            ("postgres://u@h/a", slot("t")),
            ("postgres://u@h/a", "table = \"x.outbox\"".to_owned()),
        ] {
            let (theirs, _) = status(url, &rest);
            let named = differs(&ours, &theirs).await.expect(url);
            assert!(
                named.contains(&theirs.table) && named.contains("database"),
                "{named}"
            );
        }
        let (mut theirs, _) = status("postgres://other@h/a", &slot("s"));
        assert_eq!(differs(&ours, &theirs).await, None);
        (theirs.database, theirs.slot, theirs.server) = (None, None, None);
        assert_eq!(differs(&ours, &theirs).await, None);
        let mut unread = ours.clone();
        unread.url = crate::config::UrlSource::File(PathBuf::from("/nowhere/url"));
        assert_eq!(differs(&unread, &theirs).await, None);
    }
}
