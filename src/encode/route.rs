//! The topic of a row: a template over its columns, held against the allow-list.
