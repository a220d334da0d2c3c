//! A WAL of our own making: valid bytes for pages that changed while nobody copied the real one.

use super::page::{PageCount, PageNumber, PageSize};
use super::wal::{ByteOrder, Checksum, FrameHeaderBytes, Salt, WalHeader, WalHeaderBytes, seal};

/// Makes the header and the frames of one WAL, as SQLite would have written them.
pub struct SyntheticWal {
    header: WalHeader,
    checksum: Checksum,
}

impl SyntheticWal {
    /// A WAL without frames. `salt` is random, so that it belongs to no other WAL.
    pub fn new(page_size: PageSize, salt: Salt) -> Self {
        let fields = [0x377F_0682, 3_007_000, page_size.get(), 0, salt.0, salt.1];
        let mut bytes: WalHeaderBytes = [0; 32];
        for (word, to) in fields.into_iter().zip(bytes.chunks_exact_mut(4)) {
            to.copy_from_slice(&word.to_be_bytes());
        }
        let checksum = Checksum::default().extend(ByteOrder::Little, &bytes[..24]);
        bytes[24..28].copy_from_slice(&checksum.0.to_be_bytes());
        bytes[28..].copy_from_slice(&checksum.1.to_be_bytes());
        let header = WalHeader::parse(&bytes).expect("BUG: the header was made to be valid");
        SyntheticWal { header, checksum }
    }

    /// Its header.
    pub fn header(&self) -> &WalHeader {
        &self.header
    }

    /// Appends the next frame to `out`; with `commit`, it ends the transaction.
    pub fn push(&mut self, out: &mut Vec<u8>, number: PageNumber, page: &[u8], commit: Option<PageCount>) {
        let mut head: FrameHeaderBytes = [0; 24];
        head[..4].copy_from_slice(&number.get().to_be_bytes());
        head[4..8].copy_from_slice(&commit.map_or(0, PageCount::get).to_be_bytes());
        let order = self.header.order();
        self.checksum = self.checksum.extend(order, &head[..8]).extend(order, page);
        seal(&mut head, self.header.salt(), self.checksum);
        out.extend_from_slice(&head);
        out.extend_from_slice(page);
    }
}
