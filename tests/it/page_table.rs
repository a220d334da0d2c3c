//! The page table as a value: it agrees with a full recomputation after every commit.

use proptest::prelude::*;
use std::convert::Infallible;
use wal_agent::core::page::{PageCount, PageNumber, PageSize};
use wal_agent::core::page_table::{
    DatabaseChecksum, DatabaseState, Entries, PageChanges, PageEntry, PageTable,
};
use wal_agent::core::position::{Generation, Index, Offset, Position};
use wal_agent::core::scan::Chain;
use wal_agent::core::synthetic::SyntheticWal;
use wal_agent::core::table_file::{TableChanges, TableHeader};
use wal_agent::core::wal::{Salt, WalHeader};

const SIZE: u32 = 512;

fn page_size() -> PageSize {
    PageSize::new(SIZE).unwrap()
}

fn count(pages: usize) -> PageCount {
    PageCount::new(pages as u32).unwrap()
}

fn number(page: usize) -> PageNumber {
    PageNumber::new(page as u32).unwrap()
}

fn page(fill: u8) -> Vec<u8> {
    vec![fill; SIZE as usize]
}

/// A database as nothing but its pages; a page is what it is filled with.
type Pages = Vec<u8>;

fn state_of(pages: &[u8]) -> DatabaseState {
    let entries = Entries::of_size(page_size());
    let mut checksum = DatabaseChecksum::default();
    for (at, fill) in pages.iter().enumerate() {
        checksum.toggle(entries.of(number(at + 1), &page(*fill)));
    }
    DatabaseState { page_count: count(pages.len()), checksum }
}

/// A transaction: frames in their order, and the size after it.
#[derive(Debug, Clone)]
struct Transaction {
    frames: Vec<(usize, u8)>,
    size: usize,
}

fn commit(pages: &mut Pages, transaction: &Transaction) {
    pages.resize(transaction.size, 0);
    for (page, fill) in &transaction.frames {
        if let Some(present) = pages.get_mut(page - 1) {
            *present = *fill;
        }
    }
}

fn transactions() -> impl Strategy<Value = Vec<Transaction>> {
    let frames = proptest::collection::vec((1usize..30, any::<u8>()), 0..8);
    let transaction = (frames, 1usize..30).prop_map(|(frames, size)| Transaction { frames, size });
    proptest::collection::vec(transaction, 1..20)
}

fn entry(pages: &[u8], page_number: u32) -> Result<PageEntry, Infallible> {
    let entries = Entries::of_size(page_size());
    let at = page_number as usize;
    Ok(pages.get(at - 1).map_or(entries.blank(page_number), |fill| entries.of(number(at), &page(*fill))))
}

/// Lays changes over the entries of `before`, as they are written over a table on disk.
fn laid_over(before: &[u8], changes: &PageChanges) -> DatabaseState {
    let entries = Entries::of_size(page_size());
    let size = changes.page_count().map_or(before.len(), |count| count.get() as usize);
    let mut table: Vec<_> = (1..=before.len() as u32).map(|number| entry(before, number).unwrap()).collect();
    table.resize(size, PageEntry::default());
    for (number, entry) in changes.writes(count(before.len()), &entries) {
        table[number as usize - 1] = entry;
    }
    let mut checksum = DatabaseChecksum::default();
    table.into_iter().for_each(|entry| checksum.toggle(entry));
    DatabaseState { page_count: count(size), checksum }
}

proptest! {
    #[test]
    fn changes_follow_every_commit_as_a_full_recomputation_does(
        start in proptest::collection::vec(any::<u8>(), 1..30),
        transactions in transactions(),
        split in 0usize..20,
    ) {
        let entries = Entries::of_size(page_size());
        let (mut pages, mut base, mut base_state) = (start.clone(), start.clone(), state_of(&start));
        let (mut changes, mut blind) = (PageChanges::default(), PageChanges::default());
        let mut state = Some(base_state);
        for (at, transaction) in transactions.iter().enumerate() {
            commit(&mut pages, transaction);
            for (page_number, fill) in &transaction.frames {
                let entry = entries.of(number(*page_number), &page(*fill));
                changes.push(number(*page_number), entry);
                blind.push(number(*page_number), entry);
            }
            let size = count(transaction.size);
            state = changes.commit(size, &entries, state, |n| entry(&base, n)).unwrap();
            let _ = blind.commit(size, &entries, None, |n| entry(&start, n)).unwrap(); // it has no state
            prop_assert_eq!(state, Some(state_of(&pages)));
            prop_assert_eq!(changes.apply_to(base_state, &entries, |n| entry(&base, n)).unwrap(), state_of(&pages));
            prop_assert_eq!(laid_over(&base, &changes), state_of(&pages));
            prop_assert_eq!(laid_over(&start, &blind), state_of(&pages));
            if at == split {
                // What was split off is on the disk now.
                prop_assert_eq!(laid_over(&base, &changes.split_off()), state_of(&pages));
                (base, base_state) = (pages.clone(), state_of(&pages));
            }
        }
    }

    #[test]
    fn a_table_in_memory_follows_every_commit(
        start in proptest::collection::vec(any::<u8>(), 1..30),
        transactions in transactions(),
    ) {
        let mut pages = start;
        let mut table = PageTable::new(page_size());
        pages.iter().for_each(|fill| table.append(&page(*fill)).unwrap());
        prop_assert_eq!(table.state(), Some(state_of(&pages)));
        for transaction in &transactions {
            commit(&mut pages, transaction);
            transaction.frames.iter().for_each(|(at, fill)| table.push(number(*at), &page(*fill)));
            table.commit(count(transaction.size)).unwrap();
            prop_assert_eq!(table.state(), Some(state_of(&pages)));
        }
    }
}

