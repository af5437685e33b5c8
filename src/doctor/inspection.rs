//! The examination of a program without starting it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::config::{Service, check_binary};
use crate::shim::exec::{self, Spec};
use crate::sys::attribute;
use crate::sys::own_process::is_administrator;
use crate::sys::process::{Signal, kill, reap_blocking};
use crate::sys::seccomp::Calls;

/// The kernel's list of the answers that a seccomp filter can give.
const ACTIONS: &str = "/proc/sys/kernel/seccomp/actions_avail";
/// Maximum length of the line in which a script names its interpreter.
const FIRST_LINE_MAX: usize = 256;

/// The findings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inspection {
    /// The kind of program.
    pub kind: String,
    /// Why it cannot be started; each a clause without a full stop.
    pub faults: Vec<String>,
    /// Why `inject` cannot work.
    pub no_inject: Option<String>,
    /// Other remarks.
    pub remarks: Vec<String>,
    /// Whether it gains privilege when it is executed.
    pub gains_privilege: bool,
}

/// Examines the program of a service without starting it.
pub fn inspect(service: &Service, binary: &Path) -> Inspection {
    let mut report = Inspection::default();
    if let Err(error) = check_binary(binary) {
        report.faults.push(format!("{error}; {}", error.hint()));
    }
    if !service.working_dir.is_dir() {
        report.faults.push(format!("its working directory {:?} is not a directory", service.working_dir));
    }
    match ProgramKind::of(binary) {
        Ok(kind) => inspect_kind(&mut report, &kind, service),
        Err(_) if !report.faults.is_empty() => {}
        // A user who may execute a file may not be allowed to read it.
        Err(error) => report.remarks.push(format!("it cannot be read ({error}), so its kind is unknown")),
    }
    inspect_privilege(&mut report, binary);
    if let Err(why) = can_inject() {
        report.no_inject.get_or_insert(why);
    }
    report
}

fn inspect_kind(report: &mut Inspection, kind: &ProgramKind, service: &Service) {
    report.kind = kind.to_string();
    match kind {
        ProgramKind::Elf { bits, machine, loader } => {
            inspect_elf(report, *bits, *machine);
            if let Some(loader) = loader.as_ref().filter(|loader| !loader.exists()) {
                report.faults.push(format!("its loader {loader:?} does not exist; was it built for another system?"));
            }
        }
        ProgramKind::Script { interpreter, argument } => {
            if let Err(error) = check_binary(interpreter) {
                report.faults.push(format!("the interpreter of its first line cannot be used: {error}"));
            } else if let Ok(ProgramKind::Elf { bits, machine, .. }) = ProgramKind::of(interpreter) {
                inspect_elf(report, bits, machine);
            }
            if let Some(name) = argument.as_ref().filter(|_| interpreter.ends_with("env"))
                && !name.starts_with('-')
                && !is_in_path(name, service)
            {
                report.faults.push(format!("its first line asks env for {name:?}, which is not in the PATH of the service"));
            }
        }
        ProgramKind::Other => report.faults.push(
            "it is neither an ELF file nor a script with #! in its first line, so the kernel does not execute it".to_owned(),
        ),
    }
}

fn inspect_elf(report: &mut Inspection, bits: u8, machine: u16) {
    match (bits, MACHINES.iter().find(|(number, _)| *number == machine)) {
        (32, _) => {
            report.no_inject =
                Some("it is a 32-bit program, whose system calls the filter does not check".to_owned());
        }
        (_, Some((_, name))) if *name == std::env::consts::ARCH => {}
        // An emulator that is not part of this project may execute it.
        (_, known) => report.remarks.push(format!(
            "it is made for {}, and this machine is {}",
            known.map_or("another machine", |(_, name)| *name),
            std::env::consts::ARCH
        )),
    }
}

