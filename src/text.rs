//! What is said in words: an error with its causes, commands that can be pasted, which episodes are told. Pure.

mod episodes;
pub(crate) mod paste;

use std::error::Error;
use std::fmt::Write as _;

pub(crate) use episodes::Episodes;

/// An error and what caused it, in one line; a cause that only repeats its parent is left out.
pub(crate) fn chain(error: &dyn Error) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_says_each_cause_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot read the lease")]
        struct Outer(#[source] std::io::Error);
        let error = Outer(std::io::Error::other("the pipe is gone"));
        assert_eq!(chain(&error), "cannot read the lease: the pipe is gone");
    }
}
