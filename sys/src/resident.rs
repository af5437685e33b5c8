//! Reduces the resident memory of a process that idles for months.

use std::fs;
use std::io;
use std::ops::Range;
use std::ptr::NonNull;

use nix::sys::mman::{MmapAdvise, madvise};

use super::errno::ByNumber;

/// Unmaps pages of programs and libraries that startup needed. The kernel maps whole neighborhoods of a touched page,
/// so most of a small process is startup code. Pages that are needed later come back from the page cache. For a
/// single-threaded process.
pub fn release_start_up_pages() -> io::Result<()> {
    for range in untouched_file_mappings(&fs::read_to_string("/proc/self/smaps")?) {
        let Some(start) = NonNull::new(std::ptr::without_provenance_mut(range.start)) else { continue };
        // SAFETY: the mapping is a private, read-only file mapping without modified pages, as a relocation or a
        // breakpoint would create. So every page equals the file and returns unchanged.
        unsafe { madvise(start, range.len(), MmapAdvise::MADV_DONTNEED) }.by_number()?;
    }
    Ok(())
}

/// Private, read-only file mappings without modified pages.
fn untouched_file_mappings(smaps: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut candidate = None;
    for line in smaps.lines() {
        if let Some(header) = parse_header(line) {
            candidate = header;
        } else if line.strip_prefix("Anonymous:").is_some_and(|pages| pages.trim() == "0 kB") {
            found.extend(candidate.take());
        }
    }
    found
}

/// `start-end rights offset device inode path` begins the lines of a mapping; `Some(None)` means that it does not
/// qualify.
fn parse_header(line: &str) -> Option<Option<Range<usize>>> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let range = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
    let rights = fields.next()?;
    let path = fields.nth(3).unwrap_or_default();
    Some((matches!(rights, "r--p" | "r-xp") && path.starts_with('/')).then_some(range))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_clean_read_only_file_mappings_qualify() {
        let mapping = |at: &str, rights: &str, path: &str, anonymous: u32| {
            format!(
                "{at} {rights} 00000000 fe:00 42  {path}\nRss: 64 kB\nAnonymous: {anonymous:8} kB\nLocked: 0 kB\n"
            )
        };
        let smaps = [
            mapping("1000-2000", "r-xp", "/usr/bin/a program", 0),
            mapping("2000-3000", "r--p", "/usr/bin/relocated", 4),
            mapping("3000-5000", "r--p", "/usr/lib/libc.so.6", 0),
            mapping("5000-6000", "rw-p", "/usr/lib/libc.so.6", 0),
            mapping("6000-7000", "r--s", "/shared", 0),
            mapping("7000-8000", "r-xp", "[vdso]", 0),
            mapping("8000-9000", "r--p", "", 0),
        ];
        assert_eq!(untouched_file_mappings(&smaps.concat()), [0x1000..0x2000, 0x3000..0x5000]);
    }

    #[test]
    fn the_program_goes_on() {
        release_start_up_pages().unwrap();
        assert!(!untouched_file_mappings(&fs::read_to_string("/proc/self/smaps").unwrap()).is_empty());
    }
}
