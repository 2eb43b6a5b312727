//! The auxiliary vector of a program that has not started yet: it lies on its stack, above the environment.

use std::io;

use anyhow::{Result, ensure};

const AT_NULL: u64 = 0;
const AT_SYSINFO_EHDR: u64 = 33;
/// Words read at a time.
const CHUNK: usize = 512;
/// More arguments and environment than the kernel lets through (a quarter of the stack's limit, in words).
const MAX_WORDS: usize = 1 << 26;

/// The value of an entry, and where it lies.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Entry {
    pub(crate) address: u64,
    pub(crate) value: u64,
}

/// What is of interest on the stack.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct InitialStack {
    /// Where programs find the vDSO; `None` if the kernel has not given any.
    pub(crate) sysinfo_ehdr: Option<Entry>,
}

/// Words of another process's memory, in order.
struct Words<R> {
    read: R,
    next: u64,
    chunk: Vec<u8>,
    used: usize,
}

impl<R: FnMut(u64, &mut [u8]) -> io::Result<usize>> Words<R> {
    /// The next word and its address.
    fn take(&mut self) -> Result<Entry> {
        if self.used == self.chunk.len() {
            self.chunk.resize(CHUNK * 8, 0);
            let length = (self.read)(self.next, &mut self.chunk)?;
            ensure!(length >= 8, "the stack ends at {:#x}", self.next);
            self.chunk.truncate(length & !7);
            self.used = 0;
        }
        let mut word = [0; 8];
        word.copy_from_slice(&self.chunk[self.used..self.used + 8]);
        let address = self.next;
        self.used += 8;
        self.next += 8;
        Ok(Entry { address, value: u64::from_le_bytes(word) })
    }
}

/// Reads the stack of a program that is about to start with the stack pointer `rsp`.
///
/// # Errors
///
/// Those of `read`, and of a stack that is none.
pub(crate) fn read(read: impl FnMut(u64, &mut [u8]) -> io::Result<usize>, rsp: u64) -> Result<InitialStack> {
    let mut words = Words { read, next: rsp, chunk: Vec::new(), used: 0 };
    let nr_arguments = words.take()?.value;
    ensure!(nr_arguments <= MAX_WORDS as u64, "{nr_arguments} arguments");
    for _ in 0..nr_arguments {
        words.take()?;
    }
    ensure!(words.take()?.value == 0, "the arguments do not end");
    let mut nr_variables = 0;
    while words.take()?.value != 0 {
        nr_variables += 1;
        ensure!(nr_variables <= MAX_WORDS, "the environment does not end");
    }
    let mut found = InitialStack { sysinfo_ehdr: None };
    // The kernel writes some twenty entries.
    for _ in 0..256 {
        let (kind, entry) = (words.take()?.value, words.take()?);
        match kind {
            AT_NULL => return Ok(found),
            AT_SYSINFO_EHDR => found.sysinfo_ehdr = Some(entry),
            _ => {}
        }
    }
    anyhow::bail!("the auxiliary vector does not end")
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 0x7ffc_0000_0000;

    fn read_words(words: &[u64], rsp: u64) -> Result<InitialStack> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        read(
            |address, out| {
                let at = usize::try_from(address - BASE).expect("the sample is small");
                let length = out.len().min(bytes.len().saturating_sub(at));
                out[..length].copy_from_slice(&bytes[at..at + length]);
                Ok(length)
            },
            rsp,
        )
    }

    #[test]
    fn the_vdso_entry_is_found_behind_arguments_and_environment() {
        // Two arguments, three variables; entries 16, 33, 0.
        let words = [2, 11, 12, 0, 21, 22, 23, 0, 16, 99, 33, 0x7fff_1000, 0, 0];
        let stack = read_words(&words, BASE).expect("it is well formed");
        assert_eq!(stack.sysinfo_ehdr, Some(Entry { address: BASE + 11 * 8, value: 0x7fff_1000 }));
    }

    #[test]
    fn a_long_environment_crosses_chunks() {
        let mut words = vec![1, 7, 0];
        words.extend(vec![5; 3 * CHUNK]);
        words.extend([0, 33, 4, 0, 0]);
        let stack = read_words(&words, BASE).expect("it is well formed");
        assert_eq!(stack.sysinfo_ehdr.map(|entry| entry.value), Some(4));
    }

    #[test]
    fn a_kernel_without_vdso_and_a_torn_stack() {
        assert_eq!(read_words(&[0, 0, 0, 16, 1, 0, 0], BASE).expect("well formed").sysinfo_ehdr, None);
        assert!(read_words(&[0, 0, 1, 2, 3], BASE).is_err());
        assert!(read_words(&[u64::MAX, 0], BASE).is_err());
    }
}
