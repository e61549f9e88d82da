//! What does not fit, and what helps.

/// Why a table, a server or a role does not allow what is asked of it, and the remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incompatibility {
    pub text: String,
    pub remedy: String,
}
