//! The file being restored: temporary beside its final place, until it is proven.

use super::error::RestoreError;
use crate::core::page::{FRAME_HEADER_LENGTH, PageCount, PageSize};
use crate::core::replay::Frames;
use crate::core::restore::Check;
use crate::core::wal::{FrameHeader, FrameHeaderBytes};
use crate::sqlite;
use crossbeam_channel::{Sender, bounded};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// Frames of an open transaction kept in memory; more go to an unnamed file.
const HELD_IN_MEMORY: usize = 16 << 20;
/// Read back from that file at once, about.
const READ_BACK: usize = 1 << 20;
/// Written at once, at most, where pages follow each other: larger than any page, and small enough for a CPU's cache.
const RUN: usize = 256 << 10;
/// Written before the disk is told to begin with it.
const FLUSH: u64 = 64 << 20;
/// What SQLite would take for a part of the database.
const SUFFIXES: [&str; 4] = ["", "-wal", "-shm", "-journal"];

/// Refuses an output that exists, and one beside which SQLite would find another database's files.
pub(super) fn refuse_existing(path: &Path) -> Result<(), RestoreError> {
    for suffix in SUFFIXES {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        let path = PathBuf::from(name);
        match path.symlink_metadata() {
            Ok(_) => return Err(RestoreError::Exists { path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(RestoreError::Local { action: "look at", path, source }),
        }
    }
    Ok(())
}

/// A database file that has no name of its own yet. Removed when dropped.
pub(super) struct Output {
    target: PathBuf,
    file: NamedTempFile,
    length: u64,
    page_size: Option<PageSize>,
    held: Held,
    flusher: Flusher,
}

/// Has the kernel write to the disk while the rest is still on its way, so that little is left for the last fsync.
/// Whether that worked, only the last one says: it has a descriptor of its own, and with it errors of its own.
struct Flusher {
    wake: Sender<()>,
    unflushed: u64,
}

impl Flusher {
    fn start(file: File) -> Self {
        let (wake, woken) = bounded(1);
        std::thread::spawn(move || woken.iter().for_each(|()| drop(file.sync_data())));
        Flusher { wake, unflushed: 0 }
    }

    fn wrote(&mut self, length: usize) {
        self.unflushed += length as u64;
        if self.unflushed >= FLUSH {
            self.unflushed = 0;
            // Still busy with what was before: it will be woken again.
            let _ = self.wake.try_send(());
        }
    }
}

/// Frames of a transaction whose commit has not come yet, in order: first those on disk, then those in memory.
#[derive(Default)]
struct Held {
    on_disk: Option<File>,
    length_on_disk: u64,
    in_memory: Vec<u8>,
}

impl Output {
    /// Makes the temporary file, readable by its owner only, in the folder of `target`.
    pub(super) fn create(target: &Path) -> Result<Self, RestoreError> {
        let folder = folder(target);
        std::fs::create_dir_all(folder).map_err(local("create the folder", folder))?;
        let mut prefix = OsString::from(".");
        prefix.push(target.file_name().unwrap_or_default());
        prefix.push("-restore-");
        let file = tempfile::Builder::new()
            .prefix(&prefix)
            .tempfile_in(folder)
            .map_err(local("create a file in", folder))?;
        let flusher = Flusher::start(file.reopen().map_err(local("open", file.path()))?);
        let target = target.to_owned();
        Ok(Output { target, file, length: 0, page_size: None, held: Held::default(), flusher })
    }

    /// Appends to the snapshot's content.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        self.length += bytes.len() as u64;
        self.flusher.wrote(bytes.len());
        self.file.as_file_mut().write_all(bytes).map_err(local("write to", self.file.path()))
    }

    /// Says that the snapshot is whole, and what the pages of the WAL that follows look like.
    pub(super) fn end_snapshot(&mut self, page_size: PageSize) {
        self.page_size = Some(page_size);
    }

    /// Writes the pages of all frames, of which nothing may remain if their commit does not come.
    pub(super) fn write_through(&mut self, frames: Frames) -> Result<(), RestoreError> {
        self.write_pages(frames.bytes).map_err(local("write to", self.file.path()))
    }

    /// Writes the pages of committed frames; the others wait.
    pub(super) fn write_committed(&mut self, frames: Frames) -> Result<(), RestoreError> {
        let (committed, open) = frames.bytes.split_at(frames.committed);
        let write = |output: &mut Output| {
            if !committed.is_empty() {
                output.write_held()?;
                output.write_pages(committed)?;
            }
            output.held.push(open, folder(&output.target))
        };
        write(self).map_err(local("write to", self.file.path()))
    }

    /// Cuts or extends the file to the size that a commit gave the database.
    pub(super) fn set_page_count(&mut self, count: PageCount) -> Result<(), RestoreError> {
        self.length = count.file_length(self.page_size());
        self.file.as_file().set_len(self.length).map_err(local("set the length of", self.file.path()))
    }

    /// Makes the file durable, asks SQLite, and gives it its name, which must still be free. Returns its length.
    pub(super) fn publish(self, check: Check) -> Result<u64, RestoreError> {
        let path = self.file.path();
        let (checked, synced) = std::thread::scope(|scope| {
            let synced = scope.spawn(|| self.file.as_file().sync_all());
            let checked = sqlite::check(path, check);
            (checked, synced.join().expect("BUG: fsync does not panic"))
        });
        checked.map_err(RestoreError::Check)?;
        synced.map_err(local("fsync", path))?;
        refuse_existing(&self.target)?;
        let folder_path = folder(&self.target).to_owned();
        // What cannot be opened is met before there is anything under the name.
        let folder = File::open(&folder_path).map_err(local("open", &folder_path))?;
        let target = self.target;
        self.file.persist_noclobber(&target).map_err(|error| match error.error.kind() {
            io::ErrorKind::AlreadyExists => RestoreError::Exists { path: target.clone() },
            _ => RestoreError::Local { action: "name", path: target.clone(), source: error.error },
        })?;
        folder.sync_all().map_err(|error| {
            // Whoever is told that it failed must find nothing under the name, and can try again.
            let _ = std::fs::remove_file(&target);
            local("fsync", &folder_path)(error)
        })?;
        Ok(self.length)
    }

    fn page_size(&self) -> PageSize {
        self.page_size.expect("BUG: the snapshot comes before the WAL")
    }

    /// `frames` is whole frames of a verified WAL. Pages that follow each other are written at once.
    fn write_pages(&mut self, frames: &[u8]) -> io::Result<()> {
        self.flusher.wrote(frames.len());
        let page_size = self.page_size();
        let (mut at, mut run) = (0, Vec::with_capacity(RUN));
        for frame in frames.chunks_exact(page_size.frame_length() as usize) {
            let (head, page) = frame
                .split_first_chunk::<{ size_of::<FrameHeaderBytes>() }>()
                .expect("BUG: a frame is longer than its header");
            let number = FrameHeader::parse(head).page.expect("BUG: a verified frame has a page number");
            let offset = number.file_offset(page_size);
            if offset != at + run.len() as u64 || run.len() + page.len() > RUN {
                self.file.as_file().write_all_at(&run, at)?;
                run.clear();
                at = offset;
            }
            run.extend_from_slice(page);
        }
        self.file.as_file().write_all_at(&run, at)
    }

    fn write_held(&mut self) -> io::Result<()> {
        let held = std::mem::take(&mut self.held);
        let frame_length = self.page_size().frame_length() as usize;
        let mut buffer = vec![0; READ_BACK.next_multiple_of(frame_length)];
        let mut at = 0;
        while let Some(file) = held.on_disk.as_ref().filter(|_| at < held.length_on_disk) {
            let length = buffer.len().min((held.length_on_disk - at) as usize);
            let frames = buffer.get_mut(..length).unwrap_or_default();
            file.read_exact_at(frames, at)?;
            self.write_pages(frames)?;
            at += length as u64;
        }
        self.write_pages(&held.in_memory)
    }
}

impl Held {
    fn push(&mut self, frames: &[u8], folder: &Path) -> io::Result<()> {
        self.in_memory.extend_from_slice(frames);
        if self.in_memory.len() <= HELD_IN_MEMORY {
            return Ok(());
        }
        let file = match &mut self.on_disk {
            Some(file) => file,
            none => none.insert(tempfile::tempfile_in(folder)?),
        };
        file.write_all(&self.in_memory)?;
        self.length_on_disk += self.in_memory.len() as u64;
        self.in_memory.clear();
        Ok(())
    }
}

/// The folder a file is in.
fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn local<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> RestoreError + use<'a> {
    move |source| RestoreError::Local { action, path: path.to_owned(), source }
}

const _: () = assert!(size_of::<FrameHeaderBytes>() as u64 == FRAME_HEADER_LENGTH);
