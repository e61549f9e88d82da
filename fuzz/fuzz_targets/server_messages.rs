//! What a PostgreSQL server sends, up to rows of the outbox, made up by the fuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    outboxd::source::replication::wire::exercise::read(bytes);
});
