//! What must always hold, and what a restore must give.

use super::super::earlier::Earlier;
use super::super::faulty::FaultyServer;
use super::super::file_clock;
use super::super::oracle::State;
use super::jobs::lock;
use super::{World, root};
use rand::RngExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use wal_agent::config::Durability;
use wal_agent::core::checksum::Crc64;
use wal_agent::core::names;
use wal_agent::core::page::PageSize;
use wal_agent::core::position::{Generation, Index, Offset, Position};
use wal_agent::core::restore::{Check, RestoreGap};
use wal_agent::core::status::{ReplicaState, ReplicaStatus, SourceState};
use wal_agent::restore::{RestoreError, RestoreOptions, restore};

/// How often it is looked whether the WAL is held.
const HELD_CHECKS: f64 = 0.1;

impl World {
    /// Takes in what is acknowledged, and checks that what is shadowed ends with a commit.
    pub(super) fn observe(&mut self) {
        let Some(agent) = &self.agent else { return };
        let status = agent.status(self.now());
        let status = &status.databases[0];
        let is_attached = status.state == SourceState::Attached;
        if is_attached && (!self.was_attached || !self.application().is_certain()) {
            // It may have set the journal mode, which is a state that only it made.
            self.application().look_on();
        }
        self.was_attached = is_attached;
        self.count_letting_go(&status.state, status.position);
        if is_attached && self.random.random_bool(HELD_CHECKS) {
            self.check_is_held();
        }
        if let Some(shadowed) = status.position {
            self.check_grows(shadowed);
            self.check_is_commit(shadowed);
            self.check_is_durable(shadowed);
        }
        for (replica, of_replica) in status.replicas.iter().enumerate() {
            let (Some(acked), ReplicaState::Streaming) = (of_replica.position, &of_replica.state) else {
                continue;
            };
            assert!(
                status
                    .position
                    .is_none_or(|shadowed| acked.generation != shadowed.generation || acked <= shadowed),
                "acked {acked} is beyond the shadow{}",
                self.story()
            );
            if let Some(state) = self.state_of(acked) {
                self.acked[replica] = self.acked[replica].max(Some(state));
            }
        }
    }

    /// Counts how often the agent lets go, and goes on with what it had.
    fn count_letting_go(&mut self, state: &SourceState, position: Option<Position>) {
        match (state, self.let_go_in) {
            (SourceState::Detached, None) => {
                self.let_go_in = position.map(|position| position.generation);
            }
            (SourceState::Attached, Some(generation)) => {
                self.let_go_in = None;
                let goes_on = position.is_some_and(|position| position.generation == generation);
                let seconds = if file_clock::is_coarse() { ", with whole seconds" } else { "" };
                if goes_on {
                    self.application().count(&format!("gone on after letting go{seconds}"));
                }
            }
            _ => {}
        }
    }

