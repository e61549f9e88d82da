//! Packs the relocations of the program's many tables of pointers, where that is asked for.
//!
//! A packed binary is smaller by most of its relocations and starts only where glibc is 2.36 or newer; linkers before binutils 2.38
//! and lld 15 don't know the option.

const VARIABLE: &str = "OUTBOXD_PACK_RELOCATIONS";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed={VARIABLE}");
    if std::env::var_os(VARIABLE).is_some_and(|value| value == "1") {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
