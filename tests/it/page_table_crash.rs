//! A page table on a disk that fails, or whose agent is killed, at any operation: it is right afterwards, or there is
//! none.

use crate::support::history::{History, replayed, scratch, state_of};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use wal_agent::core::machine::Machine;
use wal_agent::core::position::{Generation, Offset};
use wal_agent::core::space::DiskSpace;
use wal_agent::core::wal::WalHeader;
use wal_agent::database_file::DatabaseFile;
use wal_agent::disk::{Disk, DiskFile, OsDisk, WalMap};
use wal_agent::page_table::{SourceTable, StagedFrames};
use wal_agent::shadow::ShadowWal;

const PAGE: u32 = 512;

/// The disk of this machine until so many operations were carried out; from then on, nothing happens any more.
struct StoppingDisk {
    left: Arc<AtomicUsize>,
}

struct StoppingFile {
    file: Arc<dyn DiskFile>,
    left: Arc<AtomicUsize>,
}

/// Nothing is carried out any more.
const STOPPED: usize = usize::MAX;

fn operate(left: &AtomicUsize) -> io::Result<()> {
    match left.load(Ordering::SeqCst) {
        0 | STOPPED => {
            left.store(STOPPED, Ordering::SeqCst);
            Err(io::Error::other("stopped, as asked"))
        }
        operations => {
            left.store(operations - 1, Ordering::SeqCst);
            Ok(())
        }
    }
}

impl Disk for StoppingDisk {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        operate(&self.left)?;
        OsDisk.create_folder(path)
    }
    fn space(&self, folder: &Path) -> io::Result<DiskSpace> {
        OsDisk.space(folder)
    }
    fn boot(&self) -> Option<String> {
        OsDisk.boot()
    }
    fn machine(&self) -> Machine {
        OsDisk.machine()
    }
    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        operate(&self.left)?;
        OsDisk.list(folder)
    }
    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn DiskFile>> {
        operate(&self.left)?;
        let file = OsDisk.open(path, create)?;
        Ok(Arc::new(StoppingFile { file, left: Arc::clone(&self.left) }))
    }
    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        operate(&self.left)?;
        OsDisk.read(path)
    }
    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        operate(&self.left)?;
        OsDisk.replace(path, content)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        operate(&self.left)?;
        OsDisk.remove(path)
    }
    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        operate(&self.left)?;
        OsDisk.sync_folder(folder)
    }
}

impl DiskFile for StoppingFile {
    fn length(&self) -> io::Result<u64> {
        operate(&self.left)?;
        self.file.length()
    }
    fn set_length(&self, length: u64) -> io::Result<()> {
        operate(&self.left)?;
        self.file.set_length(length)
    }
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        operate(&self.left)?;
        self.file.read_at(buffer, at)
    }
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        // Of the write on which it stops, a half arrives.
        if self.left.load(Ordering::SeqCst) == 0 {
            self.file.write_at(&bytes[..bytes.len() / 2], at)?;
        }
        operate(&self.left)?;
        self.file.write_at(bytes, at)
    }
    fn copy_from(&self, map: &WalMap, from: u64, length: u64, at: u64) -> io::Result<u64> {
        // Only the disk can copy from a map; the copy is the same.
        operate(&self.left)?;
        self.file.copy_from(map, from, length, at)
    }
    fn sync(&self) -> io::Result<()> {
        operate(&self.left)?;
        self.file.sync()
    }
}

fn generation() -> Generation {
    Generation::from_random(7)
}

/// Carries out all work on the table that is due.
fn work(table: &mut SourceTable, shadow: &ShadowWal, database: &DatabaseFile, now: Instant) {
    while let Some(job) = table.next_job(shadow, shadow.is_whole(), database, now) {
        table.on_job(job.run());
    }
}

/// Copies the whole history, keeping a table; ends early when the disk has stopped.
fn replicate(history: &History, folder: &Path, disk: &Arc<dyn Disk>) -> io::Result<()> {
    let mut shadow = ShadowWal::begin(Arc::clone(disk), folder, generation(), 1)?;
    let mut table = SourceTable::of(&mut shadow);
    let (wal_path, database_path) = (folder.join("app.db-wal"), folder.join("app.db"));
    let mut now = Instant::now();
    for (k, wal) in history.wals.iter().enumerate() {
        std::fs::write(&wal_path, wal).unwrap();
        std::fs::write(&database_path, &history.databases[k]).unwrap();
        let database = DatabaseFile::open(&database_path).unwrap().unwrap();
        let map = WalMap::new(&File::open(&wal_path).unwrap(), wal.len() as u64).unwrap();
        let header = WalHeader::parse(wal.first_chunk().unwrap()).unwrap();
        shadow.begin_index(header)?.map_err(|reason| io::Error::other(reason.to_string()))?;
        table.begin_index(header.page_size());
        for end in history.ends(k) {
            let mut staged = StagedFrames::default();
            let absorbed = shadow.absorb(&map, Offset::new(end), staged.begin(table.wanted_entries()));
            absorbed.map_err(io::Error::other)?;
            table.take(&mut staged);
            now += Duration::from_secs(20);
            let problem = table.take_problem(now);
            problem.map_or(Ok(()), |problem| Err(io::Error::other(problem)))?;
            work(&mut table, &shadow, &database, now);
            if let Some(state) = table.state() {
                assert_eq!(
                    state,
                    state_of(&replayed(&history.databases[k], &wal[..end as usize], PAGE), PAGE)
                );
            }
        }
    }
    Ok(())
}

#[test]
fn a_table_left_by_a_disk_that_stopped_at_any_operation_is_right_or_not_used() {
    let history = History::new(PAGE, &[3, 2, 4, 2], 300);
    let (mut recovered, mut operations) = (0, 0);
    for stop in 0.. {
        let folder = scratch();
        let left = Arc::new(AtomicUsize::new(stop));
        let disk: Arc<dyn Disk> = Arc::new(StoppingDisk { left: Arc::clone(&left) });
        let ended = replicate(&history, folder.path(), &disk);
        operations += 1;
        if let Ok(mut shadow) = ShadowWal::recover(&(Arc::new(OsDisk) as Arc<dyn Disk>), folder.path(), 1)
            .expect("the disk works")
        {
            let table = SourceTable::of(&mut shadow);
            let (index, end) = (shadow.extent().index.get() as usize, shadow.extent().end.get() as usize);
            if let Some(state) = table.state() {
                let wal = &history.wals[index][..end];
                assert_eq!(
                    state,
                    state_of(&replayed(&history.databases[index], wal, PAGE), PAGE),
                    "stopped at {stop}"
                );
                recovered += 1;
            }
        }
        if ended.is_ok() {
            break;
        }
    }
    // Once it was built, there is always one.
    assert!(recovered * 2 > operations, "{recovered} tables after {operations} stops");
}
