//! A disk with a page cache, and what a power cut may leave of it.

use std::collections::HashSet;
use std::io;
use std::sync::Mutex;

use handoff::journal::Storage;
use handoff_protocol::record::Current;

/// Of so many operations since the last sync, each may have reached the disk or not; older ones did all, or none.
const INDEPENDENT: usize = 6;

#[derive(Debug, Clone)]
enum Operation {
    Write(usize, Vec<u8>),
    Cut(usize),
}

/// How one operation fails.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// With this error, and for a write after this many bytes.
    Error(io::ErrorKind, usize),
    /// A sync that fails, and what it should have written is never tried again, but stays in the page cache.
    Dropped,
}

/// What a power cut meets.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// What a process reads.
    pub cache: Vec<u8>,
    /// What is on the disk for certain.
    pub durable: Vec<u8>,
    dirty: Vec<Operation>,
    /// The generation that was last told to be durable.
    pub promised: Option<Current>,
}

/// The storage.
#[derive(Debug, Default)]
pub struct Disk {
    state: Mutex<State>,
    moments: Mutex<Vec<State>>,
    fault: Mutex<Option<(usize, Fault)>>,
}

impl Disk {
    /// A disk that holds these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let state = State { cache: bytes.to_vec(), durable: bytes.to_vec(), ..State::default() };
        Self { state: Mutex::new(state), ..Self::default() }
    }

    /// Lets the operation with this number, from now on, fail; others succeed.
    pub fn fail(&self, number: usize, fault: Fault) {
        *self.fault.lock().unwrap() = Some((number, fault));
    }

    /// Whether a fault is still to come.
    pub fn is_faulty(&self) -> bool {
        self.fault.lock().unwrap().is_some()
    }

    /// From now on this must outlive a power cut.
    pub fn promise(&self, current: Option<Current>) {
        self.state.lock().unwrap().promised = current;
        self.remember();
    }

    /// How it is now.
    pub fn state(&self) -> State {
        self.state.lock().unwrap().clone()
    }

    /// How it was after each operation.
    pub fn moments(&self) -> Vec<State> {
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

    fn carry_out(&self, operation: Operation) {
        {
            let mut state = self.state.lock().unwrap();
            apply(&mut state.cache, &operation);
            state.dirty.push(operation);
        }
        self.remember();
    }
}

impl Storage for Disk {
    fn read_all(&self) -> io::Result<Vec<u8>> {
        match self.next_fault() {
            Some(fault) => Err(error(fault)),
            None => Ok(self.state().cache),
        }
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let fault = self.next_fault();
        let written = match fault {
            Some(Fault::Error(_, written)) => written.min(bytes.len().saturating_sub(1)),
            Some(Fault::Dropped) => 0,
            None => bytes.len(),
        };
        if written > 0 {
            self.carry_out(Operation::Write(offset as usize, bytes[..written].to_vec()));
        }
        fault.map_or(Ok(()), |fault| Err(error(fault)))
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        if let Some(fault) = self.next_fault() {
            return Err(error(fault));
        }
        self.carry_out(Operation::Cut(length as usize));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let fault = self.next_fault();
        {
            let mut state = self.state.lock().unwrap();
            match fault {
                None => {
                    for operation in std::mem::take(&mut state.dirty) {
                        apply(&mut state.durable, &operation);
                    }
                }
                Some(Fault::Dropped) => state.dirty.clear(),
                Some(Fault::Error(..)) => {}
            }
        }
        self.remember();
        fault.map_or(Ok(()), |fault| Err(error(fault)))
    }
}

impl State {
    /// Everything that the disk may hold after a power cut: of the operations since the last sync any may be missing,
    /// and the last one that is there may be torn at any byte. What is missing before the end reads as zeros; what is
    /// missing at the end too, or the file is shorter.
    pub fn after_power_cut(&self) -> HashSet<Vec<u8>> {
        let (older, newest) = self.dirty.split_at(self.dirty.len().saturating_sub(INDEPENDENT));
        let mut found = HashSet::new();
        for older in if older.is_empty() { vec![older] } else { vec![&[], older] } {
            for chosen in 0..1usize << newest.len() {
                let present = newest.iter().enumerate().filter(|(at, _)| chosen & (1 << at) != 0);
                let present: Vec<&Operation> = older.iter().chain(present.map(|(_, it)| it)).collect();
                self.torn(&present, &mut found);
            }
        }
        found
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
