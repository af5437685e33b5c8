//! The system call in which a thread of another process waits.

use std::fs;

use super::process::read_at_once;

/// A system call and its arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlockedCall {
    /// Its number on this processor.
    pub(super) number: i64,
    /// Its arguments.
    pub(super) args: [u64; 6],
}

/// The threads of a process.
pub(super) fn threads_of(pid: u32) -> impl Iterator<Item = u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads.filter_map(|thread| thread.file_name().to_str()?.parse().ok())
}

/// The call in which a thread waits, or was stopped. `None` if it runs, or is out of reach (ptrace(2)).
pub(super) fn blocked_call(pid: u32, thread: u32) -> Option<BlockedCall> {
    parse(&read_at_once(&format!("/proc/{pid}/task/{thread}/syscall")).ok()?)
}

/// Parses proc_pid_syscall(5): the number, six arguments, and two registers.
fn parse(line: &str) -> Option<BlockedCall> {
    let mut fields = line.split_ascii_whitespace();
    let number = fields.next()?.parse().ok()?;
    let mut args = [0; 6];
    for arg in &mut args {
        *arg = u64::from_str_radix(fields.next()?.trim_start_matches("0x"), 16).ok()?;
    }
    Some(BlockedCall { number, args })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_has_a_number_and_arguments() {
        let line = "7 0x7f00 0x2 0xffffffff 0x0 0x8 0x1 0x7ffc 0x7f9d\n";
        let expected = BlockedCall { number: 7, args: [0x7f00, 2, 0xffff_ffff, 0, 8, 1] };
        assert_eq!(parse(line), Some(expected));
        // Outside of a system call there are only the registers.
        for line in ["running\n", "-1 0x7ffc 0x7f9d\n", ""] {
            assert_eq!(parse(line), None, "{line}");
        }
    }
}
