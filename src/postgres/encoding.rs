//! Texts of ours and of people on their way into a database of another encoding than UTF-8.
//!
//! PostgreSQL refuses a whole statement for one character that it cannot convert.

use std::borrow::Cow;

/// The text as a database of this encoding can hold it; what it can't is replaced.
pub(super) fn storable<'a>(text: &'a str, encoding: &str) -> Cow<'a, str> {
    let last = match encoding {
        // SQL_ASCII takes any bytes.
        "UTF8" | "SQL_ASCII" => return Cow::Borrowed(text),
        "LATIN1" => '\u{ff}',
        _ => '\u{7f}',
    };
    // What stands between is control characters in Unicode, and letters in many encodings.
    let fits = |c: char| c.is_ascii() || c <= last && c >= '\u{a0}';
    if text.chars().all(fits) {
        return Cow::Borrowed(text);
    }
    let mut fitting = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            c if fits(c) => fitting.push(c),
            '\u{2010}'..='\u{2015}' => fitting.push('-'),
            '\u{2018}' | '\u{2019}' => fitting.push('\''),
            '\u{201c}' | '\u{201d}' | '\u{201e}' => fitting.push('"'),
            '\u{2026}' => fitting.push_str("..."),
            _ => fitting.push('?'),
        }
    }
    Cow::Owned(fitting)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_that_the_database_cannot_hold_is_replaced() {
        let text = "caf\u{e9} \u{2013} \u{201c}\u{65e5}\u{201d} \u{2026}";
        assert_eq!(storable(text, "UTF8"), text);
        assert_eq!(storable(text, "SQL_ASCII"), text);
        assert_eq!(storable(text, "LATIN1"), "caf\u{e9} - \"?\" ...");
        assert_eq!(storable(text, "EUC_JP"), "caf? - \"?\" ...");
        assert!(matches!(storable("caf\u{e9}", "LATIN1"), Cow::Borrowed(_)));
    }
}
