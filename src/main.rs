//! From arguments to a command; the only exit codes.

use std::process::ExitCode;

fn main() -> ExitCode {
    outboxd::cli::main()
}
