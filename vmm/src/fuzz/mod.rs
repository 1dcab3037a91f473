//! The bodies of the fuzz targets (`vmm/fuzz`): bytes in, a hostile driver, front-end or supervisor out.
//!
//! They are here so that plain tests play the same: the kept corpus, and a million requests of a seeded generator for each
//! device. Whatever the bytes say, nothing may panic, hang, grow without bound, or change a file that is read-only.

mod attack;
mod device;
#[cfg(test)]
mod registers;
mod supervisor;
#[cfg(test)]
mod tests;
mod transport;

pub use self::attack::Attack;
pub use self::device::Kind;
pub use self::supervisor::{control, snapshot};
pub use self::transport::{configuration, mmio, vhost_user};

/// A driver of this device that does what the bytes say. Returns the number of requests that it made.
///
/// # Panics
/// The device broke a promise.
#[must_use]
pub fn device(kind: Kind, bytes: &[u8]) -> u64 {
    let mut attack = Attack::new(kind);
    let mut input = Input::new(bytes);
    while attack.step(&mut input).is_some() {}
    attack.check();
    attack.requests()
}

/// Bytes that decisions are taken from, until there are none left.
#[derive(Debug)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// All of these.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next `count` bytes.
    pub fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*bytes)
    }

    /// The next byte.
    pub fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// The next two bytes.
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    /// The next four bytes.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    /// The next eight bytes.
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// A number below `bound`, from one byte.
    pub fn below(&mut self, bound: usize) -> Option<usize> {
        self.u8().map(|byte| usize::from(byte) % bound.max(1))
    }
}
