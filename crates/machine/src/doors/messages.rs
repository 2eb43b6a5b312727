//! The messages of [`usgx_wire::channel`] as bytes.
//!
//! Fields are little-endian, as on every x86-64. A message with the wrong length is no message.

use usgx_wire::channel::{Answer, Hello, Request, Welcome};

/// Reads fields one after the other.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn u32(&mut self) -> u32 {
        let (head, rest) = self.0.split_at(4);
        self.0 = rest;
        u32::from_le_bytes(head.try_into().expect("four bytes were split off"))
    }

    fn u64(&mut self) -> u64 {
        let low = u64::from(self.u32());
        low | u64::from(self.u32()) << 32
    }
}

/// Reads a Hello, unless it has the wrong length.
pub(crate) fn hello(bytes: &[u8]) -> Option<Hello> {
    let mut reader = (bytes.len() == size_of::<Hello>()).then_some(Reader(bytes))?;
    Some(Hello {
        magic: reader.u32(),
        version: reader.u32(),
        pid: reader.u32(),
        reserved: reader.u32(),
        ticket: [reader.u64(), reader.u64()],
    })
}

/// Reads a request, unless it has the wrong length.
pub(crate) fn request(bytes: &[u8]) -> Option<Request> {
    let mut reader = (bytes.len() == size_of::<Request>()).then_some(Reader(bytes))?;
    Some(Request { op: reader.u32(), reserved: reader.u32(), args: std::array::from_fn(|_| reader.u64()) })
}

/// Writes a welcome.
pub(crate) fn welcome(welcome: &Welcome) -> [u8; size_of::<Welcome>()] {
    let mut bytes = [0; size_of::<Welcome>()];
    bytes[..4].copy_from_slice(&welcome.status.to_le_bytes());
    bytes[4..].copy_from_slice(&welcome.version.to_le_bytes());
    bytes
}

/// Writes an answer.
pub(crate) fn answer(answer: &Answer) -> [u8; size_of::<Answer>()] {
    let mut bytes = [0; size_of::<Answer>()];
    bytes[..8].copy_from_slice(&answer.status.to_le_bytes());
    for (chunk, value) in bytes[8..].chunks_exact_mut(8).zip(answer.values) {
        chunk.copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_one_length() {
        assert!(hello(&[0; 31]).is_none() && hello(&[0; 33]).is_none());
        assert!(request(&[0; 39]).is_none() && request(&[0; 41]).is_none());
        let mut bytes = [0; 40];
        bytes[0] = 7;
        bytes[15] = 1;
        let parsed = request(&bytes).expect("the right length");
        assert_eq!((parsed.op, parsed.args[0]), (7, 1 << 56));
    }
}
