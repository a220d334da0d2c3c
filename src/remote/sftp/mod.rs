//! A replica on an SFTP server, through libssh2: one login, blocking, with deadlines.
//!
//! How libssh2 works, as far as this file rests on it: seeking costs nothing; a write of up to [`PACKET`] bytes is one
//! packet; a longer one is sent ahead of the server's answers, and each call returns with the first new answer and
//! expects the bytes after it next. Reading asks ahead, too, and seeking throws away what came ahead.

mod connect;
mod host_key;

use super::handles::{Access, Handles};
use super::location::SftpLocation;
use super::{Entry, FailureKind, Remote, RemoteError, parent};
use crate::core::segment::PACKET;
use libssh2_sys as raw;
use rustix::event::{PollFd, PollFlags, Timespec};
use ssh2::{ErrorCode, FileStat, OpenFlags, OpenType, RenameFlags, Session, Sftp};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long the server may take to answer. Long enough for a busy disk, short enough to tell within a minute that
/// replication stands still.
pub const OPERATION_DEADLINE: Duration = Duration::from_secs(30);

/// How long an fsync may take, as much may have to reach a slow disk. libssh2 has no patience for more.
pub const SYNC_DEADLINE: Duration = Duration::from_secs(60);

/// How often a file that is written is looked for at its path: a server goes on writing into one that was removed, and what
/// is acknowledged then is nowhere. Costs one answer of the server.
const PLACE_PAUSE: Duration = Duration::from_secs(5);

/// How many bytes are under way before the server has answered for the first of them. In a round trip of 10 ms that
/// is 100 MB/s; a line of under 35 KB/s could not take them within the deadline.
const IN_FLIGHT: usize = 1 << 20;

/// A call that was answered nothing has at least sent a part of a packet, or waited. More of them in a row is a spin.
const MAX_IDLE_CALLS: u32 = 1000;

/// The most entries of a folder. Litestream makes 86,400 files a day at most; this is a month of them.
const MAX_ENTRIES: usize = 4_000_000;

/// The server's answer when libssh2 failed with a "protocol error" without the server having answered one.
const NOT_ANSWERED: i32 = 0;

/// What new files and folders allow: their owner everything, his group to read, as backups may hold secrets.
const FILE_MODE: i32 = 0o640;
const FOLDER_MODE: i32 = 0o750;

/// One login on an SFTP server as a destination.
pub struct SftpRemote {
    /// For error texts: `sftp://user@host:port`.
    name: String,
    handles: Handles<OpenFile>,
    sftp: Sftp,
    session: Session,
    /// The session's own socket: shut down, it makes everything fail at once instead of at a deadline.
    socket: TcpStream,
    /// Whether the server offers fsync@openssh.com, as far as known.
    syncs: bool,
}

struct OpenFile {
    file: ssh2::File,
    /// Where the next byte would be read.
    at: u64,
    /// When it was at its path.
    seen: Instant,
}

/// Why a call failed.
struct Failure {
    kind: FailureKind,
    reason: String,
}

impl SftpRemote {
    /// Logs in.
    ///
    /// # Errors
    /// `HostKey` before anything about us is sent, `Authentication`, or `Disconnected`.
    pub fn connect(location: &SftpLocation, home: Option<&Path>) -> Result<Self, RemoteError> {
        let name = connect::name(location);
        let failed = |failure: Failure| failure.of(format!("connect to {name}"));
        let (session, socket) = connect::log_in(location, home).map_err(failed)?;
        session.set_timeout(milliseconds(OPERATION_DEADLINE));
        let sftp = session.sftp().map_err(|error| {
            failed(Failure { reason: format!("no SFTP there: {}", error.message()), ..error.into() })
        })?;
        Ok(SftpRemote { name, handles: Handles::new(), sftp, session, socket, syncs: true })
    }

