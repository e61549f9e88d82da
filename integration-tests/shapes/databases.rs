//! Encodings, collations and settings of a database.

use super::shape::{PLAIN, Payload, Shape};

const fn encoded(name: &'static str, database: &'static str) -> Shape {
    Shape {
        name,
        database,
        ..PLAIN
    }
}

const fn set(name: &'static str, database_settings: &'static [&'static str]) -> Shape {
    Shape {
        name,
        database_settings,
        ..PLAIN
    }
}

pub const SHAPES: &[Shape] = &[
    encoded("LATIN1", "ENCODING 'LATIN1' LOCALE 'C'"),
    encoded("WIN1252", "ENCODING 'WIN1252' LOCALE 'C'"),
    encoded("EUC_JP", "ENCODING 'EUC_JP' LOCALE 'C'"),
    encoded("SQL_ASCII", "ENCODING 'SQL_ASCII' LOCALE 'C'"),
    Shape {
        payload: Payload::Of("text"),
        once_running: "INSERT INTO {t} (id, aggregatetype, aggregateid, type, payload) \
                       VALUES (md5('bad')::uuid, 'order', 'bad', 'Changed', convert_from('\\xff'::bytea, 'SQL_ASCII'))",
        ..encoded(
            "SQL_ASCII with a byte that is no UTF-8",
            "ENCODING 'SQL_ASCII' LOCALE 'C'",
        )
    },
    encoded(
        "ICU",
        "ENCODING 'UTF8' LOCALE_PROVIDER icu ICU_LOCALE 'de-DE' LOCALE 'C'",
    ),
    encoded("C.utf8", "ENCODING 'UTF8' LOCALE 'C.utf8'"),
    set("lc_messages", &["lc_messages = 'de_DE.UTF-8'"]),
    set(
        "output of times and bytes",
        &[
            "datestyle = 'German, DMY'",
            "intervalstyle = 'sql_standard'",
            "bytea_output = 'escape'",
            "extra_float_digits = -3",
            "timezone = 'Asia/Tokyo'",
        ],
    ),
    set("quote_all_identifiers", &["quote_all_identifiers = on"]),
    set(
        "standard_conforming_strings off",
        &["standard_conforming_strings = off", "backslash_quote = on"],
    ),
    set("no search_path", &["search_path = ''"]),
    set(
        "statement_timeout",
        &["statement_timeout = '2s'", "lock_timeout = '1s'"],
    ),
    set(
        "idle_session_timeout",
        &[
            "idle_session_timeout = '2s'",
            "idle_in_transaction_session_timeout = '1s'",
        ],
    ),
    set(
        "serializable",
        &["default_transaction_isolation = 'serializable'"],
    ),
    set("read only", &["default_transaction_read_only = on"]),
    set(
        "deferrable",
        &[
            "default_transaction_deferrable = on",
            "default_transaction_isolation = 'repeatable read'",
        ],
    ),
    set("synchronous_commit off", &["synchronous_commit = off"]),
    set("row_security off", &["row_security = off"]),
    set("client_encoding", &["client_encoding = 'LATIN1'"]),
    set(
        "array_nulls and xml",
        &[
            "array_nulls = off",
            "xmloption = document",
            "xmlbinary = hex",
        ],
    ),
    set("little memory for decoding", &["work_mem = '64kB'"]),
    set(
        "plans without indexes",
        &["enable_indexscan = off", "enable_bitmapscan = off"],
    ),
    set(
        "generic plans",
        &[
            "plan_cache_mode = force_generic_plan",
            "jit = on",
            "jit_above_cost = 0",
        ],
    ),
    set(
        "default_tablespace and toast",
        &["default_toast_compression = 'lz4'"],
    ),
];