    /// While the agent is attached, a lock of an open file, and not of a process, is on one of the readers' bytes of the
    /// wal-index: 123 is read lock 0, the slots follow.
    fn check_is_held(&self) {
        let path = names::beside(self.database(), "-shm");
        let Ok(index) = path.metadata() else { return };
        if !self.is_held() {
            return;
        }
        // `lock: 1: OFDLCK ADVISORY  READ -1 00:1a:4711 124 124`
        let is_ours = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let ["lock:", _, "OFDLCK", _, "READ", _, _, first, _] = words[..] else { return false };
            first.parse().is_ok_and(|first: u32| (123..128).contains(&first))
        };
        let mut open = std::fs::read_dir("/proc/self/fd").expect("every Linux has it").flatten();
        let is_seen = open.any(|file| {
            let is_index = std::fs::metadata(file.path()).is_ok_and(|open| open.ino() == index.ino());
            let file = Path::new("/proc/self/fdinfo").join(file.file_name());
            is_index && std::fs::read_to_string(file).is_ok_and(|locks| locks.lines().any(is_ours))
        });
        assert!(is_seen, "nothing keeps the WAL from being restarted{}", self.story());
    }

    /// The WAL of the index before exists nowhere else any more: its shadow must survive a power cut, or what says that it
    /// need not.
    fn check_is_durable(&mut self, position: Position) {
        let Some(before) = position.index.previous().filter(|_| self.checked != Some(position.index)) else {
            return;
        };
        self.checked = Some(position.index);
        let file = self.shadow_of(position.generation, before);
        let is_marked = self.volatile_mark().is_some_and(|mark| self.disk.is_durable(&mark));
        let is_safe = !file.exists() || self.disk.is_durable(&file) || is_marked;
        assert!(is_safe, "{} would not survive a power cut{}", file.display(), self.story());
    }

    /// All of the present generation's, but for the last index; and its page table.
    pub fn check_shadow_is_durable(&self) {
        let last = self.shadow_file(0);
        let shadows = last.parent().expect("a file is in a folder");
        let generation = shadows.parent().expect("it is in that of the generation");
        let mut files = super::super::scene::files(generation);
        files.sort();
        let present = files.iter().rfind(|file| file.starts_with(shadows)).cloned();
        for file in files.iter().filter(|file| Some(*file) != present.as_ref()) {
            assert!(
                self.disk.is_durable(file),
                "{} would not survive a power cut{}",
                file.display(),
                self.story()
            );
        }
    }

    /// Within a generation, what is shadowed only grows.
    fn check_grows(&mut self, position: Position) {
        let before = self.position.replace(position);
        let has_grown = before.is_none_or(|b| b.generation != position.generation || b <= position);
        assert!(has_grown, "{before:?} was shadowed, now {position}{}", self.story());
        let furthest = self.furthest.entry(position.generation).or_insert(position.index);
        *furthest = (*furthest).max(position.index);
    }

    fn check_is_commit(&mut self, position: Position) {
        let Some(header) = self.header(position.generation, position.index) else { return };
        let application = lock(&self.application);
        if !application.is_certain() || application.has_missed() {
            return;
        }
        let of_wal = |state: &&State| state.header.as_ref() == Some(&header);
        if !application.states().iter().any(|state| of_wal(&state)) {
            // An index that the agent made of changed pages, after it was down: only a restore can tell.
            return;
        }
        let is_known = application.states().iter().filter(of_wal).any(|s| s.end() == position.offset.get());
        drop(application);
        let is_begun = position.offset.get() == 0;
        assert!(is_known || is_begun, "{position} is shadowed, and no commit ends there{}", self.story());
    }

    /// The last state that everything before a position makes up.
    fn state_of(&mut self, position: Position) -> Option<usize> {
        let (mut index, mut end) = (position.index, position.offset.get());
        if end == 0 {
            // The whole of the index before, which need not be the whole WAL: what came after it while nobody held
            // the database is in an index of our own making.
            index = index.previous()?;
            end = std::fs::metadata(self.shadow_of(position.generation, index)).ok()?.len();
        }
        let header = self.header(position.generation, index)?;
        let application = lock(&self.application);
        application.states().iter().rposition(|s| s.header.as_ref() == Some(&header) && s.end() <= end)
    }

    /// The header of an index's WAL, from the shadow.
    fn header(&mut self, generation: Generation, index: Index) -> Option<String> {
        if self.is_lost(generation, index) {
            return None;
        }
        let key = (generation.to_string(), index.to_string());
        if let Some(header) = self.headers.get(&key) {
            return Some(header.clone());
        }
        let bytes = std::fs::read(self.shadow_of(generation, index)).ok()?;
        let header = bytes.get(..32)?.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        self.headers.insert(key, header.clone());
        Some(header)
    }

    /// Whether the machine may have lost something of an index.
    fn is_lost(&self, generation: Generation, index: Index) -> bool {
        self.lost.get(&generation).is_some_and(|last| index <= *last)
    }

    /// Restores a replica as it is now, or, if `synced`, as it would be if its server lost power now. It must hold
    /// a state that the application had, not before what was acknowledged.
    pub fn check_restore(&mut self, replica: usize, synced: bool) {
        let state = match self.restored(replica, synced) {
            Ok(state) => state,
            Err(RestoreError::Gap(RestoreGap::Empty | RestoreGap::NoSnapshot { .. }))
                if self.acked[replica].is_none() =>
            {
                return;
            }
            Err(error) => panic!("replica {replica} cannot be restored: {error}{}", self.story()),
        };
        assert!(
            Some(state) >= self.acked[replica],
            "replica {replica} gives state {state}, and {:?} was acknowledged{}",
            self.acked[replica],
            self.story()
        );
    }

    /// A restore gives one of the states from `from` on, or what is the same.
    pub(super) fn check_restores_from(&mut self, replica: usize, from: usize) {
        let state = self.restored(replica, false);
        let application = self.application();
        let states = application.states();
        let is_there =
            matches!(&state, Ok(state) if *state >= from || states[*state].crc == states[from].crc);
        drop(application);
        assert!(is_there, "replica {replica} gives {state:?}, and {from} was acknowledged{}", self.story());
    }

    /// Restores every replica: it must hold what the application has now.
    pub fn check_all_is_replicated(&mut self) {
        for replica in 0..self.servers.len() {
            let synced = self.config.databases[0].replicas[replica].durability == Durability::Fsync;
            let state = self.restored(replica, synced);
            let application = self.application();
            let last = application.states().last().map(|state| state.crc);
            let is_last = matches!(&state, Ok(state) if Some(application.states()[*state].crc) == last);
            drop(application);
            let held = self.has_agent().then(|| self.status().state.to_string());
            let story = self.story();
            assert!(
                is_last,
                "replica {replica} gives {state:?}, not the newest state; it is {held:?}{story}"
            );
        }
    }

    /// Restores a replica to some of the commits that it holds: each is the state that the application had with that
    /// commit, and an earlier commit gives no later state. Returns how many were restored.
    pub fn check_earlier_commits(&mut self, replica: usize, most: usize) -> u64 {
        let server = self.servers[replica].copy(false);
        let began = |generation: Generation| server.made_first(&generation.to_string());
        let earlier = Earlier::of(&mut *server.connect(), &root(replica), server.objects(), began);
        let commits = earlier.commits();
        let mut chosen: Vec<usize> = (0..most.min(commits.len()))
            .map(|_| self.random.random_range(0..commits.len()))
            .chain(commits.len().checked_sub(1))
            .collect();
        chosen.sort_unstable();
        chosen.dedup();
        let (mut from, mut restored) = (0, 0);
        let mut generation = None;
        for commit in chosen.into_iter().map(|number| &commits[number]) {
            // A machine that was set back, or lost its power, may have gone on in an earlier generation.
            let may_go_back = !self.images.is_empty() || !self.lost.is_empty();
            if generation.replace(commit.generation) != Some(commit.generation) && may_go_back {
                from = 0;
            }
            let view = FaultyServer::holding(earlier.as_of(commit));
            let crc = match self.restored_crc(replica, &view) {
                Ok((crc, _)) => crc,
                // At that time the snapshot had not got its name.
                Err(RestoreError::SnapshotTooNew { valid_from, .. })
                    if valid_from > (commit.index, Offset::new(commit.end)) =>
                {
                    continue;
                }
                Err(error) => panic!("{commit:?} of replica {replica}: {error}{}", self.story()),
            };
            restored += 1;
            let is_lost = self.is_lost(commit.generation, commit.index);
            let application = self.application();
            let states = application.states();
            let with_it = |state: &&State| state.header == commit.header && state.end() == commit.end;
            let mut with_it = states.iter().filter(with_it).filter(|state| state.header.is_some()).peekable();
            let is_known = with_it.peek().is_some() && !is_lost;
            let is_right = !is_known || with_it.any(|state| state.crc == crc);
            let found = (from..states.len()).find(|number| states[*number].crc == crc);
            let is_missed = !is_known && application.has_missed();
            drop(application);
            assert!(is_right, "{commit:?} of replica {replica} gives another state{}", self.story());
            from = match found {
                Some(found) => found,
                None if is_missed => continue,
                None => {
                    panic!("{commit:?} of replica {replica} gives no state from {from} on{}", self.story())
                }
            };
        }
        restored
    }

    fn restored(&mut self, replica: usize, synced: bool) -> Result<usize, RestoreError> {
        let server = self.servers[replica].copy(synced);
        let (crc, position) = self.restored_crc(replica, &server)?;
        let mut application = self.application();
        let is_state = |state: &State| state.crc == crc;
        if !application.states().iter().any(is_state) && !application.is_certain() {
            application.look_on();
        }
        let (known, is_certain) = (application.states().len(), application.is_certain());
        let state = application.states().iter().rposition(is_state);
        drop(application);
        // Where somebody stands still in the middle of something, nobody may be able to ask for what was committed last.
        match state.or((!is_certain).then_some(known - 1)) {
            Some(state) => Ok(state),
            None => panic!(
                "replica {replica} gives a state that the application never had, at {position}{}",
                self.story()
            ),
        }
    }

    /// Restores what a server holds of a replica: the CRC of all pages, and where that is.
    fn restored_crc(
        &mut self,
        replica: usize,
        server: &FaultyServer,
    ) -> Result<(u64, Position), RestoreError> {
        self.restores += 1;
        let output = self.folder.path().join(format!("restored-{}", self.restores));
        let report = restore(RestoreOptions {
            remotes: &|| Ok(server.connect()),
            root: &root(replica),
            output: output.clone(),
            check: Check::Quick,
            progress: &mut |_| {},
        })?;
        let crc = Crc64::of(database_in(&std::fs::read(&output).expect("it was just restored")));
        std::fs::remove_file(output).expect("it is ours");
        Ok((crc, report.position))
    }

    /// Either everything is replicated all the same, or the status names the trouble.
    pub fn check_trouble_is_named(&mut self, name: &str) {
        let Some(agent) = &self.agent else { return };
        let status = agent.status(self.now());
        let status = &status.databases[0];
        let in_source = matches!(&status.state, SourceState::Refused(why) if why.contains(name));
        let is_named = |replica: &ReplicaStatus| matches!(&replica.state, ReplicaState::Failing { error, .. } if error.contains(name));
        if !in_source && !status.replicas.iter().any(is_named) {
            let newest = self.application().states().len() - 1;
            (0..self.servers.len()).for_each(|replica| self.check_restores_from(replica, newest));
        }
    }
}

/// The pages that SQLite takes for the database, by its header: after a power cut the file may be longer, as it was before
/// a VACUUM without a WAL, which makes it shorter at last and makes that not durable (pager.c, `pager_end_transaction`).
fn database_in(file: &[u8]) -> &[u8] {
    let number =
        |at: usize| file.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
    let page_size = file.get(16..18).and_then(|field| PageSize::from_database_header([field[0], field[1]]));
    match (page_size, number(28)) {
        // The count was written with the last change of the header.
        (Some(page_size), Some(pages)) if number(24) == number(92) => {
            file.get(..page_size.get() as usize * pages as usize).unwrap_or(file)
        }
        _ => file,
    }
}
