//! The local disk: the seam that crash tests replace, and the map of the live WAL.
//!
//! The application may truncate its WAL at any moment, and touching a mapped page behind the new end is SIGBUS. So
//! [`WalMap`] never gives out a reference to mapped bytes: they are handed to the kernel as the source of a `pwrite`,
//! which answers with a short count, or EFAULT, where the file has shrunk.

use crate::core::machine::Machine;
use crate::core::space::DiskSpace;
use memmap2::{MmapOptions, MmapRaw};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

/// Mode of every file that the agent makes: the WAL's content is the database's.
const FILE_MODE: u32 = 0o600;
const FOLDER_MODE: u32 = 0o700;
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// See machine-id(5).
const MACHINE_ID: &str = "/etc/machine-id";
/// Of the firmware, or of whoever runs the virtual machine; for root only.
const PRODUCT_ID: &str = "/sys/class/dmi/id/product_uuid";

/// Files below the meta folder. Paths are whole paths.
pub trait Disk: Send + Sync {
    /// Makes a folder and those above it; fine if it is there.
    fn create_folder(&self, path: &Path) -> io::Result<()>;
    /// The names in a folder; none if there is no such folder.
    fn list(&self, folder: &Path) -> io::Result<Vec<String>>;
    /// Opens a file to read and write it; makes it, empty, with `create`.
    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn DiskFile>>;
    /// The content of a small file; `None` if it is not there.
    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>>;
    /// Replaces a small file as a whole, or not at all.
    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()>;
    /// Removes a file, or a folder with all that is in it; fine if it is not there.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a folder survive a power cut.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;
    /// The size and room of the disk that a folder is on.
    fn space(&self, folder: &Path) -> io::Result<DiskSpace>;
    /// Which boot this is: what was not synced is certain to be there only until the next one. `None` where the kernel
    /// does not tell.
    fn boot(&self) -> Option<String>;
    /// Which machine this is.
    fn machine(&self) -> Machine;
}

/// An open file. Shared by threads: the owner appends, others read what is before the end.
pub trait DiskFile: Send + Sync {
    /// Bytes in the file.
    fn length(&self) -> io::Result<u64>;
    /// Cuts the file to `length`, or grows it with zeros.
    fn set_length(&self, length: u64) -> io::Result<()>;
    /// Fills `buffer` from byte `at`; fails with `UnexpectedEof` if the file ends before.
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()>;
    /// Writes all of `bytes` at byte `at`.
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()>;
    /// Copies `length` bytes of a mapped WAL from byte `from` to byte `at` of this file. Returns how many there were:
    /// fewer if the WAL has shrunk.
    fn copy_from(&self, map: &WalMap, from: u64, length: u64, at: u64) -> io::Result<u64>;
    /// Makes what was written survive a power cut.
    fn sync(&self) -> io::Result<()>;
}

/// Fills `buffer` from byte `at` as far as the file reaches; returns how far that was.
///
/// # Errors
/// The kernel's.
pub fn read_full(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match FileExt::read_at(file, &mut buffer[done..], at + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Whether the disk itself fails to read something. Nothing else need be wrong: it may be one sector.
pub fn is_unreadable(error: &io::Error) -> bool {
    // The last two are what file systems say of their own checksums and structures.
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EBADMSG | libc::EUCLEAN))
}

/// The disk of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsDisk;

impl Disk for OsDisk {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(path)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        // A name that is not UTF-8 is none of ours.
        entries.filter_map(|e| e.map(|e| e.file_name().into_string().ok()).transpose()).collect()
    }

    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(create).truncate(create).mode(FILE_MODE);
        Ok(Arc::new(options.open(path)?))
    }

    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some),
        }
    }

    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let temporary = path.with_extension("tmp");
        let options = OpenOptions::new().write(true).create(true).truncate(true).mode(FILE_MODE).clone();
        options.open(&temporary)?.write_all_at(content, 0)?;
        fs::rename(&temporary, path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let result = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        match result {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        File::open(folder)?.sync_all()
    }

    fn space(&self, folder: &Path) -> io::Result<DiskSpace> {
        let disk = rustix::fs::statvfs(folder)?;
        Ok(DiskSpace { total: disk.f_blocks * disk.f_frsize, free: disk.f_bavail * disk.f_frsize })
    }

    fn boot(&self) -> Option<String> {
        let text = fs::read_to_string(BOOT_ID).ok()?;
        Some(text.trim().to_owned()).filter(|id| !id.is_empty())
    }

    fn machine(&self) -> Machine {
        let read = |path| fs::read_to_string(path).ok();
        Machine::new(read(MACHINE_ID).as_deref(), read(PRODUCT_ID).as_deref())
    }
}