    fn open(&mut self, path: &str, access: Access) -> Result<&mut OpenFile, Failure> {
        let flags = match access {
            Access::Read => OpenFlags::READ,
            Access::Write => OpenFlags::WRITE,
        };
        let sftp = &self.sftp;
        self.handles.get_or_open(path, access, || open_file(sftp, path, flags))
    }

    fn make_folder(&self, folder: &str) -> Result<(), Failure> {
        let make = || self.sftp.mkdir(Path::new(folder), FOLDER_MODE).map_err(Failure::from);
        let made = match (make(), parent(folder)) {
            (Err(Failure { kind: FailureKind::NotFound, .. }), Some(above)) => {
                self.make_folder(above).and_then(|()| make())
            }
            (made, _) => made,
        };
        match made {
            Err(Failure { kind: FailureKind::Other | FailureKind::Exists, .. }) if self.exists(folder) => {
                Ok(())
            }
            made => made,
        }
    }

    fn exists(&self, path: &str) -> bool {
        self.sftp.lstat(Path::new(path)).is_ok()
    }

    /// Looks whether what is written is at its path, up to `end`.
    fn look_for(&mut self, path: &str, end: u64) -> Result<(), Failure> {
        let there = self.sftp.stat(Path::new(path)).map_err(Failure::from);
        match there {
            Ok(FileStat { size: Some(size), .. }) if size < end => {
                let reason = "another file was put in its place".to_owned();
                return Err(Failure { kind: FailureKind::Other, reason });
            }
            // A server that does not say it to this account does not say that it is gone.
            Err(failure) if matches!(failure.kind, FailureKind::NotFound | FailureKind::Disconnected) => {
                return Err(failure);
            }
            _ => {}
        }
        self.open(path, Access::Write)?.seen = Instant::now();
        Ok(())
    }

    /// OpenSSH answers a full disk with a mere "failure"; its free space tells.
    fn is_full(&mut self, path: &str) -> bool {
        let space = self.open(path, Access::Write).ok().and_then(|open| open.file.statvfs().ok());
        space.is_some_and(|space| space.f_bavail.saturating_mul(space.f_frsize) < PACKET as u64)
    }

    /// A file whose end was met is closed: libssh2 would remember the end, even if the file grows. So is one that the
    /// server gave an error for: where it stands is not known.
    fn read_once(&mut self, path: &str, at: u64, buffer: &mut [u8]) -> Result<usize, Failure> {
        let read = self.open(path, Access::Read).and_then(|open| read_full(open, at, buffer));
        match &read {
            Ok(length) if *length == buffer.len() => {}
            Err(Failure { kind: FailureKind::Disconnected, .. }) => {}
            _ => self.handles.close_reading(path),
        }
        read
    }

    /// The one place where errors leave this file: a connection that failed is made to fail at once from now on.
    fn failed(&self, verb: &str, path: &str, failure: Failure) -> RemoteError {
        if failure.kind == FailureKind::Disconnected {
            self.hang_up();
        }
        failure.of(format!("{verb} {}/{}", self.name, path.strip_prefix('/').unwrap_or(path)))
    }

    /// Nobody waits for the server any more, nor while dropping what is open. It closes our files by itself.
    fn hang_up(&self) {
        let _ = self.socket.shutdown(Shutdown::Both); // fails only if it is down
    }
}

impl Drop for SftpRemote {
    fn drop(&mut self) {
        self.hang_up();
    }
}

impl Remote for SftpRemote {
    fn list(&mut self, folder: &str) -> Result<Vec<Entry>, RemoteError> {
        match self.sftp.opendir(Path::new(folder)).map_err(Failure::from) {
            Ok(mut open) => {
                let ask = |name: &Path| self.sftp.lstat(&Path::new(folder).join(name)).map_err(Failure::from);
                read_folder(&mut open, ask).map_err(|failure| self.failed("list", folder, failure))
            }
            Err(Failure { kind: FailureKind::NotFound, .. }) => Ok(Vec::new()),
            Err(failure) => Err(self.failed("list", folder, failure)),
        }
    }

