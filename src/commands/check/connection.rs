//! How the connection to PostgreSQL is secured, and whether it is PostgreSQL itself that answers.

use super::Finding;
use crate::postgres::{Security, Verified};

const WHAT: &str = "connection";
const VERIFY: &str = "`?sslmode=verify-full&sslrootcert=/path/ca.pem` in the URL; see docs/security.md#tls-to-postgresql";

pub(super) fn finding(security: &Security) -> Finding {
    let detail = security.to_string();
    match security {
        Security::Local
        | Security::PlainText { is_loopback: true }
        | Security::Tls {
            verified: Verified::IssuerAndName | Verified::Issuer,
            ..
        } => Finding::ok(WHAT, detail),
        Security::PlainText { is_loopback: false }
        | Security::Tls {
            verified: Verified::Nothing,
            ..
        } => Finding::warning(WHAT, detail, VERIFY),
    }
}
