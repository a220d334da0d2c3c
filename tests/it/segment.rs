//! Objects as bytes: appending, decoding, trailers, names.

use crate::support::history::{History, Style, encode, generation, lz4, noise};
use proptest::prelude::*;
use wal_agent::core::checksum::Crc64;
use wal_agent::core::frame::{Ending, FrameDecoder, FrameError, FrameFault};
use wal_agent::core::names::{Object, parse_segment, parse_set_aside, parse_snapshot};
use wal_agent::core::page::{PageCount, PageSize};
use wal_agent::core::page_table::{DatabaseChecksum, DatabaseState};
use wal_agent::core::position::{Generation, Index, MAX_INDEX, Offset, Position};
use wal_agent::core::replay::{Replay, ReplayFault};
use wal_agent::core::segment::{
    END_MARK, FRAME_HEADER, PACKET, SegmentTrailer, SnapshotTrailer, TRAILER_LENGTH, TRAILER_LENGTH_1,
    Trailer, append, push_block,
};

/// The content of an object that arrives in pieces of `piece` bytes, and how it ends.
fn decode_in(bytes: &[u8], piece: usize) -> Result<(Vec<u8>, Ending), FrameError> {
    let mut decoder = FrameDecoder::new();
    let mut content = Vec::new();
    for mut piece in bytes.chunks(piece) {
        while let Some(block) = decoder.next_block(&mut piece)? {
            content.extend_from_slice(block);
        }
    }
    assert_eq!(decoder.length(), content.len() as u64);
    Ok((content, decoder.finish()?))
}

fn decode(bytes: &[u8]) -> Result<(Vec<u8>, Ending), FrameError> {
    decode_in(bytes, bytes.len().max(1))
}

fn whole(unfinished: usize) -> Ending {
    Ending::Whole { checked: false, trailer: None, unfinished: unfinished as u64 }
}

fn blocks(contents: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    contents.iter().for_each(|content| push_block(&mut bytes, content));
    bytes
}

#[test]
fn stored_and_compressed_blocks_come_back() {
    let contents = [vec![7; 100_000], noise(1, 70_000), vec![0; 5]];
    let contents: Vec<&[u8]> = contents.iter().map(Vec::as_slice).collect();
    let bytes = [&FRAME_HEADER[..], &blocks(&contents), &END_MARK].concat();
    for piece in [1, 7, 4096, bytes.len()] {
        assert_eq!(decode_in(&bytes, piece), Ok((contents.concat(), whole(0))));
    }
}

#[test]
fn the_lz4_reader_of_others_agrees() {
    let content = noise(3, 300_000);
    let bytes = encode(Style::Ours, &content, None);
    let mut read = Vec::new();
    std::io::Read::read_to_end(&mut lz4_flex::frame::FrameDecoder::new(&bytes[..]), &mut read).unwrap();
    assert!(read == content);
    assert!(
        decode(&lz4(&content, |info| info.content_checksum(true).content_size(Some(300_000)))).unwrap().0
            == content
    );
}

#[test]
fn a_content_that_is_not_as_long_as_announced_is_refused() {
    let bytes = lz4(b"hello", |info| info.content_size(Some(5)));
    assert!(decode(&bytes).is_ok());
    // The header says 5; take the block of another length.
    let other = lz4(b"hello!", |info| info.content_size(Some(6)));
    let mixed = [&bytes[..15], &other[15..]].concat();
    assert_eq!(decode(&mixed).unwrap_err().fault, FrameFault::ContentLength);
}

/// Whatever part of an append has reached the server, a reader gets the old content or the new one.
#[test]
fn every_prefix_of_an_append_decodes_to_the_old_or_the_new_content() {
    let old_content = noise(0, 1000);
    for sizes in [&[1][..], &[20_000], &[29_000], &[31_000], &[90_000], &[70_000, 70_000], &[29_992 - 8, 40]]
    {
        let new: Vec<Vec<u8>> = (1..).zip(sizes).map(|(seed, size)| noise(seed, *size)).collect();
        let new: Vec<&[u8]> = new.iter().map(Vec::as_slice).collect();
        let old = encode(Style::Ours, &old_content, None);
        let mut appended = blocks(&new);
        let added = appended.len();
        let writes = append(old.len() as u64, &mut appended);
        let all_content = [&old_content[..], &new.concat()].concat();

        let mut file = old.clone();
        let mut reached_new = 0;
        for write in &writes {
            for (n, packet) in write.bytes.chunks(PACKET).enumerate() {
                let at = write.at as usize + n * PACKET;
                file.resize(file.len().max(at + packet.len()), 0);
                file[at..at + packet.len()].copy_from_slice(packet);
                assert_eq!(file[..old.len() - 4], old[..old.len() - 4], "no byte before the EndMark changes");
                let (content, ending) = decode(&file).unwrap();
                assert!(matches!(ending, Ending::Whole { .. }), "{sizes:?}");
                assert!(content.starts_with(&old_content) && all_content.starts_with(&content), "{sizes:?}");
                reached_new += usize::from(content == all_content);
            }
        }
        assert_eq!((reached_new, file.len()), (1, old.len() + added), "{sizes:?}");
        assert_eq!(decode(&file).unwrap().1, whole(0));
    }
}