    fn create(&mut self, path: &str) -> Result<bool, RemoteError> {
        self.handles.close(path);
        let mut is_new = false;
        let open = |sftp| open_file(sftp, path, OpenFlags::WRITE | OpenFlags::TRUNCATE);
        let opened = match (open(&self.sftp), parent(path)) {
            (Err(Failure { kind: FailureKind::NotFound, .. }), Some(folder)) => {
                is_new = true;
                self.make_folder(folder).and_then(|()| open(&self.sftp))
            }
            (opened, _) => opened,
        };
        let kept = self.handles.get_or_open(path, Access::Write, || opened).map(|_| is_new);
        kept.map_err(|failure| self.failed("create", path, failure))
    }

    fn write_at(&mut self, path: &str, at: u64, bytes: &[u8]) -> Result<(), RemoteError> {
        let written = self.open(path, Access::Write).and_then(|open| {
            write_all(&mut open.file, at, bytes)?;
            Ok(open.seen.elapsed() >= PLACE_PAUSE)
        });
        let end = at + bytes.len() as u64;
        let written = written.and_then(|is_due| if is_due { self.look_for(path, end) } else { Ok(()) });
        written.map_err(|mut failure| {
            if failure.kind == FailureKind::Other && self.is_full(path) {
                failure = Failure { kind: FailureKind::Full, reason: "no space left".to_owned() };
            }
            if bytes.len() > PACKET {
                self.hang_up(); // a packet may be half sent
            }
            let error = self.failed("write", path, failure);
            self.handles.close(path);
            error
        })
    }

    fn sync(&mut self, path: &str) -> Result<bool, RemoteError> {
        if !self.syncs {
            return Ok(false);
        }
        self.session.set_timeout(milliseconds(SYNC_DEADLINE));
        let synced = self.open(path, Access::Write).map(|open| open.file.fsync());
        self.session.set_timeout(milliseconds(OPERATION_DEADLINE));
        match synced {
            Ok(Ok(())) => Ok(true),
            Ok(Err(error)) if error.code() == ErrorCode::SFTP(raw::LIBSSH2_FX_OP_UNSUPPORTED) => {
                self.syncs = false;
                Ok(false)
            }
            Ok(Err(error)) => Err(self.failed("sync", path, error.into())),
            Err(failure) => Err(self.failed("sync", path, failure)),
        }
    }

    fn set_modified(&mut self, path: &str, seconds: i64) -> Result<(), RemoteError> {
        // Version 3 of the protocol has 32 bits for it, and sets both times or none.
        let time = u32::try_from(seconds).ok().map(u64::from);
        let stat = FileStat { size: None, uid: None, gid: None, perm: None, atime: time, mtime: time };
        match self.sftp.setstat(Path::new(path), stat).map_err(Failure::from) {
            Err(failure) if matches!(failure.kind, FailureKind::Disconnected | FailureKind::NotFound) => {
                Err(self.failed("set the time of", path, failure))
            }
            _ => Ok(()),
        }
    }

    /// The plain rename of SFTP 3, which OpenSSH refuses if the target exists. (`posix-rename@openssh.com` would
    /// replace it, and not every server has that.)
    fn rename(&mut self, from: &str, to: &str) -> Result<(), RemoteError> {
        if let Err(error) = self.sftp.rename(Path::new(from), Path::new(to), Some(RenameFlags::empty())) {
            let mut failure = Failure::from(error);
            if failure.kind == FailureKind::Other && self.exists(to) {
                failure = Failure { kind: FailureKind::Exists, reason: "the name is taken".to_owned() };
            }
            return Err(self.failed(&format!("rename to {to}"), from, failure));
        }
        self.handles.rename(from, to);
        Ok(())
    }

    fn remove(&mut self, path: &str) -> Result<(), RemoteError> {
        let removed = self.sftp.unlink(Path::new(path)).map_err(Failure::from);
        self.handles.close(path);
        match removed {
            Err(Failure { kind: FailureKind::NotFound, .. }) => Ok(()),
            removed => removed.map_err(|failure| self.failed("remove", path, failure)),
        }
    }

