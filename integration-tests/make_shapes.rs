//! What `make shapes` runs: the table of shapes as a program, without libtest.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod harness;
mod shapes;

fn main() -> std::process::ExitCode {
    shapes::program::main()
}