impl DiskFile for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
    fn set_length(&self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        self.read_exact_at(buffer, at)
    }
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.write_all_at(bytes, at)
    }
    fn copy_from(&self, map: &WalMap, from: u64, length: u64, at: u64) -> io::Result<u64> {
        map.write_to(self, from, length, at)
    }
    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

/// The live WAL, mapped. Invariant: no mapped byte is ever dereferenced by this process.
pub struct WalMap {
    map: MmapRaw,
}

/// The least that is mapped, in bytes; a map beyond the end of the file is legal and costs only addresses.
const LEAST_MAP: u64 = 64 << 20;
/// From so many bytes on, one call that maps all pages is cheaper than a fault for each.
const WORTH_POPULATING: u64 = 64 << 10;

/// A page that is missing is mapped together with those around it (the kernel's `fault_around_bytes`), so that a part
/// of the range before comes back; in two gigabytes, that is a hundred megabytes.
const MAPPED_AROUND: u64 = 64 << 10;

impl WalMap {
    /// Maps the first `length` bytes of a WAL, and room for it to grow.
    ///
    /// # Errors
    /// The kernel's, when it has no addresses or the file cannot be mapped.
    pub fn new(file: &File, length: u64) -> io::Result<Self> {
        let room = usize::try_from(length.max(LEAST_MAP).next_power_of_two())
            .map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        Ok(WalMap { map: MmapOptions::new().len(room).map_raw_read_only(file)? })
    }

    /// How far the map reaches, in bytes.
    pub fn length(&self) -> u64 {
        self.map.len() as u64
    }

    /// Writes `length` mapped bytes from byte `from` to byte `at` of `file`; returns how many there were.
    fn write_to(&self, file: &File, from: u64, length: u64, at: u64) -> io::Result<u64> {
        let length = length.min(self.length().saturating_sub(from));
        if length >= WORTH_POPULATING {
            // Without it the kernel's copy stops at each page that is not mapped yet, and zeroes what it then copies
            // again. It fails where the file has shrunk, and so will the copy.
            let _ = self.map.advise_range(memmap2::Advice::PopulateRead, from as usize, length as usize);
        }
        let mut done = 0;
        while done < length {
            let start = (from + done) as usize;
            let size = (length - done) as usize;
            let to = libc::off_t::try_from(at + done).map_err(|_| io::ErrorKind::FileTooLarge)?;
            // SAFETY: `start + size` lies within the map (see `min` above), which lives as long as `self`. The pointer
            // goes to the kernel only, which checks each page itself: one behind the end of the file ends the write
            // early or with EFAULT, and raises no signal.
            let written =
                unsafe { libc::pwrite(file.as_raw_fd(), self.map.as_ptr().add(start).cast(), size, to) };
            match written {
                0 => break,
                n if n > 0 => done += n as u64,
                _ => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error if error.raw_os_error() == Some(libc::EFAULT) => break,
                    error => return Err(error),
                },
            }
        }
        self.forget(from, length);
        Ok(done)
    }

    /// Lets the kernel take back the pages of a copied range, so that our memory stays flat.
    fn forget(&self, from: u64, length: u64) {
        const PAGE: u64 = 4096;
        let start = from.saturating_sub(MAPPED_AROUND) / PAGE * PAGE;
        let end = (from + length + MAPPED_AROUND).min(self.length());
        // SAFETY: a shared, file-backed, read-only map loses nothing by DONTNEED, and no reference into it exists.
        // Failure only costs memory.
        let _ = unsafe {
            self.map.unchecked_advise_range(
                memmap2::UncheckedAdvice::DontNeed,
                start as usize,
                (end - start) as usize,
            )
        };
    }
}
