//! What the relay says in words: its log, and the chain of an error as one text.

use std::error::Error;
use std::fmt::Write as _;

/// An error and what caused it, in one line; a cause that only repeats its parent is left out.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            let _ = write!(text, ": {cause_text}");
        }
        source = cause.source();
    }
    text
}
