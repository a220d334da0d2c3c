//! The read side of the shadow WAL, for workers. Everything is verified again before it leaves.

use crate::core::names;
use crate::core::position::{Index, Offset};
use crate::core::scan::Chain;
use crate::core::wal::{FrameHeader, WalHeader};
use crate::disk::{Disk, DiskFile};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Reads the shadow file of one index.
pub struct ShadowReader {
    file: Arc<dyn DiskFile>,
    chain: Chain,
    at: Offset,
    finished: bool,
}

/// Why a range of the shadow cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum ShadowReadError {
    /// The disk's error.
    #[error("cannot read the shadow WAL: {0}")]
    Disk(#[from] io::Error),
    /// What is on the disk is not what was copied.
    #[error("the shadow WAL is damaged: {0}")]
    Damaged(String),
}

impl ShadowReader {
    /// Opens the shadow of `index` at `from`, which is 0 or the end of a frame.
    ///
    /// # Errors
    /// The disk's, or the header is not valid.
    pub fn open(disk: &dyn Disk, folder: &Path, index: Index, from: Offset) -> Result<Self, ShadowReadError> {
        let file = disk.open(&folder.join(names::shadow_file(index)), false)?;
        let mut header = [0; 32];
        file.read_at(&mut header, 0)?;
        let header = WalHeader::parse(&header).map_err(|e| ShadowReadError::Damaged(e.to_string()))?;
        let chain = if from <= Offset::FIRST_FRAME {
            Chain::new(header)
        } else {
            let mut last = [0; 24];
            let frame = header.page_size().frame_length();
            let before = from.get().checked_sub(frame).ok_or_else(|| {
                ShadowReadError::Damaged(format!("no frame of {frame} bytes ends at {from}"))
            })?;
            file.read_at(&mut last, before)?;
            Chain::resume(header, from, &last)
        };
        Ok(ShadowReader { file, chain, at: from, finished: false })
    }

    /// Where the next byte is.
    pub fn position(&self) -> Offset {
        self.at
    }

    /// The frames in what was read last.
    pub fn frames<'a>(&self, buffer: &'a [u8]) -> impl Iterator<Item = (FrameHeader, &'a [u8])> + use<'a> {
        let frame = self.chain.header().page_size().frame_length() as usize;
        // The header of the WAL stands before the first one.
        let frames = buffer.get(buffer.len() % frame..).unwrap_or_default().chunks_exact(frame);
        frames.filter_map(|frame| {
            let (head, page) = frame.split_first_chunk()?;
            Some((FrameHeader::parse(head), page))
        })
    }

    /// The length of the file, which is where an index that is over ends.
    ///
    /// # Errors
    /// The disk's.
    pub fn length(&self) -> Result<Offset, ShadowReadError> {
        Ok(Offset::new(self.file.length()?))
    }

    /// What is at `at`, as it is on the disk.
    ///
    /// # Errors
    /// The disk's.
    pub fn bytes(&self, at: Offset, length: usize) -> Result<Vec<u8>, ShadowReadError> {
        let mut bytes = vec![0; length];
        self.file.read_at(&mut bytes, at.get())?;
        Ok(bytes)
    }

    /// Bytes of a frame, its header included.
    pub fn frame_length(&self) -> u64 {
        self.chain.header().page_size().frame_length()
    }

    /// Whether SQLite could have written `frame` at the present position.
    pub fn accepts(&self, frame: &[u8]) -> bool {
        let mut chain = self.chain;
        chain.extend(frame, |_, _| {}).is_ok()
    }

    /// Reads the next bytes before `to`, at most `limit` but at least a frame, into `buffer`. Stops behind the first
    /// commit that ends at or behind `cut`. An empty buffer is the end.
    ///
    /// # Errors
    /// The disk's, or a frame is not valid.
    pub fn read(
        &mut self,
        buffer: &mut Vec<u8>,
        to: Offset,
        cut: Offset,
        limit: usize,
    ) -> Result<(), ShadowReadError> {
        buffer.clear();
        if self.at >= to || self.finished {
            return Ok(());
        }
        let frame = self.chain.header().page_size().frame_length();
        let whole = (limit as u64 / frame).max(1) * frame;
        let start = self.chain.end();
        let end = start.plus(whole.min(to.since(start)));
        buffer.resize(end.since(self.at) as usize, 0);
        self.file.read_at(buffer, self.at.get())?;
        let header_length = start.since(self.at) as usize;
        let mut at = start;
        let mut stop = None;
        self.chain
            .extend(&buffer[header_length..], |header, _| {
                at = at.plus(frame);
                if header.commit.is_some() && at >= cut && stop.is_none() {
                    stop = Some(at);
                }
            })
            .map_err(|e| ShadowReadError::Damaged(e.to_string()))?;
        if let Some(stop) = stop {
            buffer.truncate(stop.since(self.at) as usize);
        }
        self.finished = stop.is_some();
        self.at = stop.unwrap_or(self.chain.end());
        let ends_on_commit = stop.is_some() || self.chain.commit().is_some_and(|commit| commit.end == to);
        if self.at >= to && !ends_on_commit {
            return Err(ShadowReadError::Damaged(format!("no transaction ends at offset {to}")));
        }
        Ok(())
    }
}
