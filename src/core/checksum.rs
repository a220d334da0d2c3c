//! CRC-64 of what we write beside Litestream's format: segment and snapshot contents and their trailers.

/// A CRC-64 that grows with the bytes it is given.
#[derive(Clone, Default)]
pub struct Crc64(crc64fast::Digest);

impl Crc64 {
    /// The CRC of no bytes.
    pub fn new() -> Self {
        Crc64::default()
    }
    /// Takes the next bytes in.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }
    /// The CRC of all bytes so far.
    pub fn value(&self) -> u64 {
        self.0.sum64()
    }
    /// The CRC of `bytes` alone.
    pub fn of(bytes: &[u8]) -> u64 {
        let mut crc = Crc64::new();
        crc.update(bytes);
        crc.value()
    }
}
