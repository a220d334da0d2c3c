//! wal-agent keeps SQLite databases safe on another machine.
//!
//! # The idea
//!
//! Everything durable is append-only and named by position, so the whole job is to make three positions of a
//! generation move forward: *committed* (SQLite) >= *shadowed* (our copy, the shadow WAL) >= *acked* (each replica).
//! There are no work queues. What to do next is computed from the difference of two positions, so a lost event, a
//! restart or a slow replica is only a bigger difference.
//!
//! # The house
//!
//! ```text
//! front door   main  cli/  config/
//! rooms        event_loop -> agent -> source/ -> page_table -> shadow
//!                            agent -> worker -> carry -> shadow (read side)      restore/
//!                                      worker, carry -> precedence
//! pipes        disk  database_file  rights  sqlite  watch  locks  memory  processor  control  service  remote/
//!                                                              each opens one outside crate, or one part of the kernel
//! ground       core/                                          pure: values in, values out
//! ```
//!
//! Imports go down; siblings only along an arrow. One thread decides ([`event_loop`], [`agent`], [`source`]); worker
//! threads only carry ([`worker`], [`carry`]) and are lent what they need: a checkpoint borrows two connections, a round
//! beside writers that never pause borrows everything that is held of a database.
//!
//! # How a commit travels
//!
//! A writer appends frames to `app.db-wal`. inotify wakes the loop ([`watch`]); [`source`] asks the wal-index how many
//! frames are committed and copies them, and only them, from a map of the WAL into the shadow, checking every salt and
//! checksum on the copy. [`core::replica`] compares the shadow with what the replica has, and a worker appends the
//! difference to the open segment, whose file is a whole LZ4 frame after every packet ([`core::segment`]).
//!
//! # What proves a restore
//!
//! [`core::page_table`] has one entry for every page; the XOR of all is the checksum of the database at a position, and
//! follows each commit while it is copied. [`page_table`] keeps it on disk, and a worker builds it where there is none.
//! Sealed segments and snapshots carry it in their trailers, and a restore compares: what it says to be proven has the
//! source's pages, all of them, at exactly that position. No table costs a proof, and nothing else.
//!
//! # What always holds
//!
//! 1. acked <= shadowed <= committed within a generation. Acked falls only where a server lost what it had
//!    acknowledged, and that is said loudly.
//! 2. Bytes below the shadow's end never change, so workers read them without a lock.
//! 3. Only frames that the wal-index calls committed are shadowed; each passed salt and checksum, or was given those that
//!    SQLite left out, and passes them again before it is sent. A valid commit frame in the file proves nothing: its
//!    writer may have died before it counted.
//! 4. While attached, we hold one of two locks of the wal-index ([`locks::WalIndex`]). A reader's slot: nobody restarts the
//!    WAL, and everybody backfills as far as they like. Or read lock 0, taken once everything is backfilled and copied: the
//!    next writer restarts the WAL, and nobody backfills the new one, so that it is not restarted in its turn. The next
//!    lock is taken before the last one is given back. So another header under a guarded WAL is the next index, and in
//!    every other case a new generation begins ([`core::sync`]), unless every page is compared with the page table: what
//!    has changed is an index then, too. Nothing of the next index is copied before all of this one is durable, or a
//!    durable mark says that it is not.
//! 5. A segment decodes to whole frames that the application had committed at every instant, also between two
//!    packets. A snapshot has its name only when everything that it may contain is acked.
//! 6. After any doubt about an object on a server (a write that was not answered, a restart of ours) it is never
//!    appended to again: it is written anew, as another file.
//! 7. The live WAL is mapped, and never dereferenced. The database file and `-shm` are opened once each while we are
//!    attached, and closed after SQLite has closed them: closing any descriptor of either drops SQLite's locks. At the
//!    end nothing is closed but by the kernel, when no thread runs any more.
//! 8. No checkpoint goes into a file that is not at the database's path, but for the last one, which makes it whole with
//!    all others locked out. The write lock is taken only in an urgent round, and every hold is measured; and by
//!    SQLite for a moment, where a WAL is emptied that nobody could recover.
//! 9. Crash-only: starting is recovering. Every reason for a new generation has a name, is logged once, and is counted.
//! 10. A database that nobody else has open is let go of, as SQLite's last close does it: all others are locked out,
//!     everything goes into the file, `-wal` and `-shm` go away. The generation goes on only by proof: evidence of the
//!     file (inode, size, times, boot) with a WAL that was never restarted, or a comparison of every page with the page
//!     table. Evidence is forgotten before a newer frame is copied.
//! 11. Every loop, buffer, batch and pause has a named bound. A failed local fsync is not retried: it is a new
//!     generation.
//! 12. A restore is compared with the source's checksum at every position at which a trailer has one.
//!
//! # Where faults enter
//!
//! [`disk::Disk`], [`remote::Remote`] and [`worker::Workers`] are the seams that tests replace; the clock and
//! randomness come in as arguments ([`agent::Now`]). SQLite has no double: the real one is the oracle.
//!
//! # Where reality chose another way
//!
//! - What the wal-index says and the WAL's header do not form one answer: the header is read before and after, and the
//!   answer counts only if both are the same. We read the wal-index ourselves ([`locks::WalIndex::extent`]):
//!   `sqlite3_wal_checkpoint_v2(NOOP)` takes the write lock where it meets a writer in the middle of writing it. It is
//!   asked only where the wal-index stays half written, since its writer was killed.
//! - A new segment is written under a temporary name and then opened again under its own: OpenSSH renames by a second
//!   link, and whoever follows the server's folder with inotify hears only of the name that a file was opened by.
//! - A generation's first snapshot is sent before its WAL, and gets its name after the WAL it needs is acked. While it
//!   is on its way there is nothing of the new generation that a restore could stumble over.
//! - Timers are a timerfd: mio rounds a poll timeout up to a millisecond, and a commit in flight is asked for sooner.
//! - No reader of ours is begun by SQLite. A reader's mark keeps the application's checkpoints from what is newer; where
//!   it is old, they wait for it with the write lock, and where they find it being moved, too. A lock on a slot whose mark
//!   is unused forbids to restart the WAL, and nothing else. So the database file can hold what is not copied yet: what is
//!   read of it (a snapshot, a new page table) counts only after the next look, which copies that; and whoever compares
//!   its pages takes read lock 0 for as long. The price: two bytes of `-shm` are locked by our own descriptor, and the mark
//!   of a slot that nobody has is cleared by us, as SQLite's checkpoint does it.
//! - The copy of a WAL need not be durable when it may be restarted, or checkpoints of the application would wait for our
//!   fsync: a checkpoint has just made its pages durable in the database file, and read lock 0 keeps the next WAL from
//!   being restarted in its turn. After a power cut in between, the copy ends earlier, the boot is another one, and the
//!   pages are compared with the page table, or a new generation begins.
//! - Beside a writer that never pauses, everything is backfilled for some microseconds only, between the end of its own
//!   checkpoint and its next commit. A worker waits for that moment once the WAL is long; if it is missed, the next commit
//!   checkpoints again, with two fsyncs. It sleeps until `nBackfillAttempted` says that only the last fsync is left. It
//!   checkpoints by itself only where the WAL is half as long again as it should be, since two checkpoints cost twice. The
//!   write lock, which would make the moment, is taken only where the WAL has grown beyond its bound: the application has no
//!   checkpoints of its own, then.
//! - Whoever waits for that moment must not wait on the writer's processor: the kernel wakes the writer where it slept, and it
//!   commits before we are back. A writer that is seen to commit runs on another one, so the round stays where it saw that
//!   ([`processor`]). (Measured on two processors, rounds that missed the moment for 10 ms on end: where the kernel chose, none
//!   of 122 in one run and 20 of 126 in the next, 17 of these on the writer's processor; where they stayed, 10 of 501, 12 of
//!   437 and 21 of 457.)
//! - A checkpoint that waits for readers looks at a slot's mark once, and then waits for that slot as long as its busy
//!   timeout, with the write lock. So a slot is ours for good only where no checkpoint was under way once its mark was
//!   cleared; else another one is taken soon. Where four readers stand at four marks, such a checkpoint waits for up to 50 ms
//!   longer than without us.
//! - SQLite's locks are on files, not on names. Whoever opens the database when its `-shm` was removed makes another one, as
//!   if nobody were there: our locks keep nobody from anything, and what our wal-index says of the WAL is old. A checkpoint by
//!   it writes old pages over new ones, a last close deletes commits. So it is compared with its path at each event of the
//!   folder, directly before each checkpoint, and under the lock that keeps everybody out before we let go; a start script
//!   that removes it behind a crash does no harm without an agent (found by a reviewer: [`source::HeldFiles`]).
//! - SQLite gives `-wal` and `-shm` the owner and the mode that the database has when they are made, and nobody does later. An
//!   application comes last: by then we have long made them, before `chown`, and hold them while it is there. So they follow
//!   the database; where they cannot, we are not the first to open it ([`rights`]; found by a reviewer).
//! - By another name of the file, a hard link or a mount of it alone, a program has another WAL: none of its commits is seen,
//!   and our connection keeps its last close from bringing them into the file. Whoever has a lock on the database and none on
//!   our wal-index for a second is taken for such a program, and we go ([`source`], `apart`; found by a reviewer). Beside
//!   others that have both, only the kernel's list of all locks tells, and that is slow: it is read once a minute. What is
//!   in our WAL alone continues the file then only if nobody has written that since it was last seen that nobody was there;
//!   else it is kept.
//! - A commit need not be summed. SQLite 3.40.1, Debian 12's, leaves frames without salt and checksum after a `ROLLBACK TO` in
//!   a transaction that was spilled, and what follows is summed from what stands before it
//!   ([`core::scan::Chain::resum`]). Whoever recovers that WAL loses these commits; without an agent the last close brings
//!   them into the file, but beside one it is not the last. They get their checksums in the shadow, and the live WAL is
//!   emptied as soon as nobody reads, once a second at the most: before, none of our checkpoints brings anything of it into
//!   the file, because what somebody recovered then would lie over newer pages. While it is brought in and emptied, nobody
//!   can begin to read: we lock the slots of readers, and whoever comes waits in SQLite's own loop for that long. Beside
//!   nobody it is let go of at once, also where letting go is switched off, and before the agent stops. Left over: an agent
//!   that is killed in those milliseconds, or while a snapshot keeps
//!   it from letting go; and the application's own checkpoints, as without us. Where a frame is damaged otherwise, and we
//!   are the last, we do what SQLite's close does.
//! - The wal-index says whose salts its WAL has. Another WAL in the file is somebody's backup, copied over it: SQLite, and we,
//!   would read it by the old wal-index. So that is no next index; we go without a checkpoint, remove `-shm`, and leave the
//!   WAL to whoever opens it. While nothing is committed in it, only nobody's being there tells it from one that is just
//!   begun. Left over: `-shm` written over in place with the wal-index of that WAL.
//! - The kernel's list of locks is read in pieces of a page, and a lock may be in none of them while others come and go: what
//!   is not there once, is asked for again.
//! - After a power cut, the shadow may end before what a replica holds, and the WAL may have been restarted since. The first
//!   look of a run reads where the last segment ends: if that is behind the shadow's end for good, a new generation begins,
//!   because rewriting the segment would take acknowledged commits away until the next index is there.
//! - A machine that was set back to an image of itself has another history from there on, under the same generation. So
//!   that look compares all of the last segment with the shadow, and not its beginning only: the snapshot may hold pages of
//!   the history that is no more. What the shadow has not reached when it looks is not judged; what differs and was written
//!   by nobody (its checksum is wrong) is damage, and written anew. A later look of a run does the same where the last
//!   segment, by name and length, is not what it has written last: the machine may have been set back together with its
//!   memory.
//! - A restore takes the generation that was written to last, by the server's clock: names are random. So the present one's
//!   snapshot gets a later time than anything of the others has, where the clock did not give it one: it may have been ahead
//!   once, or the machine was set back to before another generation began (found by the simulation). Where the server does
//!   not let us, that is said, the replica is failing, and it is tried again each minute.
//! - What is on a replica is surveyed each hour, without anything in doubt ([`core::survey`]): jobs that clean up by age
//!   remove the snapshot, and what a server acknowledged without a sync may be names without content after its power cut. A
//!   long listing keeps no commit waiting; only if something is missing, or shorter than it was acknowledged or found by this
//!   run, it is looked at before anything else is sent. A hole in the listing is a new generation, since the shadow of what
//!   is missing is gone by then.
//!   That another agent replicates to the same place is told by what it has written from one survey to the next.
//! - A generation belongs to the machine that began it ([`core::machine`]): a clone that went on in it would write the last
//!   segment anew, and its origin append to a file without a name, and acknowledge that. Where neither the installation nor
//!   the hardware tells them apart, that can happen for a few seconds.
//! - Whoever removes a replica, or puts another file in a segment's place, does not close ours: a write to it is answered as
//!   ever. So it is looked for at its path: in a folder with each append, on a server five seconds after the last time.
//! - An object on the replica that says whose the place is, whose owner answers whoever asks, was built and taken back: its
//!   checks wait where jobs of other databases go first, so that a single agent stopped sending, and of several who asked for
//!   the place of a dead one, each kept the others from it.
//! - An index that is over before anything of it was sent is one sealed segment, written at once: after an outage there are
//!   many, and each would cost twice the round trips.
//! - A writer that never pauses is looked at every half a millisecond, not at each event ([`core::pace`]), because it pays
//!   for each: first the watch sleeps between two, so that the kernel makes one event of many writes; after a tenth of a
//!   second it watches nothing, and the folder again once the writer pauses. What was not heard meanwhile counts as seen, and
//!   each look asks whether the file is still at its path. (Measured: the watch on the folder costs the writer 10 to 30 %. That
//!   on the database's file alone, 4 %: it wakes a thread while a checkpoint writes, and with two processors that is the one
//!   which waits for the checkpoint's end.)
//! - notify answers whoever adds or removes a watch only once it has read all events: beside such a writer, never. So that
//!   is asked on a thread of its own, and nobody waits for it.
//! - Beside such a writer, too: nothing of ours is made durable while every replica can be restored from and lacks little: our
//!   fsyncs delay the writer's (measured: 4 to 10 %), and what they would save is gone all the same. After a power cut the
//!   replicas hold more than the shadow, which only a new generation can follow. A durable mark with the boot says so before
//!   ([`shadow`]); it goes when the writer pauses for half a second, a replica falls behind or the agent is stopped, once
//!   everything is durable. Without it, the copy of a WAL is made durable once the next one is there, not when the WAL may
//!   be restarted, since the writer itself syncs the next one's header then.
//! - Beside such a writer, too: an index that is not over is pushed every 20 ms, in larger parts; and sending lets a round
//!   that waits for its moment go first ([`precedence`]), unless it is behind. Whatever competes for the disk or a processor
//!   then is paid for by the writer.
//! - The inode of the database is kept beside the generation's name: after a file was replaced while the agent was
//!   down, an unchanged `-wal` would otherwise look like continuity.
//! - Evidence is not made durable: after a power cut the boot is another one, and it proves nothing anyway. It does not
//!   ask whether the WAL was ever restarted: a program that empties it before it writes does that, and is common. What a
//!   restart loses is in the file by then, and shows in its times.
//! - What is copied over a database (`cp` keeps the inode and asks for no lock) while we hold it and nobody else does is
//!   noticed by its times. They cannot tell it from a checkpoint that was killed, by a program that came and went between
//!   two looks, and whose WAL must stay: its commits are nowhere else. A header that is neither the old one nor in the WAL
//!   can, and so can the pages: those that SQLite reads from the file (no frame of them is behind what is backfilled) are
//!   what the page table says, or it is another file. Nothing is judged while anything committed is not copied. Where
//!   nothing can tell, the WAL stays and a new generation begins: without a page table, also a `chmod` or a hard link
//!   costs one. Left over: a `cp` in the very millisecond in which our last checkpoint writes; and one of a
//!   file with the same header of which every page that differs is still to be backfilled: SQLite reads those from the
//!   WAL, so that the database stays what it was before the `cp`, for us as for the application.
//! - Beside programs that have it open, only a checkpoint of theirs explains that the file was written: it holds its lock
//!   until it is through, and says in the wal-index how far it came, or that it was cut off. So what no such sign explains is
//!   suspected, whatever is committed or checkpointed afterwards; and once the file has rested for 3 s (10 s at the most), its
//!   pages tell. What was in the file already of the WAL is then read by nobody any more, for SQLite takes it from the file:
//!   so that WAL is settled (the rest of it is in the file, too) before a generation begins, and nothing of it is copied. Where
//!   a reader is in the way of that, the database is failing until it has gone. It is let go of as soon as nobody else has it
//!   open: the wal-index that we would keep has the size of what was there before. A checkpoint that ends
//!   behind a `cp` hides it, as where programs checkpoint all the time. So the file is read, too, a part of it each second,
//!   as long as others have it open and write ([`core::scrub`]): a page that nobody has committed meanwhile, and that is
//!   not in the WAL only, is what the page table says, or the file is suspected. Left over: who opens it in the
//!   milliseconds until it is let go of; and what a program itself makes of its cached pages, as without us.
//! - A WAL that was moved away alone is copied as long as a program goes on in it, and brought into the file by whoever closes
//!   last, which may be us: nobody can open the database until then.
//! - A file that was renamed, has this one name, and that nobody else has open or will have closed within seconds, gets
//!   everything that is in its WAL, wherever it is, and the WAL is emptied by its inode: empty, it harms no file beside
//!   which it lies, and needs no memory. If others have worked on the file under its other name by then, its WAL does not
//!   continue it, and is only kept.
//! - Whoever opens a renamed file whose WAL was moved along makes another `-shm`, and commits to that WAL: our wal-index
//!   knows nothing of it. So a commit behind all that was copied means that the WAL is not ours to bring in or to empty, unless
//!   it was there already when the file had its name: a writer that was killed has left it (found by the simulation).
//! - A program that goes on in a renamed file may checkpoint, and be killed. Whether its WAL still continues the file when
//!   that is back is told by who has been there: as long as the program has its `-shm` open, inotify says who else opens the
//!   file; once it has ended, size, times and header must stay. Left over: who opens the file between its rename and our
//!   leaving it, and locks it later, is taken for its program; and who only reads it, before the program writes it again, is
//!   taken for a writer: then the WAL stays with the file only if it was written last.
//! - A program that is killed in a checkpoint leaves a file that may be no database without its WAL, and may be one that
//!   others work on under its other name. That a checkpoint was cut off, the wal-index says (`nBackfillAttempted`); it says
//!   the same after a recovery, so it only opens the question. While we are attached, the pages answer it. Behind a restart
//!   of ours, a WAL stays that was in use when we left it, or has commits since, as SQLite alone would have it: if it was
//!   written last; if every page that is not what the page table says is in it, so that nobody reads that from the file; or
//!   if it was begun since, and a page of it is in the file. What others have written into those pages alone is lost then,
//!   as it is without us, and the log says so. Any other WAL is kept aside, for joining it to what others have written would
//!   destroy that, and the log says what to do if SQLite calls the file malformed.
//! - Where that cannot be (the file was removed, or a program has it open), the WAL stays where it is: the name may come
//!   back, or somebody is moving both files. It gets a second name in the meta folder at once, that of its generation (or
//!   beside the database, if that is on another file system), because SQLite removes a WAL beside an empty database; one that
//!   has lost its name is copied. Once another file is there, the name at the path goes, and so does `-shm`: both at
//!   once, from the loop and before anything is synced, if nobody has the old file open. While a worker has what is held, the
//!   new file is locked instead, for whoever opened it would be given the old WAL; so is the old one, if nobody has it open:
//!   by its new name it has no WAL. A file that two sources of this agent lock, since it was renamed from the one's path to
//!   the other's, stays locked until both need it no more. The last eight are kept. A copy that took the place of its
//!   original looks like any other file.
//! - An agent that stops lets go first of what nobody else has open: what follows `systemctl stop` is often another file in
//!   the database's place (found by a reviewer).
//! - A database file that this process has open already, for another database or a snapshot, is not opened once more: see 7
//!   and [`database_file`]. A symbolic link at the database's path is no file: SQLite keeps the WAL beside what it leads to.
//!   One that is there at the start is followed, and once it leads elsewhere the agent begins anew ([`links`]).
//! - Which WAL lies beside which file is kept in the meta folder (`held`), by inode and time of birth, because inodes are
//!   given again: a second name alone would not tell after a restart whether the database is the old file, and there is none
//!   if the agent was not there. If the old file came back, its size and times must be what they were; its pages cannot
//!   tell, since what differs may all be in the WAL. A file that was opened with the WAL of another one is marked there,
//!   too, until another file is in place. Left over: who works on a file and moves it back while no agent runs,
//!   and leaves the WAL there, has what SQLite makes of the two.
//! - `cp` over a database keeps its inode and its WAL. So where the agent comes to a file with the WAL that it has copied,
//!   and did not see what was done meanwhile, the file is compared with its page table: each page is the one in the table, or
//!   is in the WAL. It costs one reading of the file at a start beside a WAL. If it is another file, SQLite has mixed both by
//!   then, and that is what is copied, as a new generation.
//! - Who holds a lock on a database keeps another one's last close from its checkpoint, under whatever name. While the agent
//!   has not seen a rename, what others do stays in a WAL of the other name; then nothing is brought into the file.
//! - The page table is read with `pread`, eight bytes at a time, and never mapped: a disk that fails is an error then, and
//!   not SIGBUS, and the simulated disks of tests can hold it.
//! - The page table stands at any position whose shadow is durable, not only at the start of an index, and what is being
//!   written into it stands beside it first: so it never needs the shadow of what it already knows.
//! - `core` uses `lz4_flex`'s block functions and `thiserror`'s derive beside std and `crc64fast`: both are pure.

pub mod agent;
pub mod carry;
pub mod cli;
pub mod config;
pub mod control;
pub mod core;
pub mod database_file;
pub mod disk;
pub mod event_loop;
pub mod links;
pub mod locks;
pub mod memory;
pub mod page_table;
pub mod precedence;
pub mod processor;
pub mod remote;
pub mod restore;
pub mod rights;
pub mod service;
pub mod shadow;
pub mod source;
pub mod sqlite;
pub mod watch;
pub mod worker;
