//! The signals that a person may send to the program of a service.

use crate::sys::process::Signal;

/// Such that programs give a meaning to, and those that end them. The shim of a program passes each of them on; the others, as SIGSEGV,
/// are for the process itself that gets them.
const SIGNALS: [(&str, Signal); 8] = [
    ("HUP", Signal::SIGHUP),
    ("INT", Signal::SIGINT),
    ("QUIT", Signal::SIGQUIT),
    ("USR1", Signal::SIGUSR1),
    ("USR2", Signal::SIGUSR2),
    ("WINCH", Signal::SIGWINCH),
    ("TERM", Signal::SIGTERM),
    ("KILL", Signal::SIGKILL),
];

/// One of them, with or without `SIG`, in any case, or by its number.
pub(crate) fn signal_of(text: &str) -> Option<Signal> {
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let found = SIGNALS.iter().find(|(known, signal)| *known == name || (*signal as i32).to_string() == name);
    found.map(|(_, signal)| *signal)
}

/// Their names, to be told.
pub(crate) fn signal_names() -> String {
    SIGNALS.map(|(name, _)| name).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_has_its_name_and_its_number() {
        for text in ["HUP", "hup", "SIGHUP", "sighup", "1"] {
            assert_eq!(signal_of(text), Some(Signal::SIGHUP), "{text}");
        }
        for text in ["", "SIG", "SEGV", "11", "STOP", "HUP "] {
            assert_eq!(signal_of(text), None, "{text}");
        }
    }
}
