//! A disk with a page cache, and its possible contents after a power cut.

use std::collections::HashSet;
use std::io;
use std::sync::Mutex;

use handoff::journal::Storage;
use handoff_protocol::record::Current;

/// Each of the last operations since a sync may have reached the disk or not. All older ones have reached it, or none.
const INDEPENDENT: usize = 6;

#[derive(Debug, Clone)]
enum Operation {
    Write(usize, Vec<u8>),
    Cut(usize),
}

/// How one operation fails.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// Fails with this error; a write fails after this many bytes.
    Error(io::ErrorKind, usize),
    /// A sync fails, and its data stays in the page cache and is never written.
    Dropped,
}

/// One file, in the page cache and on the disk.
#[derive(Debug, Clone, Default)]
struct File {
    cache: Vec<u8>,
    durable: Vec<u8>,
    dirty: Vec<Operation>,
}

/// The state at a power cut.
#[derive(Debug, Clone, Default)]
pub struct DiskState {
    /// The file that a process finds under the journal's name.
    file: File,
    /// Earlier files of that name that may still have it on the disk.
    before: Vec<File>,
    staged: Option<File>,
    /// The generation that was last acknowledged as durable.
    pub promised: Option<Current>,
}

/// The storage.
#[derive(Debug, Default)]
pub struct Disk {
    state: Mutex<DiskState>,
    moments: Mutex<Vec<DiskState>>,
    fault: Mutex<Option<(usize, Fault)>>,
    /// A deliberate defect: staged data does not wait for the disk.
    stages_in_haste: bool,
}

impl Disk {
    /// A disk with this content.
    pub fn of(bytes: &[u8]) -> Self {
        let file = File { cache: bytes.to_vec(), durable: bytes.to_vec(), dirty: Vec::new() };
        Self { state: Mutex::new(DiskState { file, ..DiskState::default() }), ..Self::default() }
    }

    /// An empty disk, optionally with the defect that staged data does not wait for the disk.
    pub fn hasty(stages_in_haste: bool) -> Self {
        Self { stages_in_haste, ..Self::default() }
    }

    /// Makes the operation with this number, counted from now, fail.
    pub fn fail(&self, number: usize, fault: Fault) {
        *self.fault.lock().unwrap() = Some((number, fault));
    }

    /// Whether a fault is still pending.
    pub fn is_faulty(&self) -> bool {
        self.fault.lock().unwrap().is_some()
    }

    /// From now on a power cut must not lose this generation.
    pub fn promise(&self, current: Option<Current>) {
        self.state.lock().unwrap().promised = current;
        self.remember();
    }

    /// The current state.
    pub fn state(&self) -> DiskState {
        self.state.lock().unwrap().clone()
    }

    /// The state after each operation.
    pub fn moments(&self) -> Vec<DiskState> {
        self.moments.lock().unwrap().clone()
    }

    fn remember(&self) {
        self.moments.lock().unwrap().push(self.state());
    }

    fn next_fault(&self) -> Option<Fault> {
        let mut fault = self.fault.lock().unwrap();
        match &mut *fault {
            Some((0, _)) => fault.take().map(|(_, fault)| fault),
            Some((number, _)) => {
                *number -= 1;
                None
            }
            None => None,
        }
    }

    fn change(&self, change: impl FnOnce(&mut DiskState)) {
        change(&mut self.state.lock().unwrap());
        self.remember();
    }

    /// Writes to a file of the state, up to the next fault.
    fn write(&self, file: fn(&mut DiskState) -> &mut File, offset: usize, bytes: &[u8]) -> io::Result<()> {
        let fault = self.next_fault();
        let written = match fault {
            Some(Fault::Error(_, written)) => written.min(bytes.len().saturating_sub(1)),
            Some(Fault::Dropped) => 0,
            None => bytes.len(),
        };
        if written > 0 {
            let operation = Operation::Write(offset, bytes[..written].to_vec());
            self.change(|state| file(state).carry_out(operation));
        }
        fault.map_or(Ok(()), |fault| Err(error(fault)))
    }

    /// Syncs a file of the state. Returns the next fault.
    fn flush(&self, file: fn(&mut DiskState) -> &mut File) -> io::Result<()> {
        let fault = self.next_fault();
        self.change(|state| match fault {
            None => file(state).flush(),
            Some(Fault::Dropped) => file(state).dirty.clear(),
            Some(Fault::Error(..)) => {}
        });
        fault.map_or(Ok(()), |fault| Err(error(fault)))
    }

    fn fails(&self) -> io::Result<()> {
        self.next_fault().map_or(Ok(()), |fault| Err(error(fault)))
    }
}