#[test]
fn pages_that_change_places_change_the_checksum() {
    assert_ne!(state_of(&[1, 2, 3]).checksum, state_of(&[2, 1, 3]).checksum);
    assert_ne!(state_of(&[1, 1]).checksum, state_of(&[2, 2]).checksum);
    assert_ne!(state_of(&[0]).checksum, state_of(&[0, 0]).checksum);
}

#[test]
fn the_lock_byte_page_does_not_count() {
    for size in [512, 4096, 65536] {
        let entries = Entries::of_size(PageSize::new(size).unwrap());
        let lock_byte_page = (1 << 30) / size + 1;
        let of = |number: u32| entries.of(PageNumber::new(number).unwrap(), &vec![7; size as usize]);
        assert_eq!(of(lock_byte_page), PageEntry::default());
        assert_eq!(entries.blank(lock_byte_page), PageEntry::default());
        assert_ne!(of(lock_byte_page - 1), PageEntry::default());
        assert_ne!(of(lock_byte_page + 1), PageEntry::default());
    }
}

#[test]
fn a_blank_page_is_one_of_zeros() {
    let entries = Entries::of_size(page_size());
    assert_eq!(entries.blank(7), entries.of(number(7), &page(0)));
}

#[test]
fn what_was_rolled_back_does_not_count() {
    let entries = Entries::of_size(page_size());
    let mut changes = PageChanges::default();
    changes.push(number(1), entries.of(number(1), &page(9)));
    changes.roll_back();
    let state = Some(state_of(&[5, 6]));
    assert_eq!(changes.commit(count(2), &entries, state, |n| entry(&[5, 6], n)), Ok(state));
}

#[test]
fn an_entry_that_cannot_be_read_loses_the_state_and_no_change() {
    let entries = Entries::of_size(page_size());
    let mut changes = PageChanges::default();
    changes.push(number(1), entries.of(number(1), &page(9)));
    let state = Some(state_of(&[5, 6]));
    assert_eq!(changes.commit(count(2), &entries, state, |_| Err("unreadable")), Err("unreadable"));
    assert_eq!(laid_over(&[5, 6], &changes), state_of(&[9, 6]));
}

#[test]
fn a_size_that_was_made_up_costs_no_memory() {
    let mut table = PageTable::new(page_size());
    table.append(&page(1)).unwrap();
    assert_eq!(table.commit(count(u32::MAX as usize)), None);
}

fn headers() -> impl Strategy<Value = TableHeader> {
    let numbers = (any::<u64>(), 0u32..1000, any::<u64>(), 9u32..=16, 1u32.., any::<u64>());
    numbers.prop_map(|(generation, index, offset, power, count, checksum)| {
        let (generation, index) = (Generation::from_random(generation), Index::new(index).unwrap());
        let position = Position::new(generation, index, Offset::new(offset));
        let page_count = PageCount::new(count).unwrap();
        let state = DatabaseState { page_count, checksum: DatabaseChecksum::new(checksum) };
        TableHeader { position, page_size: PageSize::new(1 << power).unwrap(), state }
    })
}

fn table_changes() -> impl Strategy<Value = TableChanges> {
    let writes = proptest::collection::vec((1u32.., any::<u64>().prop_map(PageEntry::new)), 0..20);
    (headers(), headers(), writes).prop_map(|(from, to, writes)| TableChanges {
        from: from.position,
        to,
        writes,
    })
}

proptest! {
    #[test]
    fn headers_of_tables_come_back(header in headers(), behind: Vec<u8>) {
        let bytes = [&header.encode()[..], &behind].concat();
        prop_assert_eq!(TableHeader::parse(&bytes), Some(header));
    }

    #[test]
    fn changes_of_tables_come_back_and_torn_or_changed_ones_are_none(
        changes in table_changes(),
        behind: Vec<u8>,
        at: prop::sample::Index,
        change in 1u8..,
    ) {
        let bytes = changes.encode();
        prop_assert_eq!(TableChanges::parse(&[&bytes[..], &behind].concat()), Some(changes));
        prop_assert_eq!(TableChanges::parse(&bytes[..at.index(bytes.len())]), None);
        let mut changed = bytes.clone();
        changed[at.index(bytes.len())] ^= change;
        prop_assert_eq!(TableChanges::parse(&changed), None);
    }

    #[test]
    fn any_bytes_are_changes_or_are_not(bytes: Vec<u8>) {
        prop_assert_eq!(TableChanges::parse(&bytes), None);
        prop_assert_eq!(TableHeader::parse(&bytes), None);
    }

    #[test]
    fn a_wal_of_our_own_making_is_valid(pages in proptest::collection::vec(any::<u8>(), 1..20), salts: (u32, u32)) {
        let mut wal = SyntheticWal::new(page_size(), Salt(salts.0, salts.1));
        let mut frames = Vec::new();
        for (at, fill) in pages.iter().enumerate() {
            let commit = (at + 1 == pages.len()).then(|| count(pages.len()));
            wal.push(&mut frames, number(at + 1), &page(*fill), commit);
        }
        let header = WalHeader::parse(wal.header().bytes()).unwrap();
        let mut chain = Chain::new(header);
        let mut found = Vec::new();
        chain.extend(&frames, |header, page| found.push((header.page.unwrap().get(), page[7]))).unwrap();
        let commit = chain.commit().unwrap();
        prop_assert_eq!((commit.end, commit.page_count), (chain.end(), count(pages.len())));
        prop_assert_eq!(found, (1..).zip(pages).collect::<Vec<_>>());
    }
}
