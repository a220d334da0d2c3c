//! How much of the local disk the shadow WAL may take while replicas are behind.
//!
//! What every replica has is never kept for long, so there is nothing to make smaller by rolling it up. Where room gets
//! scarce, first nothing is written or kept that is not needed; then the shadow is given up, and the database let go of.

use std::fmt;

/// Less than this is not worth giving up: it would not help the application.
const LEAST_KEPT: u64 = 4 << 20;
/// Without a limit of its own, a disk keeps so many bytes free, or so large a part, whichever is less. Where less than
/// that many bytes are free, and the application fills the disk while a replica fails or does not follow, what that lacks
/// takes no more than it leaves, either: a disk that is filled at the speed of memory is full before anybody has noticed
/// how little is left.
const DEFAULT_FREE: u64 = 256 << 20;
const DEFAULT_FREE_PART: u64 = 20;

/// What the configuration says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SpaceLimits {
    /// Bytes that the shadow WAL may have; `None` for any number.
    pub max_local: Option<u64>,
    /// Bytes that its disk must keep free; `None` for the default, see [`SpaceLimits::least_free`].
    pub min_free: Option<u64>,
}

/// A shadow WAL, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ShadowSize {
    /// What it has.
    pub kept: u64,
    /// What is committed, and still to be copied into it.
    pub left: u64,
    /// What some replica lacks of it.
    pub behind: u64,
    /// Whether that replica fails, or does not follow, and the application goes on writing.
    pub is_filled: bool,
}

/// A disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSpace {
    /// All of it.
    pub total: u64,
    /// What anybody may still write.
    pub free: u64,
}

/// Why there is no room for the shadow WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shortage {
    /// It has as many bytes as it may have.
    Limit(u64),
    /// So few bytes are free on its disk.
    Free(u64),
}

/// How room for the shadow WAL gets scarce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scarcity {
    /// It has more than half of the bytes that it may have.
    Limit {
        /// Bytes that it has.
        kept: u64,
        /// Bytes that it may have.
        most: u64,
    },
    /// Less than twice of what its disk must keep is free.
    Free {
        /// Bytes that are free.
        free: u64,
        /// Bytes that must be.
        least: u64,
    },
}

impl SpaceLimits {
    /// Bytes that a disk must keep free: what is configured; else 256 MiB, or a twentieth of a small disk.
    pub fn least_free(&self, disk: DiskSpace) -> u64 {
        self.min_free.unwrap_or(DEFAULT_FREE.min(disk.total / DEFAULT_FREE_PART))
    }

    /// Whether what some replica lacks is worth giving up.
    pub fn is_behind(behind: u64) -> bool {
        behind >= LEAST_KEPT
    }

    /// Whether a shadow WAL of `kept` bytes, of which some replica lacks `behind`, comes near to where it must be given
    /// up.
    pub fn scarcity(&self, kept: u64, behind: u64, disk: Option<DiskSpace>) -> Option<Scarcity> {
        if !SpaceLimits::is_behind(behind) {
            return None;
        }
        if let Some(most) = self.max_local.filter(|most| kept > most / 2) {
            return Some(Scarcity::Limit { kept, most });
        }
        let disk = disk?;
        let least = self.least_free(disk);
        (disk.free < least.saturating_mul(2)).then_some(Scarcity::Free { free: disk.free, least })
    }

    /// Whether a shadow WAL must be given up. What no replica lacks is about as large as the application's own WAL, and
    /// would be copied again at once: on a disk that is almost full it is given up only where it is more than what is
    /// free.
    pub fn shortage(&self, shadow: ShadowSize, disk: Option<DiskSpace>) -> Option<Shortage> {
        let ShadowSize { kept, left, behind, is_filled } = shadow;
        let is_behind = SpaceLimits::is_behind(behind);
        if is_behind && self.max_local.is_some_and(|most| kept > most) {
            return Some(Shortage::Limit(kept));
        }
        let disk = disk?;
        let (least, leaves) = (self.least_free(disk), disk.free.saturating_sub(left));
        let is_almost_full = disk.free < least && (is_behind || kept >= disk.free.max(LEAST_KEPT));
        let fits = left < LEAST_KEPT || leaves >= least;
        let is_filled_too_fast = is_filled
            && self.min_free.is_none()
            && disk.free < DEFAULT_FREE
            && SpaceLimits::is_behind(behind + left)
            && behind + left > leaves;
        let is_short = is_almost_full || !fits || is_filled_too_fast;
        is_short.then_some(Shortage::Free(disk.free))
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Shortage::Limit(kept) => write!(f, "it has {kept} bytes, more than max-local-bytes"),
            Shortage::Free(free) => write!(f, "its disk has only {free} bytes free, see min-free-bytes"),
        }
    }
}

impl fmt::Display for Scarcity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("scarce: ")?;
        match self {
            Scarcity::Limit { kept, most } => write!(f, "the shadow WAL has {kept} of {most} bytes")?,
            Scarcity::Free { free, least } => write!(f, "{free} bytes are free, and {least} must stay so")?,
        }
        f.write_str("; what is not needed is left undone, then the shadow WAL is given up")
    }
}

