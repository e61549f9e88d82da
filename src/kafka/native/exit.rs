//! The end of the process, whatever threads of librdkafka still do.

use std::ffi::c_int;

unsafe extern "C" {
    /// POSIX: ends the process at once; takes any number.
    safe fn _exit(status: c_int) -> !;
}

/// Ends the process with this code, without the exit handlers of C libraries.
///
/// Those of OpenSSL free what librdkafka's threads may still use: `exit` was seen to end in "double free or corruption", and
/// the code was lost. Nothing else is: what is printed ends with a line, which Rust's standard output writes at once, and
/// the log's guard has written its queue.
pub(crate) fn exit(code: u8) -> ! {
    _exit(c_int::from(code))
}
