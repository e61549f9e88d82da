//! From arguments to a command; the only exit codes.

fn main() {
    outboxd::cli::main()
}