#[test]
fn no_length_of_a_segment_panics_or_gives_other_content() {
    let history = History::new(512, &[3], 300);
    let wal = &history.wals[0];
    for bytes in [
        encode(Style::Ours, wal, None),
        encode(Style::Litestream, wal, None),
        [&FRAME_HEADER[..], &blocks(&[&wal[..600], &wal[600..]]), &END_MARK].concat(),
    ] {
        for length in 0..bytes.len() {
            match decode(&bytes[..length]) {
                Ok((content, ending)) => {
                    assert!(wal.starts_with(&content));
                    assert_eq!(ending, Ending::Torn);
                }
                Err(error) => assert_eq!(error.fault, FrameFault::PastEnd, "cut to {length}"),
            }
        }
    }
}

/// What is accepted of a WAL that arrives like this: the end of its last commit.
fn accept(bytes: &[u8], page_size: u32) -> Result<u64, ReplayFault> {
    let mut replay = Replay::new(PageSize::new(page_size).unwrap());
    let mut accepted = Vec::new();
    for piece in bytes.chunks(1000) {
        replay.feed(piece, |frames| {
            accepted.extend_from_slice(frames.bytes);
            Ok::<(), ReplayFault>(())
        })?;
    }
    let end = replay.end().get() as usize;
    assert!(end == 0 || accepted == bytes[32..end], "frames are handed on unchanged");
    Ok(replay.commit().map_or(0, |commit| commit.end.get()))
}

#[test]
fn every_length_of_a_wal_gives_the_commits_that_are_whole() {
    let history = History::new(512, &[3], 300);
    let (wal, ends) = (&history.wals[0], history.ends(0));
    for length in 0..=wal.len() {
        let expected = ends.iter().rfind(|&&end| end <= length as u64).copied().unwrap_or(0);
        assert_eq!(accept(&wal[..length], 512), Ok(expected));
    }
}

#[test]
fn every_flipped_bit_of_a_wal_is_found() {
    let history = History::new(512, &[2], 100);
    let wal = &history.wals[0];
    for at in (0..wal.len()).filter(|at| !(12..16).contains(at)) {
        for bit in 0..8 {
            let mut damaged = wal.clone();
            damaged[at] ^= 1 << bit;
            assert!(accept(&damaged, 512).is_err(), "byte {at} bit {bit}");
        }
    }
}

#[test]
fn a_trailer_stands_behind_the_end_and_what_else_is_there_is_counted() {
    let trailer = Trailer::Segment(SegmentTrailer {
        index: Index::ZERO,
        start: Offset::ZERO,
        end: Offset::new(5),
        last_of_index: true,
        crc: 9,
        state: None,
    });
    let bytes = encode(Style::Ours, b"hello", Some(trailer));
    let ending = |unfinished| Ending::Whole { checked: false, trailer: Some(trailer), unfinished };
    for piece in [1, 50, bytes.len()] {
        assert_eq!(decode_in(&bytes, piece), Ok((b"hello".to_vec(), ending(0))));
    }
    assert_eq!(decode(&[&bytes[..], b"xyz"].concat()).unwrap().1, ending(3));
    for length in bytes.len() - TRAILER_LENGTH..bytes.len() {
        let unfinished = length + TRAILER_LENGTH - bytes.len();
        assert_eq!(decode(&bytes[..length]).unwrap().1, whole(unfinished), "half a trailer is none");
    }
}

/// A trailer as version 1 wrote it: without a state of the database.
fn version_1(trailer: Trailer) -> Vec<u8> {
    let mut bytes = trailer.encode()[..TRAILER_LENGTH_1 - 8].to_vec();
    bytes[7] = 1;
    let crc = Crc64::of(&bytes).to_be_bytes();
    bytes.extend_from_slice(&crc);
    bytes
}

#[test]
fn trailers_of_the_first_version_are_read() {
    let (index, page_size) = (Index::new(3).unwrap(), PageSize::new(4096).unwrap());
    let segment = SegmentTrailer {
        index,
        start: Offset::ZERO,
        end: Offset::new(5),
        last_of_index: false,
        crc: 9,
        state: None,
    };
    let (valid_from, page_count) = ((index, Offset::new(7)), PageCount::new(2).unwrap());
    let snapshot = SnapshotTrailer { index, valid_from, page_size, page_count, crc: 8, state: None };
    for trailer in [Trailer::Segment(segment), Trailer::Snapshot(snapshot)] {
        let bytes = version_1(trailer);
        assert_eq!(Trailer::parse(&bytes), Some((trailer, TRAILER_LENGTH_1)));
        let object = [&encode(Style::Ours, b"hello", None)[..], &bytes, b"xyz"].concat();
        let ending = Ending::Whole { checked: false, trailer: Some(trailer), unfinished: 3 };
        assert_eq!(decode(&object).unwrap().1, ending);
    }
}

