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
    /// A disk that does not answer is waited for without end.
    WaitForDisk,
    /// `Begin` follows `Seal` at once.
    BeginEarly,
    /// The probe is not waited for.
    ForgetProbe,
    /// The answer to a probe of an earlier handoff counts for the present one.
    TrustLateProbe,
    /// A supervisor asks nothing more of a new process that an earlier one has left, and that serves.
    TrustLeft,
    /// What the incumbent hands over is kept back.
    KeepStates,
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
    /// Who waits for the lock takes it from a process that is frozen.
    BreakLock,
    /// What is left by another supervisor is taken to serve, without asking.
    AdoptUnasked,
    /// A successor that is left by another supervisor is killed instead of asked.
    KillUnasked,
    /// A process that is adopted keeps to the handoff that it knows.
    KeepOldHandoff,
    /// A process that is adopted does not act upon the end of the channel that it had.
    AdoptBeforeClosed,
    /// Who made itself the incumbent is told that it is committed, and takes it for the order to leave.
    CommitSelfMade,
    /// That the old version serves although the new one was committed is not written down.
    ForgetRevert,
    /// Who was killed for being left by another supervisor counts as gone at once.
    StartBeforeGone,
    /// The journal does not know who was replaced before the last generation.
    ForgetLeaving,
    /// A supervisor that was frozen looks at its clock before it looks at its messages.
    ClockFirst,
    /// Who is to stand by is told to leave.
    DropStandby,
    /// Connections are steered, and a share of them stays where it went before.
    KeepShare,
    /// That a process is not well is not acted upon.
    ForgetVerdict,
    /// A process that serves is stopped, and nobody looks.
    ForgetFrozen,
    /// Who is to get the stop signal is killed in its place.
    KillUnwarned,
}
