//! Whether this machine can execute a file. Checked in advance, because a failure would cost an upgrade.

use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use object::elf::{self, FileHeader64};
use object::read::ReadCache;
use object::read::ReadRef;
use object::read::elf::{Dyn, FileHeader, ProgramHeader};
use object::{Endianness, FileKind};

use super::error::Error;
use crate::config::check_binary;

/// This machine's number in `e_machine`, and its name.
const MACHINES: [(elf::Machine, &str); 6] = [
    (elf::EM_X86_64, "x86_64"),
    (elf::EM_AARCH64, "aarch64"),
    (elf::EM_RISCV, "riscv64"),
    (elf::EM_PPC64, "powerpc64"),
    (elf::EM_S390, "s390x"),
    (elf::EM_LOONGARCH, "loongarch64"),
];

/// The length of the first line of a script that execve(2) reads.
const FIRST_LINE_MAX: u64 = 256;

/// External needs of a program.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct ProgramDependencies {
    /// Where it searches libraries relative to itself: `DT_RUNPATH` or `DT_RPATH` with `$ORIGIN`.
    pub(super) origin: Option<String>,
    /// Whether it is an ELF program rather than a script.
    pub(super) is_elf: bool,
}

/// Refuses a file that this machine's kernel would not execute: wrong architecture, truncated, no interpreter, plain
/// text. `given` is the path for messages; `search` is where `env` looks for a script's interpreter. Blocks.
pub(super) fn check(
    file: &Path,
    given: &Path,
    search: Option<&std::ffi::OsStr>,
) -> Result<ProgramDependencies, Error> {
    let opened = File::open(file).map_err(Error::io("open it", file))?;
    let mut start = Vec::new();
    (&opened).take(FIRST_LINE_MAX).read_to_end(&mut start).map_err(Error::io("read it", file))?;
    if start.starts_with(b"#!") {
        check_script(&start, given, search)?;
        return Ok(ProgramDependencies::default());
    }
    if !start.starts_with(b"\x7fELF") {
        let cause = match start.is_empty() {
            true => "it is empty",
            false => {
                "it is not a program: neither an ELF file, nor a script with #! in its first line, nor an archive"
            }
        };
        return Err(Error::refused(given, cause, "name the program itself; was the download an error page?"));
    }
    check_elf(&opened, given)
}

fn check_elf(file: &File, given: &Path) -> Result<ProgramDependencies, Error> {
    let size = file.metadata().map_err(Error::io("examine it", given))?.len();
    let cache = ReadCache::new(file);
    let cut_off = || Error::refused(given, "it is a damaged ELF file, or cut off", "fetch it again");
    let damaged = |_: object::Error| cut_off();
    let other = |what: String| {
        let cause = format!("it is made for {what}, and this machine is {}", std::env::consts::ARCH);
        Error::refused(given, cause, "get the build for this machine")
    };
    if FileKind::parse(&cache).map_err(damaged)? != FileKind::Elf64 {
        return Err(other("a machine of 32 bits".to_owned()));
    }
    let header = FileHeader64::<Endianness>::parse(&cache).map_err(damaged)?;
    let endian = header.endian().map_err(damaged)?;
    let machine = header.e_machine(endian);
    let known = MACHINES.iter().find(|(number, _)| *number == machine).map(|(_, name)| *name);
    let expected = if cfg!(target_endian = "little") { Endianness::Little } else { Endianness::Big };
    if known != Some(std::env::consts::ARCH) || endian != expected {
        return Err(other(known.unwrap_or("another machine").to_owned()));
    }
    if !matches!(header.e_type(endian), elf::ET_EXEC | elf::ET_DYN) {
        return Err(Error::refused(given, "it is an object file, not a program", "name the linked program"));
    }
    let headers = header.program_headers(endian, &cache).map_err(damaged)?;
    let is_whole = |header: &elf::ProgramHeader64<Endianness>| {
        header.p_type(endian) != elf::PT_LOAD
            || header.p_offset(endian).checked_add(header.p_filesz(endian)).is_some_and(|end| end <= size)
    };
    // Linkers write the section table at the end.
    let sections = u64::from(header.e_shnum(endian)) * u64::from(header.e_shentsize(endian));
    let has_end = header.e_shoff(endian).checked_add(sections).is_some_and(|end| end <= size);
    if !has_end
        || !headers.iter().all(is_whole)
        || !headers.iter().any(|it| it.p_type(endian) == elf::PT_LOAD)
    {
        return Err(cut_off());
    }
    for header in headers {
        if let Some(loader) = header.interpreter(endian, &cache).map_err(damaged)? {
            let loader = Path::new(std::ffi::OsStr::from_bytes(loader));
            check_binary(loader).map_err(|error| {
                let hint = "it was built for another system; a static build needs none";
                Error::refused(given, format!("its interpreter cannot be used: {error}"), hint)
            })?;
        }
    }
    Ok(ProgramDependencies { origin: origin(headers, endian, &cache), is_elf: true })
}

/// The JSON text of the package note in a program (systemd's package metadata for ELF files).
pub(super) fn package_note(file: &Path) -> Option<String> {
    const PACKAGING_METADATA: u32 = 0xcafe_1a7e;
    let opened = File::open(file).ok()?;
    let cache = ReadCache::new(&opened);
    let header = FileHeader64::<Endianness>::parse(&cache).ok()?;
    let endian = header.endian().ok()?;
    for header in header.program_headers(endian, &cache).ok()? {
        let Ok(Some(mut notes)) = header.notes(endian, &cache) else { continue };
        while let Ok(Some(note)) = notes.next() {
            if note.name() == b"FDO" && note.n_type(endian).0 == PACKAGING_METADATA {
                let text = String::from_utf8_lossy(note.desc());
                return Some(text.trim_end_matches('\0').to_owned());
            }
        }
    }
    None
}

