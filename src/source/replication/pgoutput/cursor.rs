//! Reading a message piece by piece, none of which may reach beyond its end.

use std::ops::Range;

use super::DecodeError;
use crate::source::replication::wire::LEFT_OUT;

/// One column of a tuple.
pub(super) enum Value {
    Null,
    /// A large value that an update has not touched.
    Unchanged,
    /// Where its text stands.
    Text(Range<usize>),
    /// The text was too long to be kept.
    LeftOut {
        len: u32,
    },
}

/// A place in one message.
pub(super) struct Cursor<'a> {
    data: &'a [u8],
    offset: usize,
}

impl<'a> Cursor<'a> {
    /// Stands behind the byte that names the message's kind.
    pub(super) fn new(data: &'a [u8]) -> Result<Self, DecodeError> {
        Self::at(data, 1)
    }

    /// Stands at an offset of a message that is not empty.
    pub(super) fn at(data: &'a [u8], offset: usize) -> Result<Self, DecodeError> {
        if data.is_empty() || offset > data.len() {
            let message = data.first().map_or(' ', |byte| printable(*byte));
            let offset = data.len();
            return Err(DecodeError::Truncated { message, offset });
        }
        Ok(Self { data, offset })
    }

    pub(super) fn message(&self) -> u8 {
        self.data[0]
    }

    pub(super) fn offset(&self) -> usize {
        self.offset
    }

    pub(super) fn malformed(&self, what: &'static str) -> DecodeError {
        DecodeError::Malformed {
            message: printable(self.data[0]),
            offset: self.offset,
            what,
        }
    }

    fn truncated(&self) -> DecodeError {
        DecodeError::Truncated {
            message: printable(self.data[0]),
            offset: self.offset,
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let rest = &self.data[self.offset..];
        let array = rest.first_chunk().ok_or_else(|| self.truncated())?;
        self.offset += N;
        Ok(*array)
    }

    pub(super) fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array().map(u8::from_be_bytes)
    }

    pub(super) fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_be_bytes)
    }

    /// A text that a zero byte ends.
    pub(super) fn text(&mut self) -> Result<&'a [u8], DecodeError> {
        let rest = &self.data[self.offset..];
        let end = memchr::memchr(0, rest).ok_or_else(|| self.truncated())?;
        self.offset += end + 1;
        Ok(&rest[..end])
    }

    /// Reads one column of a tuple.
    pub(super) fn value(&mut self) -> Result<Value, DecodeError> {
        match self.u8()? {
            b'n' => Ok(Value::Null),
            LEFT_OUT => Ok(Value::LeftOut { len: self.u32()? }),
            b't' => {
                let len = self.u32()? as usize;
                if self.data.len() - self.offset < len {
                    return Err(self.truncated());
                }
                let start = self.offset;
                self.offset += len;
                Ok(Value::Text(start..self.offset))
            }
            b'u' => Ok(Value::Unchanged),
            _ => Err(self.malformed("a value that is not text")),
        }
    }
}

fn printable(byte: u8) -> char {
    let byte = char::from(byte);
    if byte.is_ascii_graphic() { byte } else { '?' }
}
