//! A segment that grows on a server: whatever packet was the last to arrive, both readers restore whole rows.

use crate::support::compare::assert_same;
use crate::support::history::{History, Objects, Style, rows, scratch, segment};
use crate::support::litestream;
use crate::support::process::output;
use crate::support::sshd::Sshd;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use wal_agent::core::restore::Check;
use wal_agent::core::segment::{PACKET, append, push_block};
use wal_agent::remote::Remote;
use wal_agent::remote::dir::DirRemote;
use wal_agent::remote::sftp::SftpRemote;
use wal_agent::restore::{RestoreOptions, restore};

/// A replica that lacks the last commit, and the packets that append it.
struct Append {
    history: History,
    objects: Objects,
    path: String,
    packets: Vec<(u64, Vec<u8>)>,
}

impl Append {
    /// The last commit has two rows of `size` bytes.
    fn of(size: usize) -> Append {
        let history = History::new(4096, &[4], size);
        let (ends, mut objects) = (history.ends(0), Objects::new());
        history.add_snapshot(&mut objects, Style::Ours, 0);
        history.add_wal(&mut objects, Style::Ours, 0, &ends[2..3]);
        let path = segment(0, 0).path();
        let length = objects[&path].len() as u64;
        let mut blocks = Vec::new();
        push_block(&mut blocks, &history.wals[0][ends[2] as usize..]);
        let packet = |(at, bytes): (u64, &[u8])| -> Vec<(u64, Vec<u8>)> {
            let starts = (at..).step_by(PACKET);
            starts.zip(bytes.chunks(PACKET)).map(|(at, packet)| (at, packet.to_vec())).collect()
        };
        let writes = append(length, &mut blocks);
        let packets = writes.iter().flat_map(|write| packet((write.at, write.bytes))).collect();
        Append { history, objects, path, packets }
    }

    /// Whether a restored database has the new rows.
    ///
    /// # Panics
    /// If it has neither the rows before the append nor those after it.
    fn is_new(&self, restored: &Path) -> bool {
        let (old, new) = (&self.history.states[2].rows, self.history.newest());
        let restored = rows(restored);
        assert!(restored == *old || restored == *new, "neither the old nor the new rows");
        restored == *new
    }
}

fn put(objects: &Objects, folder: &Path) {
    for (path, bytes) in objects {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().expect("objects are in folders")).expect("the folder is ours");
        fs::write(path, bytes).expect("the folder is ours");
    }
}

fn restore_ours(replica: &Path, into: &Path) -> PathBuf {
    let output = into.join("ours.db");
    let report = restore(RestoreOptions {
        remotes: &|| Ok(Box::new(DirRemote::new())),
        root: replica.to_str().expect("temporary folders have plain names"),
        output: output.clone(),
        check: Check::Full,
        progress: &mut |_| {},
    });
    assert_eq!(report.expect("it restores").cut, None, "an append under way is not damage");
    output
}

fn restore_theirs(replica: &Path, into: &Path) -> PathBuf {
    let restored = into.join("theirs.db");
    let url = format!("file://{}", replica.display());
    output(Command::new(litestream::program()).arg("restore").arg("-o").arg(&restored).arg(url));
    restored
}

#[test]
fn an_append_cut_after_any_packet_restores_to_the_rows_before_or_after_it() {
    let server = Sshd::start();
    for size in [5_000, 60_000] {
        let append = Append::of(size);
        let count = append.packets.len();
        assert!(if size == 5_000 { count == 1 } else { count > 3 }, "{count} packets");
        for arrived in 0..=count {
            let replica = &server.storage().join(format!("{size}-{arrived}"));
            put(&append.objects, replica);
            let mut remote = SftpRemote::connect(&server.location(), None).expect("it lets us in");
            let object = replica.join(&append.path);
            let object = object.to_str().expect("temporary folders have plain names");
            for (at, packet) in &append.packets[..arrived] {
                remote.write_at(object, *at, packet).expect("the server writes");
            }
            drop(remote); // cuts the line
            let folder = scratch();
            let ours = restore_ours(replica, folder.path());
            let theirs = restore_theirs(replica, folder.path());
            assert_eq!(append.is_new(&ours), arrived == count, "{arrived} of {count} packets");
            assert_same(&ours, &theirs);
        }
    }
}
