//! What a person can do next, for each reason.

use super::Blocked;
use crate::core::OTHERS;

impl Blocked {
    /// What mends it, in one or two sentences.
    pub(crate) fn remedy(&self) -> &'static str {
        if self.topic.is_some() {
            return match self.reason.as_str() {
                _ if self.topic.as_deref() == Some(&**OTHERS) => {
                    "many topics at once can't be written: look who writes rows for them, and create the ones that \
                     are right; outboxd asks again every minute and continues by itself"
                }
                "refused" => {
                    "give the relay the right to write the topic, or fix what the brokers say; outboxd tries again \
                     by itself every 30 s"
                }
                _ => {
                    "create the topic (`outboxd status` prints the command) or grant the right to it; outboxd asks \
                     again every 30 s and continues by itself"
                }
            };
        }
        of_reason(&self.reason)
    }
}

/// By the reason of a dead letter: a replay sends the copy, whatever became of the row in the table.
pub(crate) fn of_letter(reason: &str) -> &'static str {
    match reason {
        "topic_not_allowed" => {
            "if the row is right, widen `route.allow`, restart the relay and replay; else insert a new row with the right \
             topic and discard this one"
        }
        "topic_invalid" => {
            "if `route.topic` is wrong, correct it, restart the relay and replay; else insert a new row with a right topic \
             and discard this one"
        }
        "null_key" => {
            "set `route.null_key = \"publish\"` if such rows need no order, restart the relay and replay; else insert a new \
             row with an aggregate id and discard this one"
        }
        "too_large" => {
            "raise \"message.max.bytes\" under [kafka.properties] (and `max.message.bytes` of the topic), restart the relay \
             and replay; else insert a smaller row and discard this one"
        }
        "refused" => {
            "if the brokers say that the record is too large, raise `max.message.bytes` of the topic and replay; else insert \
             a new row that they take and discard this one"
        }
        "follows" => {
            "fix the first dead letter of its aggregate and replay that one: what follows it goes out with it"
        }
        "null_id" | "header_reserved" | "headers_invalid" | "unreadable" | "no_column" => {
            "a replay sends this very copy and fails again: insert a new row with what was wrong corrected, and discard \
             this one"
        }
        _ => {
            "fix what the reason says outside the row, and replay; else insert a new row and discard this one"
        }
    }
}

/// By the reason of a row at fault.
pub(crate) fn of_reason(reason: &str) -> &'static str {
    match reason {
        "topic_not_allowed" => {
            "if the row is right, widen `route.allow` and restart the relay; else correct the row's topic"
        }
        "topic_invalid" => "correct the row's topic, or `route.topic`",
        "null_key" => {
            "set `route.null_key = \"publish\"` if such rows need no order, and restart; else give the row an \
             aggregate id"
        }
        "null_id" => "give the row an id",
        "header_reserved" | "headers_invalid" => "correct the row's headers",
        "too_large" => {
            "raise \"message.max.bytes\" under [kafka.properties] (and `max.message.bytes` of the topic) and restart; \
             else make the row smaller"
        }
        "refused" => {
            "raise `max.message.bytes` of the topic if the brokers say that the record is too large, and what bounds a \
             request if they close the connection on it; else correct the row"
        }
        "unreadable" => "PostgreSQL cannot send a value of the row: correct it in the table",
        "mark" => {
            "the row was published, and PostgreSQL doesn't let it be marked: take away what the error names (a foreign \
             key, a trigger, a rule), then skip it: that marks it and releases what follows; a retry would send it a second time"
        }
        "no_column" => "the row came while the table lacked a column: correct the row",
        "follows" => {
            "fix the first dead letter of its aggregate; what follows it is replayed with it"
        }
        _ => "fix what the reason says",
    }
}