/// The attributes that give a file more rights than its user has when it is executed.
pub(super) fn privileges(binary: &Path) -> Vec<&'static str> {
    let mode = fs::metadata(binary).map_or(0, |found| found.permissions().mode());
    let mut what = Vec::new();
    if mode & 0o4000 != 0 {
        what.push("the setuid bit");
    }
    if mode & 0o2010 == 0o2010 {
        what.push("the setgid bit");
    }
    if attribute::has(binary, c"security.capability") {
        what.push("file capabilities");
    }
    what
}

fn inspect_privilege(report: &mut Inspection, binary: &Path) {
    let what = privileges(binary);
    if what.is_empty() {
        return;
    }
    report.gains_privilege = true;
    let what = what.join(" and ");
    report.remarks.push(match has_admin() {
        true => format!(
            "it has {what}: with inject they count only as long as the daemon has CAP_SYS_ADMIN, as this process has"
        ),
        false => format!(
            "it has {what}, which inject takes away (no_new_privs), as this process has no CAP_SYS_ADMIN; use \
             listen-fds, or give CAP_SYS_ADMIN to the daemon"
        ),
    });
}

fn has_admin() -> bool {
    is_administrator()
}

/// Whether this process can put a filter on another one. Tried with a program that does nothing: this one.
fn can_inject() -> Result<(), String> {
    if fs::read_to_string(ACTIONS)
        .is_ok_and(|actions| !actions.split_whitespace().any(|it| it == "user_notif"))
    {
        return Err(format!(
            "this kernel cannot hand system calls to another program: no user_notif in {ACTIONS}"
        ));
    }
    let attempt = || -> io::Result<()> {
        let null = OwnedFd::from(File::options().write(true).open("/dev/null")?);
        let started = exec::start_by(
            Path::new("/proc/self/exe"),
            Spec {
                binary: std::env::current_exe()?,
                args: vec!["--version".into()],
                env: Vec::new(),
                working_dir: "/".into(),
                stdout: null.try_clone()?,
                stderr: null,
                listeners: Vec::new(),
                inherited: Vec::new(),
                seccomp: Some(Calls::Sockets),
                files_limit: None,
            },
        )?;
        let _ = kill(&started.pidfd, Signal::SIGKILL);
        reap_blocking(std::os::fd::AsFd::as_fd(&started.pidfd)).map(drop)
    };
    attempt().map_err(|error| error.to_string())
}

fn is_in_path(name: &str, service: &Service) -> bool {
    let path = service.env.get("PATH").map(Into::into).or_else(|| std::env::var_os("PATH"));
    std::env::split_paths(&path.unwrap_or_default())
        .any(|directory| check_binary(&directory.join(name)).is_ok())
}

/// The kind of a file, as the kernel sees it.
#[derive(Debug, PartialEq, Eq)]
enum ProgramKind {
    Elf { bits: u8, machine: u16, loader: Option<PathBuf> },
    Script { interpreter: PathBuf, argument: Option<String> },
    Other,
}

/// Values of `e_machine`, with their names in Rust.
const MACHINES: [(u16, &str); 7] = [
    (3, "x86"),
    (40, "arm"),
    (62, "x86_64"),
    (183, "aarch64"),
    (243, "riscv64"),
    (21, "powerpc64"),
    (22, "s390x"),
];

impl ProgramKind {
    fn of(path: &Path) -> io::Result<ProgramKind> {
        let mut head = Vec::new();
        // Linkers put the program headers directly after the header.
        File::open(path)?.take(8192).read_to_end(&mut head)?;
        Ok(ProgramKind::read(&head))
    }

