//! Selects the processes of a program that receive its stop signal.
//!
//! A signal reaches one process. A wrapper such as a shell script or `npm start` does not pass it on: the wrapper ends,
//! or stays, and the server gets no signal. So the serving process gets it, and the others only if they still exist
//! after it has ended.

use crate::config::StopMode;

/// A process of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ReceiverProcess {
    /// The process.
    pub(super) pid: u32,
    /// Its parent; for the topmost processes that is outside of the program.
    pub(super) parent: u32,
    /// Identifies its executable; `None` if not visible.
    pub(super) program: Option<(u64, u64)>,
    /// Whether it has a listener of the service.
    pub(super) has_listener: bool,
}

/// The receivers among `all`. `main` is the main process, if there is one; `is_named`: the program has named it itself.
/// `serves`: whether a process with a listener, which has one child with another program, serves clients itself.
pub(super) fn receivers(
    mode: StopMode,
    main: Option<u32>,
    is_named: bool,
    all: &[ReceiverProcess],
    serves: &dyn Fn(u32) -> bool,
) -> Vec<u32> {
    let find = |pid: u32| all.iter().find(|process| process.pid == pid);
    let main = main.and_then(find);
    let first: Vec<&ReceiverProcess> = match main {
        Some(main) => vec![main],
        // A daemon: all processes without a parent in the program.
        None => all.iter().filter(|process| find(process.parent).is_none()).collect(),
    };
    let pids = |found: Vec<&ReceiverProcess>| found.into_iter().map(|process| process.pid).collect();
    match mode {
        StopMode::Group => all.iter().map(|process| process.pid).collect(),
        StopMode::Main => pids(first),
        StopMode::Mixed if is_named && main.is_some() => pids(first),
        StopMode::Mixed => {
            let servers: Vec<&ReceiverProcess> =
                first.iter().flat_map(|process| servers_below(process, all, serves)).collect();
            pids(if servers.is_empty() { first } else { servers })
        }
    }
}

/// The topmost processes with a listener, from this one on. A server with workers passes the signal on itself.
fn servers_below<'a>(
    process: &'a ReceiverProcess,
    all: &'a [ReceiverProcess],
    serves: &dyn Fn(u32) -> bool,
) -> Vec<&'a ReceiverProcess> {
    let children = || all.iter().filter(|child| child.parent == process.pid && child.pid != process.pid);
    if !process.has_listener {
        return children().flat_map(|child| servers_below(child, all, serves)).collect();
    }
    let mut only = children();
    match (only.next(), only.next()) {
        // A wrapper that has passed its listeners to another program: the server. If the process serves itself, the
        // child is a helper that has inherited the listener.
        (Some(child), None) if child.has_listener && differ(process, child) && !serves(process.pid) => {
            servers_below(child, all, serves)
        }
        _ => vec![process],
    }
}

fn differ(one: &ReceiverProcess, other: &ReceiverProcess) -> bool {
    matches!((one.program, other.program), (Some(one), Some(other)) if one != other)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// pid, parent, program, has a listener.
    fn tree(processes: &[(u32, u32, u64, bool)]) -> Vec<ReceiverProcess> {
        let one = |&(pid, parent, program, has_listener): &(u32, u32, u64, bool)| ReceiverProcess {
            pid,
            parent,
            program: (program > 0).then_some((1, program)),
            has_listener,
        };
        processes.iter().map(one).collect()
    }

    const SHELL: u64 = 1;
    const SERVER: u64 = 2;
    const NODE: u64 = 3;

    #[test]
    fn the_process_that_serves_gets_it() {
        let mixed = |main, all: &[_]| receivers(StopMode::Mixed, main, false, &tree(all), &|_| false);
        // The server itself, with and without workers that have the listener as well.
        assert_eq!(mixed(Some(10), &[(10, 1, SERVER, true)]), [10]);
        assert_eq!(
            mixed(Some(10), &[(10, 1, SERVER, true), (11, 10, SERVER, true), (12, 10, SERVER, true)]),
            [10]
        );
        assert_eq!(mixed(Some(10), &[(10, 1, SERVER, true), (11, 10, SERVER, true)]), [10]);
        // A shell and its server; npm, its shell, and its server.
        assert_eq!(mixed(Some(10), &[(10, 1, SHELL, false), (11, 10, SERVER, true)]), [11]);
        let npm = [(10, 1, NODE, false), (11, 10, SHELL, false), (12, 11, NODE, true), (13, 12, NODE, true)];
        assert_eq!(mixed(Some(10), &npm), [12]);
        // The same with inherited listeners: then the wrappers have them as well.
        let npm = [(10, 1, NODE, true), (11, 10, SHELL, true), (12, 11, NODE, true)];
        assert_eq!(mixed(Some(10), &npm), [12]);
        // Several servers below one wrapper.
        let two = [(10, 1, SHELL, false), (11, 10, SERVER, true), (12, 10, SERVER, true)];
        assert_eq!(mixed(Some(10), &two), [11, 12]);
        // A server that has started other programs, one of which has the listener by mistake.
        assert_eq!(
            mixed(Some(10), &[(10, 1, SERVER, true), (11, 10, SHELL, true), (12, 10, SHELL, true)]),
            [10]
        );
        assert_eq!(mixed(Some(10), &[(10, 1, SERVER, true), (11, 10, SHELL, false)]), [10]);
        // No process has a visible listener: the first.
        assert_eq!(mixed(Some(10), &[(10, 1, 0, false), (11, 10, 0, false)]), [10]);
        // A daemon, whose first process is gone.
        assert_eq!(mixed(None, &[(11, 1, SERVER, true), (12, 11, SERVER, true)]), [11]);
        assert_eq!(mixed(None, &[]), Vec::<u32>::new());
    }

    #[test]
    fn a_helper_that_has_inherited_the_listener_does_not_get_it() {
        let mixed = |main, all: &[_], serves| {
            receivers(StopMode::Mixed, main, false, &tree(all), &|pid| pid == serves)
        };
        let helper = [(10, 1, SERVER, true), (11, 10, SHELL, true), (12, 11, NODE, true)];
        assert_eq!(mixed(Some(10), &helper, 10), [10]);
        assert_eq!(mixed(None, &helper, 10), [10]);
        // Below a wrapper without a listener, and below one with it.
        for has_listener in [false, true] {
            let wrapped = [(9, 1, SHELL, has_listener), (10, 9, SERVER, true), (11, 10, NODE, true)];
            assert_eq!(mixed(Some(9), &wrapped, 10), [10]);
        }
        // It serves, and its parent does not.
        assert_eq!(mixed(Some(10), &helper, 11), [11]);
    }

    #[test]
    fn the_other_modes_do_not_look_who_serves() {
        let all = tree(&[(10, 1, SHELL, false), (11, 10, SERVER, true), (12, 11, SERVER, true)]);
        assert_eq!(receivers(StopMode::Main, Some(10), false, &all, &|_| false), [10]);
        assert_eq!(receivers(StopMode::Group, Some(10), false, &all, &|_| false), [10, 11, 12]);
        // The program has named its main process.
        assert_eq!(receivers(StopMode::Mixed, Some(12), true, &all, &|_| false), [12]);
        // The named process is gone: as if none had been named.
        assert_eq!(receivers(StopMode::Mixed, Some(99), true, &all, &|_| false), [11]);
    }
}