#[cfg(test)]
mod tests {
    use super::{DEFAULT_FREE, DiskSpace, LEAST_KEPT, Scarcity, ShadowSize, Shortage, SpaceLimits};

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_shadow_is_given_up_beyond_its_limit_or_when_the_disk_is_almost_full() {
        let disk = |free| Some(DiskSpace { total: 100 * GIB, free });
        let open = SpaceLimits::default();
        let of = |limits: SpaceLimits, kept, disk| {
            limits.shortage(ShadowSize { kept, behind: kept, ..ShadowSize::default() }, disk)
        };
        assert_eq!(of(open, 50 * GIB, disk(GIB)), None);
        assert_eq!(of(open, GIB, disk(1000)), Some(Shortage::Free(1000)));
        assert_eq!(of(open, LEAST_KEPT - 1, disk(1000)), None, "it would not help");
        assert_eq!(of(open, GIB, None), None, "nobody knows");
        let bound = SpaceLimits { max_local: Some(2 * LEAST_KEPT), min_free: Some(2 * GIB) };
        let (most, beyond) = (2 * LEAST_KEPT, 2 * LEAST_KEPT + 1);
        assert_eq!(of(bound, most, disk(3 * GIB)), None);
        assert_eq!(of(bound, beyond, disk(3 * GIB)), Some(Shortage::Limit(beyond)));
        let free = SpaceLimits { max_local: None, ..bound };
        assert_eq!(of(free, LEAST_KEPT, disk(GIB)), Some(Shortage::Free(GIB)));
    }

    #[test]
    fn room_is_scarce_before_there_is_none_and_only_for_what_a_replica_lacks() {
        let disk = |free| Some(DiskSpace { total: 100 * GIB, free });
        let limits = SpaceLimits { max_local: Some(4 * LEAST_KEPT), min_free: Some(GIB) };
        let half = 2 * LEAST_KEPT;
        assert_eq!(limits.scarcity(half, half, disk(2 * GIB)), None);
        let limit = Scarcity::Limit { kept: half + 1, most: 2 * half };
        assert_eq!(limits.scarcity(half + 1, half, disk(2 * GIB)), Some(limit));
        let free = Scarcity::Free { free: 2 * GIB - 1, least: GIB };
        assert_eq!(limits.scarcity(half, half, disk(2 * GIB - 1)), Some(free));
        assert_eq!(limits.scarcity(2 * half, LEAST_KEPT - 1, disk(0)), None, "no replica lacks it");
        assert_eq!(SpaceLimits::default().scarcity(half, half, None), None, "nobody knows");
    }

    #[test]
    fn what_every_replica_has_is_given_up_only_for_an_application_that_has_less_left() {
        let disk = |free| Some(DiskSpace { total: 100 * GIB, free });
        let limits = SpaceLimits { max_local: Some(LEAST_KEPT), min_free: None };
        let kept = 5 * LEAST_KEPT;
        let of =
            |kept, behind, disk| limits.shortage(ShadowSize { kept, behind, ..ShadowSize::default() }, disk);
        assert_eq!(of(kept, LEAST_KEPT - 1, disk(kept + 1)), None);
        assert_eq!(of(kept, 0, disk(kept)), Some(Shortage::Free(kept)));
        assert_eq!(of(LEAST_KEPT - 1, 0, disk(0)), None, "it would not help");
    }

    #[test]
    fn where_little_is_free_and_a_replica_fails_what_it_lacks_takes_no_more_than_it_leaves() {
        let of = |min_free, shadow, free| {
            let limits = SpaceLimits { max_local: None, min_free };
            limits.shortage(shadow, Some(DiskSpace { total: GIB, free }))
        };
        let (free, least) = (DEFAULT_FREE - 1, GIB / 20);
        let behind = |behind| ShadowSize { kept: GIB, left: 0, behind, is_filled: true };
        assert_eq!(of(None, behind(free), free), None);
        assert_eq!(of(None, behind(free + 1), free), Some(Shortage::Free(free)));
        assert_eq!(of(None, behind(2 * DEFAULT_FREE), DEFAULT_FREE), None, "enough is free");
        assert_eq!(of(Some(least), behind(free + 1), free), None, "it is configured");
        assert_eq!(of(None, behind(LEAST_KEPT - 1), LEAST_KEPT - 2 + least), None, "it would not help");
        let taken = ShadowSize { is_filled: false, ..behind(free + 1) };
        assert_eq!(of(None, taken, free), None, "the replica takes it in a moment");
        let copying = |left| ShadowSize { left, is_filled: true, ..ShadowSize::default() };
        assert_eq!(of(None, copying(free / 2), free), None);
        assert_eq!(of(None, copying(free / 2 + 1), free), Some(Shortage::Free(free)));
    }

    #[test]
    fn nothing_is_copied_that_does_not_fit() {
        let limits = SpaceLimits { max_local: None, min_free: Some(GIB) };
        let of = |left, free| {
            let shadow = ShadowSize { left, ..ShadowSize::default() };
            limits.shortage(shadow, Some(DiskSpace { total: 100 * GIB, free }))
        };
        assert_eq!(of(GIB, 2 * GIB), None);
        assert_eq!(of(GIB + 1, 2 * GIB), Some(Shortage::Free(2 * GIB)));
        assert_eq!(of(3 * GIB, 2 * GIB), Some(Shortage::Free(2 * GIB)));
        assert_eq!(of(LEAST_KEPT - 1, GIB), None, "it would not help");
    }

    #[test]
    fn a_small_disk_keeps_a_twentieth_free_and_a_large_one_256_mib() {
        let least = |total| SpaceLimits::default().least_free(DiskSpace { total, free: 0 });
        assert_eq!((least(64 << 20), least(100 * GIB)), ((64 << 20) / 20, 256 << 20));
    }
}
