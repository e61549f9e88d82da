//! Files that are broken or away.

use super::*;

/// Ten broken files; each line and remedy as a user sees them.
#[test]
fn a_broken_file_ends_with_code_2_and_names_line_and_remedy() {
    let url = format!("[source]\nurl = \"postgres://u:{PASSWORD}@h/d\"\n");
    let kafka = "[kafka]\nbrokers = [\"k:9092\"]\n";
    let good = format!("{url}{kafka}");
    let files = [
        (
            format!("{good}[sorce]\nmode = \"polling\"\n"),
            5,
            "did you mean `source`?",
        ),
        (
            format!("{url}mod = \"polling\"\n{kafka}"),
            3,
            "did you mean `source.mode`?",
        ),
        (
            format!("{url}mode = \"poling\"\n{kafka}"),
            3,
            "did you mean \"polling\"?",
        ),
        (
            format!("{good}[kafka.properties]\nacks = 1\n"),
            6,
            "remove it: outboxd always uses acks=all",
        ),
        (
            format!("{good}[lease]\nttl = 4\n"),
            6,
            "write a text with a unit",
        ),
        (format!("{good}[route]\nallow = []\n"), 6, "write patterns"),
        (
            format!("{good}[admin]\nlisten = \"localhost\"\n"),
            6,
            "write an IP address and a port",
        ),
        (
            format!("[source]\nurl = \"mysql://u:{PASSWORD}@h/d\"\n{kafka}"),
            2,
            "write postgres://",
        ),
        (
            format!("{url}mode = \"polling\"\nmark = \"none\"\n{kafka}"),
            4,
            "write \"ledger\"",
        ),
        (
            format!("{good}[source.replication]\nslot = \"Orders\"\n"),
            6,
            "lower-case letters",
        ),
        (format!("{good}[route\ntopic = 1\n"), 5, ""),
    ];
    for (text, line, remedy) in files {
        let path = workspace::folder("broken").join("outboxd.toml");
        fs::write(&path, &text).unwrap();
        for command in ["check", "run", "migrate"] {
            let done = outboxd(&[command, "--config", path.to_str().unwrap()]);
            let said = said(&done);
            assert_eq!(done.status.code(), Some(2), "{text}\n{said}");
            assert!(
                said.contains(&format!("outboxd.toml:{line}:")),
                "{text}\n{said}"
            );
            assert!(said.contains(remedy), "{text}\n{said}");
            assert_no_secret(&said);
        }
    }
}

#[test]
fn a_missing_file_and_a_missing_argument_end_with_code_2() {
    let missing = Path::new("/nowhere/outboxd.toml");
    let done = outboxd(&["check", "--config", missing.to_str().unwrap()]);
    assert_eq!(done.status.code(), Some(2));
    assert!(
        said(&done).contains("/nowhere/outboxd.toml"),
        "{}",
        said(&done)
    );
    let done = outboxd(&["run"]);
    assert_eq!(done.status.code(), Some(2));
    assert!(said(&done).contains("--config"), "{}", said(&done));
}
