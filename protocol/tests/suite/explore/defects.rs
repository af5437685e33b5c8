//! Defects that are known from other designs, each put into the model. The walk must find all of them.

/// One defect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// The lock is released while the seal code still runs.
    ReleaseBeforeSealed,
    /// `Sealed` is sent, and then the lock is released.
    ReleaseAfterSealed,
    /// The death of the incumbent also kills the successor.
    KillSuccessorWithIncumbent,
    /// A process that waits for the lock gives up after a while.
    GiveUpLock,
    /// The commit counts before it is on the disk.
    CommitBeforeDurable,
    /// The supervisor waits without limit for a disk that does not answer.
    WaitForDisk,
    /// `Begin` follows `Seal` at once.
    BeginEarly,
    /// The supervisor does not wait for the probe.
    ForgetProbe,
    /// The answer to a probe of an earlier handoff counts for the current one.
    TrustLateProbe,
    /// A supervisor requires nothing more of a new process that an earlier one has left, if it serves.
    TrustLeft,
    /// The state that the incumbent hands over is not passed on.
    KeepStates,
    /// The incumbent opens its data again without the lock.
    ResumeWithoutLock,
    /// The incumbent ignores that its channel is closed.
    IgnoreClosed,
    /// The incumbent has no lease.
    IgnoreLease,
    /// A successor that has received `Begin` leaves when the supervisor dies.
    LeaveAfterBegin,
    /// A killed successor counts as gone at once.
    NoReap,
    /// A process that was asked to resume counts as having resumed.
    TrustResume,
    /// A process that waits for the lock takes it from a frozen process.
    BreakLock,
    /// A process that another supervisor has left counts as serving, without being asked.
    AdoptUnasked,
    /// A successor that another supervisor has left is killed instead of asked.
    KillUnasked,
    /// An adopted process keeps its old handoff.
    KeepOldHandoff,
    /// An adopted process ignores the end of its old channel.
    AdoptBeforeClosed,
    /// A process that made itself the incumbent gets `Commit`, and takes it for the order to leave.
    CommitUnpromoted,
    /// The journal does not record that the old version serves although the new one was committed.
    ForgetRevert,
    /// A process that was killed because another supervisor had left it counts as gone at once.
    StartBeforeGone,
    /// The journal does not record which process was replaced before the last generation.
    ForgetLeaving,
    /// A supervisor that was frozen looks at its clock before its messages.
    ClockFirst,
    /// The process that must stand by is sent away.
    DropStandby,
    /// Connections are steered, but a share of them stays at its old slot.
    KeepShare,
    /// The supervisor ignores that a process is not well.
    ForgetVerdict,
    /// A serving process is stopped, and no check notices it.
    ForgetFrozen,
    /// Who is to get the stop signal is killed in its place.
    KillUnwarned,
}
