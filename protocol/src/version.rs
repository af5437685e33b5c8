//! The protocol versions, and the one reason for each.
//!
//! | version | reason |
//! |---|---|
//! | 1 | the first |
//! | 2 | `State`: a process hands state to its successor |
//! | 3 | `Grant`: the service file, not a constant, limits how long a process may take to end |
//! | 4 | `Release`: a server reports its version itself, before it touches anything |
//!
//! The frame header, `Hello`, `Welcome`, `Adopt` and `Adopted` are the same in every version, so that two processes can
//! always detect that they have no common version.

use serde::{Deserialize, Serialize};

/// The newest version that this crate supports.
pub const CURRENT: u16 = 4;

/// The oldest version that this crate still supports.
pub const MINIMUM: u16 = 1;

/// The version field of frames before the agreement: `Hello`, `Welcome`, `Adopt` and `Adopted`.
pub const UNAGREED: u16 = 0;

/// The versions that a process supports, inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VersionRange {
    /// The oldest.
    pub minimum: u16,
    /// The newest.
    pub current: u16,
}

impl VersionRange {
    /// The versions that this crate supports.
    pub const OURS: Self = Self { minimum: MINIMUM, current: CURRENT };

    /// Whether `version` is in the range.
    pub fn contains(self, version: u16) -> bool {
        (self.minimum..=self.current).contains(&version)
    }
}

/// The two processes have no version in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[error(
    "no common protocol version: we speak {}..={}, the peer speaks {}..={}",
    ours.minimum, ours.current, theirs.minimum, theirs.current
)]
pub struct NoCommonVersion {
    /// The versions of this side.
    pub ours: VersionRange,
    /// The versions of the peer.
    pub theirs: VersionRange,
}

/// Selects the newest common version.
pub fn negotiate(ours: VersionRange, theirs: VersionRange) -> Result<u16, NoCommonVersion> {
    let chosen = ours.current.min(theirs.current);
    if chosen != UNAGREED && ours.contains(chosen) && theirs.contains(chosen) {
        Ok(chosen)
    } else {
        Err(NoCommonVersion { ours, theirs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(minimum: u16, current: u16) -> VersionRange {
        VersionRange { minimum, current }
    }

    #[test]
    fn the_newest_common_version_is_chosen() {
        assert_eq!(negotiate(range(1, 3), range(2, 7)), Ok(3));
        assert_eq!(negotiate(range(2, 7), range(1, 3)), Ok(3));
        assert_eq!(negotiate(range(1, 1), range(1, 1)), Ok(1));
    }

    #[test]
    fn strangers_backward_ranges_and_version_zero_are_refused() {
        for theirs in [range(2, 3), range(3, 1), range(0, 0), range(u16::MAX, u16::MAX)] {
            assert!(negotiate(range(1, 1), theirs).is_err(), "{theirs:?}");
        }
    }
}
