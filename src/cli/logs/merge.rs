//! Several logs as one, in the order of time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;

use super::source::Source;

/// The next line of a source: its time, the index of the source, the line.
type Head = (u64, usize, Vec<u8>);

/// Calls `each` with the index of a source and a line, for all lines of all sources, until it returns false. Lines of
/// one source keep their order, whatever the clock said. Holds one line of each source.
pub(super) fn merge(
    sources: &mut [Source],
    takes_rest: bool,
    mut each: impl FnMut(usize, &[u8]) -> bool,
) -> io::Result<()> {
    let mut heads = BinaryHeap::new();
    let next = |sources: &mut [Source], index: usize| -> io::Result<Option<Reverse<Head>>> {
        let source = &mut sources[index];
        let mut line = source.next()?;
        if line.is_none() && takes_rest {
            line = source.take_rest();
        }
        Ok(line.map(|(at_ms, line)| Reverse((at_ms, index, line))))
    };
    for index in 0..sources.len() {
        heads.extend(next(sources, index)?);
    }
    while let Some(Reverse((_, index, line))) = heads.pop() {
        if !each(index, &line) {
            break;
        }
        heads.extend(next(sources, index)?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_in_the_order_of_time_and_those_of_one_log_in_their_own() {
        let root = tempfile::tempdir().unwrap();
        let line =
            |second: u64, service: &str| format!("2026-12-01T11:40:{second:02}.000Z {service} 1 2 out | x\n");
        let open = |name: &str, text: String| {
            let dir = root.path().join(name);
            std::fs::create_dir(&dir).unwrap();
            std::fs::write(dir.join("current"), text).unwrap();
            Source::open(name.parse().unwrap(), &dir).unwrap()
        };
        let a = format!("old\n{}and more\n{}{}", line(2, "a"), line(5, "a"), line(3, "a"));
        let b = format!("{}{}", line(1, "b"), line(4, "b"));
        let mut sources = [open("a", a), open("b", b), open("c", String::new())];
        let mut seen = Vec::new();
        merge(&mut sources, true, |index, line| {
            let time = String::from_utf8_lossy(line).get(17..19).unwrap_or("old").to_owned();
            seen.push((index, time));
            true
        })
        .unwrap();
        let seen: Vec<_> = seen.iter().map(|(index, time)| (*index, time.as_str())).collect();
        assert_eq!(seen, [(0, "old"), (1, "01"), (0, "02"), (0, "old"), (1, "04"), (0, "05"), (0, "03")]);
    }
}