    fn read(head: &[u8]) -> ProgramKind {
        if let Some(line) = head.strip_prefix(b"#!") {
            let line = &line[..line.len().min(FIRST_LINE_MAX)];
            let line = String::from_utf8_lossy(line.split(|byte| *byte == b'\n').next().unwrap_or_default());
            let mut words = line.split_whitespace();
            let interpreter = PathBuf::from(words.next().unwrap_or_default());
            return ProgramKind::Script { interpreter, argument: words.next().map(str::to_owned) };
        }
        let Some(rest) = head.strip_prefix(b"\x7fELF") else { return ProgramKind::Other };
        let bits = if rest.first() == Some(&1) { 32 } else { 64 };
        let little = rest.get(1) != Some(&2);
        let number = |at: usize, len: usize| {
            let bytes = head.get(at..at + len)?.iter();
            let bytes: Vec<u8> =
                if little { bytes.rev().copied().collect() } else { bytes.copied().collect() };
            Some(bytes.iter().fold(0_u64, |value, byte| value << 8 | u64::from(*byte)))
        };
        let machine = number(18, 2).unwrap_or(0) as u16;
        let loader = if bits == 64 { loader(head, &number) } else { None };
        ProgramKind::Elf { bits, machine, loader }
    }
}

/// `PT_INTERP` of a 64-bit ELF file.
fn loader(head: &[u8], number: &dyn Fn(usize, usize) -> Option<u64>) -> Option<PathBuf> {
    const PT_INTERP: u64 = 3;
    let (first, size, count) = (number(32, 8)? as usize, number(54, 2)? as usize, number(56, 2)? as usize);
    let at = (0..count).map(|index| first.saturating_add(index * size));
    let at = at.into_iter().find(|at| *at < head.len() && number(*at, 4) == Some(PT_INTERP))?;
    let (offset, len) = (number(at + 8, 8)? as usize, number(at + 32, 8)? as usize);
    let text = head.get(offset..offset.checked_add(len)?)?.strip_suffix(b"\0")?;
    Some(PathBuf::from(String::from_utf8_lossy(text).into_owned()))
}

impl std::fmt::Display for ProgramKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ProgramKind::Elf { bits, machine, loader } => {
                let name = MACHINES.iter().find(|(number, _)| number == machine);
                let name = name.map_or_else(|| format!("machine {machine}"), |(_, name)| (*name).to_owned());
                let linked = if loader.is_some() { "dynamic" } else { "without a loader" };
                write!(f, "an ELF program of {bits} bits for {name}, {linked}")
            }
            ProgramKind::Script { interpreter, argument } => {
                write!(f, "a script for {}", interpreter.display())?;
                argument.as_ref().map_or(Ok(()), |argument| write!(f, " {argument}"))
            }
            ProgramKind::Other => f.write_str("a file of an unknown kind"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds() {
        let script = |interpreter: &str, argument: Option<&str>| ProgramKind::Script {
            interpreter: interpreter.into(),
            argument: argument.map(str::to_owned),
        };
        assert_eq!(ProgramKind::read(b"#!/bin/sh\nexit"), script("/bin/sh", None));
        assert_eq!(ProgramKind::read(b"#! /usr/bin/env python3 \n"), script("/usr/bin/env", Some("python3")));
        assert_eq!(ProgramKind::read(b"echo"), ProgramKind::Other);
        let mut elf = b"\x7fELF\x01\x01".to_vec();
        elf.resize(18, 0);
        elf.extend([3, 0]);
        assert_eq!(ProgramKind::read(&elf), ProgramKind::Elf { bits: 32, machine: 3, loader: None });
        for len in 0..elf.len() {
            // A truncated header must not panic.
            let _ = ProgramKind::read(&elf[..len]);
        }
    }

    #[test]
    fn this_program_is_one_for_this_machine() {
        let kind = ProgramKind::of(&std::env::current_exe().unwrap()).unwrap();
        let ProgramKind::Elf { bits: 64, machine, loader } = kind else { panic!("{kind:?}") };
        assert!(MACHINES.contains(&(machine, std::env::consts::ARCH)));
        assert!(loader.is_none_or(|loader| loader.exists()));
    }

    #[test]
    fn a_32_bit_program_cannot_be_seen_by_inject() {
        let mut report = Inspection::default();
        inspect_elf(&mut report, 32, 3);
        assert!(report.no_inject.unwrap().contains("32-bit"));
    }
}