impl Storage for Disk {
    fn read_all(&self) -> io::Result<Vec<u8>> {
        self.fails()?;
        Ok(self.state().file.cache)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write(|state| &mut state.file, offset as usize, bytes)
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.fails()?;
        self.change(|state| state.file.carry_out(Operation::Cut(length as usize)));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.flush(|state| &mut state.file)?;
        if self.state().before.is_empty() {
            return Ok(());
        }
        self.fails()?;
        self.change(|state| state.before.clear());
        Ok(())
    }

    fn stage(&self, bytes: &[u8]) -> io::Result<()> {
        self.change(|state| state.staged = Some(File::default()));
        let staged: fn(&mut DiskState) -> &mut File = |state| state.staged.as_mut().expect("just made");
        let written = self.write(staged, 0, bytes).and_then(|()| match self.stages_in_haste {
            false => self.flush(staged),
            true => Ok(()),
        });
        if written.is_err() {
            self.discard();
        }
        written
    }

    fn swap(&self) -> io::Result<()> {
        self.fails()?;
        self.change(|state| {
            let staged = state.staged.take().expect("it was staged");
            state.before.push(std::mem::replace(&mut state.file, staged));
        });
        Ok(())
    }

    fn discard(&self) {
        self.change(|state| state.staged = None);
    }
}

impl DiskState {
    /// The content for a process.
    pub fn cache(&self) -> &[u8] {
        &self.file.cache
    }

    /// The guaranteed content on the disk, for each file that may have the journal's name.
    pub fn durable(&self) -> Vec<&[u8]> {
        self.files().map(|file| file.durable.as_slice()).collect()
    }

    /// All possible contents after a power cut, for each file that may have the journal's name.
    pub fn after_power_cut(&self) -> HashSet<Vec<u8>> {
        let mut found = HashSet::new();
        self.files().for_each(|file| file.after_power_cut(&mut found));
        found
    }

    fn files(&self) -> impl Iterator<Item = &File> {
        self.before.iter().chain([&self.file])
    }
}

impl File {
    fn carry_out(&mut self, operation: Operation) {
        apply(&mut self.cache, &operation);
        self.dirty.push(operation);
    }

    fn flush(&mut self) {
        for operation in std::mem::take(&mut self.dirty) {
            apply(&mut self.durable, &operation);
        }
    }

    /// Any of the operations since the last sync may be missing, and the last present one may be torn at any byte.
    /// Missing data before the end reads as zeros. Missing data at the end reads as zeros, or the file is shorter.
    fn after_power_cut(&self, found: &mut HashSet<Vec<u8>>) {
        let (older, newest) = self.dirty.split_at(self.dirty.len().saturating_sub(INDEPENDENT));
        for older in if older.is_empty() { vec![older] } else { vec![&[], older] } {
            for chosen in 0..1usize << newest.len() {
                let present = newest.iter().enumerate().filter(|(at, _)| chosen & (1 << at) != 0);
                let present: Vec<&Operation> = older.iter().chain(present.map(|(_, it)| it)).collect();
                self.torn(&present, found);
            }
        }
    }

    fn torn(&self, present: &[&Operation], found: &mut HashSet<Vec<u8>>) {
        let mut whole = self.durable.clone();
        let Some((last, before)) = present.split_last() else {
            return self.with_either_end(whole, found);
        };
        before.iter().for_each(|operation| apply(&mut whole, operation));
        match last {
            Operation::Cut(_) => {
                apply(&mut whole, last);
                self.with_either_end(whole, found);
            }
            Operation::Write(offset, bytes) => {
                let is_new = |at: &usize| whole.get(offset + at) != bytes.get(*at);
                for written in (0..bytes.len()).filter(is_new).chain([bytes.len()]) {
                    let mut image = whole.clone();
                    apply(&mut image, &Operation::Write(*offset, bytes[..written].to_vec()));
                    self.with_either_end(image, found);
                }
            }
        }
    }

    fn with_either_end(&self, mut image: Vec<u8>, found: &mut HashSet<Vec<u8>>) {
        found.insert(image.clone());
        if image.len() < self.cache.len() {
            image.resize(self.cache.len(), 0);
            found.insert(image);
        }
    }
}

fn apply(bytes: &mut Vec<u8>, operation: &Operation) {
    match operation {
        Operation::Write(offset, written) => {
            let end = offset + written.len();
            bytes.resize(bytes.len().max(end), 0);
            bytes[*offset..end].copy_from_slice(written);
        }
        Operation::Cut(length) => bytes.resize(*length, 0),
    }
}

fn error(fault: Fault) -> io::Error {
    match fault {
        Fault::Error(kind, _) => kind.into(),
        Fault::Dropped => io::Error::other("I/O error"),
    }
}
