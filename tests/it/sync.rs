//! `decide()` for every combination of facts, against rules that are stated once more, as a table.

use wal_agent::core::page::PageSize;
use wal_agent::core::position::Offset;
use wal_agent::core::sync::{Break, ShadowFacts, SyncDecision, WalFacts, decide};
use wal_agent::core::wal::{ByteOrder, Checksum, WalHeader};

/// A valid header with a salt of its own.
pub fn header(salt: u32) -> WalHeader {
    let mut bytes = [0; 32];
    for (at, word) in [0x377F_0682, 3_007_000, 512, 0, salt, !salt].into_iter().enumerate() {
        bytes[at * 4..at * 4 + 4].copy_from_slice(&u32::to_be_bytes(word));
    }
    let Checksum(s0, s1) = Checksum::default().extend(ByteOrder::Little, &bytes[..24]);
    bytes[24..28].copy_from_slice(&s0.to_be_bytes());
    bytes[28..].copy_from_slice(&s1.to_be_bytes());
    WalHeader::parse(&bytes).expect("the header is valid")
}

fn after(frames: u32) -> Offset {
    Offset::after_frames(PageSize::new(512).expect("512 is a page size"), frames)
}

/// What must be decided, written as a list of rules of which the first that fits counts.
fn rule(facts: &WalFacts) -> SyncDecision {
    let to = after(facts.frames);
    match (facts.shadow, facts.frames, facts.live) {
        (None, 0, _) => SyncDecision::Wait,
        (None, _, Some(header)) => SyncDecision::NextIndex { header, to },
        (Some(_), 0, _) if facts.guarded => SyncDecision::Wait,
        (Some(_), 0, _) => SyncDecision::NewGeneration(Break::WalRestarted),
        (_, _, None) => SyncDecision::NewGeneration(Break::HeaderInvalid),
        (Some(shadow), _, Some(header)) if shadow.header != header => match facts.guarded {
            true => SyncDecision::NextIndex { header, to },
            false => SyncDecision::NewGeneration(Break::WalRestarted),
        },
        (Some(shadow), _, _) if to < shadow.end => SyncDecision::NewGeneration(Break::WalShorterThanShadow),
        (Some(_), _, _) if !facts.guarded && !facts.tail_matches => {
            SyncDecision::NewGeneration(Break::TailDiffers)
        }
        (Some(shadow), _, _) if to == shadow.end => SyncDecision::Wait,
        _ => SyncDecision::Copy { to },
    }
}

#[test]
fn every_combination_of_facts_is_decided_by_the_rules() {
    let (ours, other) = (header(7), header(8));
    let shadows = [None, Some(after(2)), Some(after(5))];
    let mut seen = 0;
    for shadow in shadows {
        let shadow = shadow.map(|end| ShadowFacts { header: ours, end });
        for live in [None, Some(ours), Some(other)] {
            for frames in [0, 1, 2, 3, 5, 9] {
                for (guarded, tail_matches) in [(false, false), (false, true), (true, false), (true, true)] {
                    let facts = WalFacts { shadow, live, frames, guarded, tail_matches };
                    assert_eq!(decide(&facts), rule(&facts), "{facts:?}");
                    seen += 1;
                }
            }
        }
    }
    assert_eq!(seen, 3 * 3 * 6 * 4);
}

#[test]
fn without_a_guard_another_header_is_never_taken_for_the_next_index() {
    let shadow = Some(ShadowFacts { header: header(7), end: after(2) });
    for frames in 0..9 {
        let facts = WalFacts { shadow, live: Some(header(8)), frames, guarded: false, tail_matches: true };
        assert_eq!(decide(&facts), SyncDecision::NewGeneration(Break::WalRestarted), "{facts:?}");
    }
}
