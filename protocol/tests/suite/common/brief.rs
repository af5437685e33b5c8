//! States and actions of a supervisor in a short form, so that each row of a table is a readable line.
//!
//! | form | means |
//! |---|---|
//! | `Draining Touched/Parked/-` | phase, and what is known of incumbent, successor and outgoing |
//! | `Quiesced(late)` | the incumbent was late to resume, and got SIGTERM |
//! | `I:`, `S:`, `O:` | a message to incumbent, successor, outgoing |
//! | `kill:S`, `term:O`, `steer:I` | SIGKILL, SIGTERM, new connections, for the same |
//! | `restore:O` | the outgoing process is restored, and the one that is replaced retires |
//! | `+Greet:30s`, `-Greet` | a deadline is armed, disarmed |
//! | `+ExitO`, `-Retire*` | one deadline of an outgoing process, all of them |
//! | `-Recover*` | all deadlines of a recovery |

use std::fmt::Debug;

use handoff_protocol::message::{Prepare, Seal, ToService};
use handoff_protocol::reason::Reason;
use handoff_protocol::recovery::Facts;
use handoff_protocol::supervisor::{Action, Incumbent, Outcome, Successor, Supervisor};

/// A state of a supervisor.
pub fn seen(machine: &Supervisor) -> String {
    state(machine).replace("Unreachable", "Unreach")
}

fn state(machine: &Supervisor) -> String {
    let leaving = machine.outgoing().map_or("-".into(), |outgoing| flags(&outgoing.step));
    let wanted = if machine.is_wanted() { "" } else { " unwanted" };
    if let Some(Facts { last_handoff: written, incumbent, successor, .. }) = machine.facts() {
        let found = format!("{incumbent:?}/{successor:?}").replace("Gone", "-");
        return format!("Recovering {written:?} {found}/{leaving}{wanted}");
    }
    let incumbent = match machine.incumbent() {
        Incumbent::Absent => "-".into(),
        incumbent if machine.resume_is_over() => format!("{incumbent:?}(late)"),
        incumbent => format!("{incumbent:?}"),
    };
    let successor = match machine.successor() {
        Successor::Absent => "-".into(),
        successor => format!("{successor:?}"),
    };
    format!("{:?} {incumbent}/{successor}/{leaving}{wanted}", machine.phase())
}

/// `Exiting { serves: true }` is `Exiting(serves)`.
fn flags(value: &impl Debug) -> String {
    let text = format!("{value:?}");
    match text.split_once(" { ") {
        None => text,
        Some((name, rest)) => {
            let set = rest.split(", ").filter_map(|flag| flag.trim_end_matches(" }").strip_suffix(": true"));
            let set: Vec<&str> = set.collect();
            if set.is_empty() { name.into() } else { format!("{name}({})", set.join(" ")) }
        }
    }
}

/// The actions of a supervisor.
pub fn did(actions: &[Action]) -> String {
    let parts: Vec<String> = actions.iter().map(brief).collect();
    let text = parts.join(" ");
    text.replace("-RetireDrain -RetireQuiet -RetireSeal -RetireExit", "-Retire*")
        .replace("-AnswerIncumbent -AnswerSuccessor -Recover", "-Recover*")
        .replace("AnswerIncumbent", "AnswerI")
        .replace("AnswerSuccessor", "AnswerS")
        .replace("RetireDrain", "DrainO")
        .replace("RetireQuiet", "QuietO")
        .replace("RetireSeal", "SealO")
        .replace("RetireExit", "ExitO")
}

fn brief(action: &Action) -> String {
    match action {
        Action::Spawn(_, target) => format!("spawn:{target:?}"),
        Action::Rest(rest, _) => format!("rest:{rest:?}"),
        Action::Welcome(_, version) => format!("S:Welcome(v{version})"),
        Action::ToSuccessor(_, message) => format!("S:{}", told(message)),
        Action::ToIncumbent(_, message) => format!("I:{}", told(message)),
        Action::ToOutgoing(_, message) => format!("O:{}", told(message)),
        Action::AwaitQuiet(_) => "await-quiet".into(),
        Action::Probe(_, limit_ms) => format!("probe:{}", time(*limit_ms)),
        Action::SteerShare(permille) => format!("steer:{permille}/1000"),
        Action::RecordDurably(_, fact) => format!("write:{fact:?}"),
        Action::Arm(deadline, ms) => format!("+{deadline:?}:{}", time(*ms)),
        Action::Disarm(deadline) => format!("-{deadline:?}"),
        Action::Failed(reason) => format!("fail:{}", why(reason)),
        Action::Report(outcome) => format!("end:{}", ended(outcome)),
        Action::Refuse(refusal) => format!("refuse:{refusal:?}"),
        Action::Recovered(decision) => format!("found:{decision:?}"),
        Action::Reinstate { retires } => format!("restore{}", if *retires { ":O" } else { "" }),
        Action::TerminateSuccessor => "term:S".into(),
        Action::KillSuccessor => "kill:S".into(),
        Action::TerminateIncumbent => "term:I".into(),
        Action::GiveUpRecord => "give-up-record".into(),
        Action::KillIncumbent => "kill:I".into(),
        Action::TerminateOutgoing => "term:O".into(),
        Action::KillOutgoing => "kill:O".into(),
        Action::HangUpIncumbent => "hangup:I".into(),
        Action::SteerToSuccessor => "steer:S".into(),
        Action::SteerToIncumbent => "steer:I".into(),
        Action::Promote => "promote".into(),
        Action::Retire => "retire".into(),
        Action::RetireSlot => "retire-slot".into(),
        Action::CloseListeners => "close-listeners".into(),
    }
}

fn told(message: &ToService) -> String {
    match message {
        ToService::Prepare(Prepare { grace_ms, lease_ms }) => {
            format!("Prepare({},{})", time(*grace_ms), time(*lease_ms))
        }
        ToService::Seal(Seal { lease_ms, cut }) => {
            format!("Seal({}{})", time(*lease_ms), if *cut { ",cut" } else { "" })
        }
        _ => message.name().into(),
    }
}

fn ended(outcome: &Outcome) -> String {
    match outcome {
        Outcome::RolledBack(reason) => format!("RolledBack({})", why(reason)),
        Outcome::Failed(reason) => format!("Failed({})", why(reason)),
        Outcome::Started | Outcome::Committed | Outcome::Stopped => format!("{outcome:?}"),
    }
}

/// Without the text, which follows from the event.
fn why(reason: &Reason) -> String {
    match reason {
        Reason::Broke { role, .. } => format!("Broke({role:?})"),
        Reason::Silent(_) | Reason::HungUp(_) => format!("{reason:?}"),
        _ => {
            let text = format!("{reason:?}");
            text.split([' ', '(']).next().unwrap_or_default().to_owned()
        }
    }
}

fn time(ms: u64) -> String {
    if ms > 0 && ms.is_multiple_of(1_000) { format!("{}s", ms / 1_000) } else { format!("{ms}ms") }
}
