//! What `make faults` and `make soak` run: the fault matrix as a program, without libtest.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod harness;
mod matrix;
#[allow(dead_code, reason = "scenarios wait for what it waits for")]
mod orders;

fn main() -> std::process::ExitCode {
    matrix::program::main()
}
