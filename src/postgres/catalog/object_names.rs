//! Names of tables and of what is made beside them, ready for SQL. Pure.

/// PostgreSQL cuts longer names off (NAMEDATALEN − 1).
const NAME_BYTES_MAX: usize = 63;

/// A table's name for SQL, qualified and quoted.
pub(crate) fn qualified(schema: &str, table: &str) -> String {
    use postgres_protocol::escape::escape_identifier;
    format!("{}.{}", escape_identifier(schema), escape_identifier(table))
}

/// A name that follows from the table's. One that is too long is cut before a digest of the whole, so that tables that
/// begin alike have objects of their own.
pub(crate) fn suffixed(table: &str, suffix: &str) -> String {
    if table.len() + suffix.len() <= NAME_BYTES_MAX {
        return format!("{table}{suffix}");
    }
    let digest = crate::config::digest(table);
    let mut end = NAME_BYTES_MAX - suffix.len() - digest.len() - 1;
    while !table.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}_{digest}{suffix}", &table[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_table_name_keeps_the_ending() {
        let name = suffixed(&"é".repeat(31), "_status");
        assert!(
            name.len() <= NAME_BYTES_MAX && name.starts_with("éé") && name.ends_with("_status")
        );
        let alike =
            ["a", "b"].map(|last| suffixed(&format!("{}{last}", "o".repeat(62)), "_publish"));
        assert!(
            alike[0] != alike[1] && alike[0].len() == NAME_BYTES_MAX,
            "{alike:?}"
        );
        let whole = "o".repeat(NAME_BYTES_MAX - "_status".len());
        assert_eq!(suffixed(&whole, "_status"), format!("{whole}_status"));
        assert_eq!(suffixed("outbox", "_status"), "outbox_status");
    }
}