    fn read_at(&mut self, path: &str, at: u64, buffer: &mut [u8]) -> Result<usize, RemoteError> {
        let mut read = self.read_once(path, at, buffer);
        if matches!(&read, Err(failure) if failure.reason == confusion()) {
            // A file that grew behind libssh2's reading ahead confuses it; nothing is wrong with the file.
            read = self.read_once(path, at, buffer);
        }
        read.map_err(|failure| self.failed("read", path, failure))
    }

    fn is_alive(&mut self) -> bool {
        // Its probes may wait unread before its hanging up: so the hanging up itself is asked for.
        let mut look = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let hung_up = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        rustix::event::poll(&mut look, Some(&at_once)).is_ok() && !look[0].revents().intersects(hung_up)
    }

    fn close(&mut self, path: &str) {
        self.handles.close(path);
    }
}

fn open_file(sftp: &Sftp, path: &str, flags: OpenFlags) -> Result<OpenFile, Failure> {
    let file = sftp.open_mode(Path::new(path), flags, FILE_MODE, OpenType::File)?;
    Ok(OpenFile { file, at: 0, seen: Instant::now() })
}

fn write_all(file: &mut ssh2::File, at: u64, bytes: &[u8]) -> Result<(), Failure> {
    file.seek(SeekFrom::Start(at))?;
    let (mut done, mut idle) = (0, 0);
    while done < bytes.len() {
        let end = bytes.len().min(done + IN_FLIGHT);
        let length = file.write(&bytes[done..end])?;
        done += length;
        idle = if length == 0 { idle + 1 } else { 0 };
        if idle > MAX_IDLE_CALLS {
            return Err(Failure { kind: FailureKind::Disconnected, reason: "nothing is taken".to_owned() });
        }
    }
    Ok(())
}

fn read_full(open: &mut OpenFile, at: u64, buffer: &mut [u8]) -> Result<usize, Failure> {
    if open.at != at {
        open.file.seek(SeekFrom::Start(at))?;
    }
    let mut done = 0;
    while done < buffer.len() {
        match open.file.read(&mut buffer[done..])? {
            0 => break,
            length => done += length,
        }
    }
    open.at = at + done as u64;
    Ok(done)
}

/// All entries of a folder; `ask` is for what the server does not list of one.
fn read_folder(
    open: &mut ssh2::File,
    ask: impl Fn(&Path) -> Result<FileStat, Failure>,
) -> Result<Vec<Entry>, Failure> {
    let mut entries = Vec::new();
    loop {
        match open.readdir() {
            Ok((name, stat)) => entries.extend(entry(&name, stat, &ask)?),
            Err(error) if error.code() == ErrorCode::Session(raw::LIBSSH2_ERROR_FILE) => return Ok(entries),
            Err(error) => return Err(error.into()),
        }
        if entries.len() > MAX_ENTRIES {
            let reason = format!("more than {MAX_ENTRIES} entries");
            return Err(Failure { kind: FailureKind::Other, reason });
        }
    }
}

/// `None` for `.` and `..`, for names that are not text: none of ours; and for what is removed meanwhile. A length that is
/// not known must not count as none: what is empty is removed.
fn entry(
    name: &Path,
    listed: FileStat,
    ask: impl Fn(&Path) -> Result<FileStat, Failure>,
) -> Result<Option<Entry>, Failure> {
    let Some(text) = name.file_name().and_then(|name| name.to_str()) else { return Ok(None) };
    let stat = match listed.size {
        None if !listed.is_dir() => match ask(name) {
            Err(Failure { kind: FailureKind::NotFound, .. }) => return Ok(None),
            asked => asked?,
        },
        _ => listed,
    };
    let is_folder = stat.is_dir();
    let size = if is_folder { Some(0) } else { stat.size };
    let unknown = || Failure {
        kind: FailureKind::Other,
        reason: format!("the server does not tell how long {text} is; it cannot hold a replica"),
    };
    Ok(Some(Entry {
        name: text.to_owned(),
        size: size.ok_or_else(unknown)?,
        modified: stat.mtime.and_then(|seconds| i64::try_from(seconds).ok()),
        is_folder,
    }))
}