/// The value of `DT_RUNPATH` or `DT_RPATH` if it contains `$ORIGIN` (ld.so(8)).
fn origin<'data, R: ReadRef<'data>>(
    headers: &[elf::ProgramHeader64<Endianness>],
    endian: Endianness,
    data: R,
) -> Option<String> {
    let entries = headers.iter().find_map(|header| header.dynamic(endian, data).ok().flatten())?;
    let value =
        |tag| entries.iter().find(|entry| entry.d_tag(endian) == tag).map(|entry| entry.d_val(endian));
    let (table, size) = (value(elf::DT_STRTAB)?, value(elf::DT_STRSZ)?);
    let strings =
        headers.iter().find_map(|header| header.data_range(endian, data, table, size).ok().flatten())?;
    [elf::DT_RUNPATH, elf::DT_RPATH].into_iter().find_map(|tag| {
        let text = strings.get(usize::try_from(value(tag)?).ok()?..)?;
        let text = String::from_utf8_lossy(text.split(|byte| *byte == 0).next()?).into_owned();
        (text.contains("$ORIGIN") || text.contains("${ORIGIN}")).then_some(text)
    })
}

fn check_script(start: &[u8], given: &Path, search: Option<&std::ffi::OsStr>) -> Result<(), Error> {
    let line = start[2..].split(|byte| *byte == b'\n').next().unwrap_or_default();
    if line.ends_with(b"\r") {
        let hint = "convert the file (sed -i 's/\\r$//')";
        return Err(Error::refused(given, "its #! line ends with a carriage return", hint));
    }
    let mut words = line.split(|byte| matches!(byte, b' ' | b'\t' | b'\r')).filter(|word| !word.is_empty());
    let path = |word: &[u8]| PathBuf::from(std::ffi::OsStr::from_bytes(word));
    let hint = "correct the first line of the script, or install the interpreter";
    let interpreter = words.next().map(path).unwrap_or_default();
    check_binary(&interpreter).map_err(|error| {
        let cause = format!("the interpreter of its first line cannot be used: {error}");
        Error::refused(given, cause, hint)
    })?;
    let named = words.next().filter(|word| interpreter.ends_with("env") && !word.starts_with(b"-")).map(path);
    let Some((named, search)) = named.zip(search) else { return Ok(()) };
    if named.components().count() > 1
        || std::env::split_paths(search).any(|directory| check_binary(&directory.join(&named)).is_ok())
    {
        return Ok(());
    }
    let cause = format!("its first line asks env for {}, which is not in the PATH", named.display());
    Err(Error::refused(given, cause, hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(content: &[u8]) -> Result<ProgramDependencies, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("program");
        std::fs::write(&path, content).unwrap();
        check(&path, Path::new("/given"), Some("/bin:/usr/bin".as_ref())).map_err(|error| error.to_string())
    }

    fn own() -> Vec<u8> {
        std::fs::read("/proc/self/exe").unwrap()
    }

    #[test]
    fn this_program_can_be_started() {
        assert_eq!(told(&own()), Ok(ProgramDependencies { origin: None, is_elf: true }));
    }

    #[test]
    fn what_cannot_be_started_is_told_apart() {
        let changed = |at: usize, byte: u8| {
            let mut content = own();
            content[at] = byte;
            content
        };
        assert!(told(b"").unwrap_err().contains("is empty"));
        assert!(told(b"<html>").unwrap_err().contains("is not a program"));
        assert!(told(b"\x7fELF").unwrap_err().contains("cut off"));
        assert!(told(&own()[..own().len() / 2]).unwrap_err().contains("cut off"));
        assert!(told(&own()[..4096]).unwrap_err().contains("cut off"));
        // e_ident[EI_CLASS], e_machine and e_type of elf(5).
        assert!(told(&changed(4, 1)).unwrap_err().contains("32 bits"));
        let other = if cfg!(target_arch = "aarch64") { 62 } else { 183 };
        assert!(told(&changed(18, other)).unwrap_err().contains("it is made for"));
        assert!(told(&changed(16, 1)).unwrap_err().contains("object file"));
    }

    #[test]
    fn an_interpreter_that_is_missing_is_told() {
        let mut content = own();
        let loader = b"/lib64/ld-linux-x86-64.so.2";
        if let Some(at) = content.windows(loader.len()).position(|window| window == loader) {
            content[at + 1] = b'n';
            assert!(told(&content).unwrap_err().contains("its interpreter cannot be used"));
        }
        assert_eq!(told(b"#!/bin/sh\n"), Ok(ProgramDependencies::default()));
        assert_eq!(told(b"#! /usr/bin/env sh\n"), Ok(ProgramDependencies::default()));
        assert!(told(b"#!/bin/sh\r\n").unwrap_err().contains("its #! line ends with a carriage return"));
        assert!(told(b"#!/usr/bin/env sh\r\n").unwrap_err().contains("carriage return"));
        assert!(told(b"#!/bin/nosuch -x\n").unwrap_err().contains("/bin/nosuch"));
        assert!(told(b"#!/usr/bin/env nosuch-interpreter\n").unwrap_err().contains("not in the PATH"));
        assert!(told(b"#!").unwrap_err().contains("interpreter of its first line"));
    }
}
