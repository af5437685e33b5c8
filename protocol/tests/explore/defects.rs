//! Mistakes that are known from other designs, each put into the model: the walk must find every one of them.

/// One mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// The lock is released while the seal code still runs.
    ReleaseBeforeSealed,
    /// `Sealed` is said, and then the lock is released.
    ReleaseAfterSealed,
    /// The death of the incumbent takes the successor with it.
    KillSuccessorWithIncumbent,
    /// Who waits for the lock gives up after a while.
    GiveUpLock,
    /// The commit counts before it is on the disk.
    CommitBeforeDurable,
    /// `Begin` follows `Seal` at once.
    BeginEarly,
    /// The incumbent opens its data again without the lock.
    ResumeWithoutLock,
    /// The incumbent does not care that its channel is closed.
    IgnoreClosed,
    /// The incumbent has no lease.
    IgnoreLease,
    /// A successor that was told to begin leaves when the supervisor dies.
    LeaveAfterBegin,
    /// A successor that was killed counts as gone at once.
    NoReap,
    /// Who was asked to resume is taken to have resumed.
    TrustResume,
}
