//! How glibc's `malloc` hands out memory: set once, before there is a second thread.
#![allow(unsafe_code)]

/// Names that set glibc's arenas from outside (glibc manual, "Memory Allocation Tunables"); then they hold.
#[cfg(target_env = "gnu")]
const SET_OUTSIDE: [&str; 2] = ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"];

/// All threads share one arena, unless the environment says how many there are.
///
/// A row is copied on one thread and freed on another, so that an arena for each keeps what none of the others can use: 29 MB
/// while a backlog is streamed, 25 MB with one; 31 and 27 MB by polling; as fast, for small pieces come from a cache of each
/// thread. Does nothing where libc is another one.
pub(super) fn share_one_arena() {
    #[cfg(target_env = "gnu")]
    if SET_OUTSIDE
        .iter()
        .all(|name| std::env::var_os(name).is_none())
    {
        // SAFETY: changes a number of the allocator's; this is the only thread.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    }
}