#[test]
fn bytes_that_are_no_frame_are_named() {
    let fault = |bytes: &[u8]| decode(bytes).unwrap_err().fault;
    assert_eq!(fault(b"SQLite format 3\0"), FrameFault::NotLz4);
    assert_eq!(fault(b"x"), FrameFault::NotLz4);
    assert_eq!(fault(b"age-encryption.org/v1\n"), FrameFault::Encrypted);
    assert_eq!(fault(&[0; 20]), FrameFault::NotLz4);
    assert_eq!(fault(&[0x04, 0x22, 0x4D, 0x18, 0xA0, 0x70, 0x73]), FrameFault::Unsupported);
    assert_eq!(fault(&[0x04, 0x22, 0x4D, 0x18, 0x60, 0x70, 0x74]), FrameFault::Header);
    assert_eq!(decode(b"").unwrap().1, Ending::Torn);
}

fn indexes() -> impl Strategy<Value = Index> {
    (0..MAX_INDEX).prop_map(|value| Index::new(value).unwrap())
}

fn page_sizes() -> impl Strategy<Value = PageSize> {
    (9u32..=16).prop_map(|power| PageSize::new(1 << power).unwrap())
}

fn states() -> impl Strategy<Value = Option<DatabaseState>> {
    let state = (1u32.., any::<u64>()).prop_map(|(count, bits)| DatabaseState {
        page_count: PageCount::new(count).unwrap(),
        checksum: DatabaseChecksum::new(bits),
    });
    proptest::option::of(state)
}

fn trailers() -> impl Strategy<Value = Trailer> {
    let segments = (indexes(), any::<u64>(), any::<u64>(), any::<bool>(), any::<u64>(), states()).prop_map(
        |(index, start, end, last_of_index, crc, state)| {
            let (start, end) = (Offset::new(start), Offset::new(end));
            Trailer::Segment(SegmentTrailer { index, start, end, last_of_index, crc, state })
        },
    );
    let snapshots = (indexes(), indexes(), any::<u64>(), page_sizes(), 1u32.., any::<u64>(), states())
        .prop_map(|(index, valid_index, valid_offset, page_size, count, crc, state)| {
            let valid_from = (valid_index, Offset::new(valid_offset));
            let page_count = PageCount::new(count).unwrap();
            Trailer::Snapshot(SnapshotTrailer { index, valid_from, page_size, page_count, crc, state })
        });
    segments.boxed().prop_union(snapshots.boxed())
}

proptest! {
    #[test]
    fn names_come_back(bits: u64, index in indexes(), start: u32, attempt: u64) {
        let generation = Generation::from_random(bits);
        let start = Offset::new(u64::from(start));
        let segment = Object::Segment { generation, index, start }.path();
        let snapshot = Object::Snapshot { generation, index }.path();
        let parts: Vec<&str> = segment.split('/').collect();
        prop_assert_eq!(parts[1].parse(), Ok(generation));
        prop_assert_eq!(parse_segment(parts[3]), Some((index, start)));
        prop_assert_eq!(parse_snapshot(snapshot.rsplit('/').next().unwrap()), Some(index));
        prop_assert_eq!(parse_snapshot(parts[3]), None);
        let set_aside = Object::Segment { generation, index, start }.set_aside_path(attempt);
        prop_assert_eq!(parse_set_aside(&set_aside), Some((segment.as_str(), attempt)));
        prop_assert_eq!(parse_segment(set_aside.rsplit('/').next().unwrap()), None);
    }

    #[test]
    fn any_text_is_a_name_or_is_not(text in "[0-9a-f_.walsnpshotz4]{0,30}") {
        if let Some((index, start)) = parse_segment(&text) {
            let path = Object::Segment { generation: generation(), index, start }.path();
            prop_assert!(path.ends_with(&text));
        }
    }

    #[test]
    fn positions_come_back(bits: u64, index in indexes(), offset: u64) {
        let position = Position::new(Generation::from_random(bits), index, Offset::new(offset));
        prop_assert_eq!(position.to_string().parse(), Ok(position));
    }

    #[test]
    fn trailers_come_back(trailer in trailers(), behind: Vec<u8>) {
        let bytes = [&trailer.encode()[..], &behind].concat();
        prop_assert_eq!(Trailer::parse(&bytes), Some((trailer, TRAILER_LENGTH)));
    }

    #[test]
    fn a_changed_trailer_is_none(trailer in trailers(), at in 0..TRAILER_LENGTH, change in 1u8..) {
        let mut bytes = trailer.encode();
        bytes[at] ^= change;
        prop_assert_eq!(Trailer::parse(&bytes), None);
    }

    #[test]
    fn any_bytes_decode_to_something_or_an_error(bytes: Vec<u8>, piece in 1usize..50) {
        let _ = decode_in(&bytes, piece);
        let framed = [&FRAME_HEADER[..], &bytes].concat();
        let _ = decode_in(&framed, piece);
    }

    #[test]
    fn any_content_comes_back(seed: i64, size in 1usize..200_000, piece in 1usize..70_000) {
        let content = noise(seed, size);
        for style in [Style::Ours, Style::Litestream] {
            let decoded = decode_in(&encode(style, &content, None), piece);
            prop_assert!(decoded.is_ok_and(|(decoded, _)| decoded == content));
        }
    }
}