fn milliseconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).expect("BUG: a deadline of weeks")
}

/// What ssh2 says when libssh2 did not understand an answer.
fn confusion() -> String {
    ssh2::Error::from_errno(ErrorCode::SFTP(NOT_ANSWERED)).message().to_owned()
}

impl Failure {
    fn of(self, action: String) -> RemoteError {
        RemoteError { kind: self.kind, action, reason: self.reason }
    }
}

impl From<ssh2::Error> for Failure {
    /// Only what the server answered leaves the connection in a state that is known.
    fn from(error: ssh2::Error) -> Self {
        let kind = match error.code() {
            ErrorCode::SFTP(answer) => kind_of_answer(answer),
            ErrorCode::Session(raw::LIBSSH2_ERROR_INVAL) => FailureKind::Other,
            ErrorCode::Session(_) => FailureKind::Disconnected,
        };
        Failure { kind, reason: error.message().to_owned() }
    }
}

impl From<io::Error> for Failure {
    /// Reading and writing give ssh2's errors as text; its own table tells which answer of the server a text is.
    fn from(error: io::Error) -> Self {
        let reason = error.to_string();
        let answer = (NOT_ANSWERED..=raw::LIBSSH2_FX_LINK_LOOP)
            .find(|&answer| ssh2::Error::from_errno(ErrorCode::SFTP(answer)).message() == reason);
        let kind = match answer {
            Some(NOT_ANSWERED) => FailureKind::Other, // nor was it the connection
            Some(answer) => kind_of_answer(answer),
            None => FailureKind::Disconnected,
        };
        Failure { kind, reason }
    }
}

fn kind_of_answer(answer: i32) -> FailureKind {
    match answer {
        NOT_ANSWERED | raw::LIBSSH2_FX_NO_CONNECTION | raw::LIBSSH2_FX_CONNECTION_LOST => {
            FailureKind::Disconnected
        }
        raw::LIBSSH2_FX_NO_SUCH_FILE | raw::LIBSSH2_FX_NO_SUCH_PATH => FailureKind::NotFound,
        raw::LIBSSH2_FX_FILE_ALREADY_EXISTS => FailureKind::Exists,
        raw::LIBSSH2_FX_PERMISSION_DENIED | raw::LIBSSH2_FX_WRITE_PROTECT => FailureKind::Denied,
        raw::LIBSSH2_FX_NO_SPACE_ON_FILESYSTEM | raw::LIBSSH2_FX_QUOTA_EXCEEDED => FailureKind::Full,
        _ => FailureKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_size(size: Option<u64>) -> FileStat {
        FileStat { size, uid: None, gid: None, perm: Some(0o100_640), atime: None, mtime: None }
    }

    #[test]
    fn a_length_that_is_not_listed_is_asked_for_and_never_taken_for_none() {
        let listed = |listed, asked: Result<Option<u64>, FailureKind>| {
            let failure = |kind| Failure { kind, reason: String::new() };
            let ask = |_: &Path| asked.map(of_size).map_err(failure);
            let entry = entry(Path::new("00000000.snapshot.lz4"), of_size(listed), ask);
            entry.map(|entry| entry.map(|entry| entry.size)).map_err(|failure| failure.kind)
        };
        assert_eq!(listed(Some(7), Err(FailureKind::Other)), Ok(Some(7)), "it is not asked");
        assert_eq!(listed(None, Ok(Some(7))), Ok(Some(7)));
        assert_eq!(listed(None, Err(FailureKind::NotFound)), Ok(None), "it is gone");
        assert_eq!(listed(None, Ok(None)), Err(FailureKind::Other), "nobody knows");
        assert_eq!(listed(None, Err(FailureKind::Disconnected)), Err(FailureKind::Disconnected));
    }
}
