//! How much of the local disk the shadow WAL may take while replicas are behind.

use std::fmt;

/// Less than this is not worth giving up: it would not help the application.
const LEAST_KEPT: u64 = 4 << 20;
/// Without a limit of its own, a disk keeps so many bytes free, or so large a part, whichever is less.
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

impl SpaceLimits {
    /// Bytes that a disk must keep free: what is configured; else 256 MiB, or a twentieth of a small disk.
    pub fn least_free(&self, disk: DiskSpace) -> u64 {
        self.min_free.unwrap_or(DEFAULT_FREE.min(disk.total / DEFAULT_FREE_PART))
    }

    /// Whether a shadow WAL of so many bytes must be given up.
    pub fn shortage(&self, kept: u64, disk: Option<DiskSpace>) -> Option<Shortage> {
        if self.max_local.is_some_and(|most| kept > most) {
            return Some(Shortage::Limit(kept));
        }
        let disk = disk.filter(|disk| kept >= LEAST_KEPT && disk.free < self.least_free(*disk))?;
        Some(Shortage::Free(disk.free))
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

#[cfg(test)]
mod tests {
    use super::{DiskSpace, LEAST_KEPT, Shortage, SpaceLimits};

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_shadow_is_given_up_beyond_its_limit_or_when_the_disk_is_almost_full() {
        let disk = |free| Some(DiskSpace { total: 100 * GIB, free });
        let open = SpaceLimits::default();
        assert_eq!(open.shortage(50 * GIB, disk(GIB)), None);
        assert_eq!(open.shortage(GIB, disk(1000)), Some(Shortage::Free(1000)));
        assert_eq!(open.shortage(LEAST_KEPT - 1, disk(1000)), None, "it would not help");
        assert_eq!(open.shortage(GIB, None), None, "nobody knows");
        let bound = SpaceLimits { max_local: Some(1000), min_free: Some(2 * GIB) };
        assert_eq!(bound.shortage(1000, disk(3 * GIB)), None);
        assert_eq!(bound.shortage(1001, disk(3 * GIB)), Some(Shortage::Limit(1001)));
        let free = SpaceLimits { max_local: None, ..bound };
        assert_eq!(free.shortage(LEAST_KEPT, disk(GIB)), Some(Shortage::Free(GIB)));
    }

    #[test]
    fn a_small_disk_keeps_a_twentieth_free_and_a_large_one_256_mib() {
        let least = |total| SpaceLimits::default().least_free(DiskSpace { total, free: 0 });
        assert_eq!((least(64 << 20), least(100 * GIB)), ((64 << 20) / 20, 256 << 20));
    }
}
