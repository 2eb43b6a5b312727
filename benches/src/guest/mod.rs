//! The program that is measured: an ordinary SGX program, which knows nothing of usgx.
//!
//! The benchmark starts itself with `--guest` under `usgx run`. What the program does it is told on standard input,
//! a line for each step; it answers each with the nanoseconds that the step took, or with what went wrong.
//! `image` is the enclave that it loads, `raw` has the device, the vDSO and the instruction.

mod heap;
pub(crate) mod image;
mod raw;

use std::collections::HashMap;
use std::io::{BufRead as _, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use self::image::{Image, SIGSTRUCT_SIZE};
use self::raw::Enclave;
use crate::raw::thread_time;

/// What the program has: sources of pages, and enclaves, by name.
#[derive(Default)]
struct Program {
    prepared: HashMap<String, Prepared>,
    enclaves: HashMap<String, Enclave>,
}

/// An enclave's image in memory, and its signature.
struct Prepared {
    image: Image,
    source: raw::Source,
    sigstruct: [u8; SIGSTRUCT_SIZE],
}

/// Does what standard input says, until it ends.
pub(crate) fn run() -> Result<()> {
    let mut program = Program::default();
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        match program.step(&line.split(' ').collect::<Vec<_>>()) {
            Ok(time) => writeln!(out, "{}", time.as_nanos())?,
            Err(error) => writeln!(out, "{line}: {error:#}")?,
        }
        out.flush()?;
    }
    Ok(())
}

impl Program {
    fn step(&mut self, words: &[&str]) -> Result<Duration> {
        let number = |text: &str| text.parse::<usize>().with_context(|| format!("{text} is no number"));
        match *words {
            ["prepare", name, pages, measured, heap, sigstruct] => {
                let (data_pages, heap_pages) = (number(pages)?, number(heap)?);
                let image = Image { data_pages, measured: measured == "true", heap_pages };
                let sigstruct = std::fs::read(Path::new(sigstruct))?;
                let sigstruct = sigstruct.try_into().ok().context("a SIGSTRUCT has 1808 bytes")?;
                let source = raw::Source::new(&image)?;
                self.prepared.insert(name.to_owned(), Prepared { image, source, sigstruct });
                Ok(Duration::ZERO)
            }
            ["load", name] => {
                let prepared = self.prepared.get(name).context("not prepared")?;
                let range = raw::Range::reserve(prepared.image.size())?;
                let start = Instant::now();
                let enclave = Enclave::load(range, &prepared.image, &prepared.source, &prepared.sigstruct)?;
                let time = start.elapsed();
                self.enclaves.insert(name.to_owned(), enclave);
                Ok(time)
            }
            ["close", name] => timed(|| self.enclaves.remove(name).map(drop).context("not loaded")),
            ["ecalls", name, times] => {
                let (enclave, times) = (self.enclave(name)?, number(times)?);
                let start = thread_time()?;
                (0..times).try_for_each(|_| enclave.touch(0, 0))?;
                Ok(thread_time()? - start)
            }
            ["raw-ecalls", name, times] => {
                let (enclave, times) = (self.enclave(name)?, number(times)?);
                let start = thread_time()?;
                (0..times).for_each(|_| enclave.enter_by_instruction());
                Ok(thread_time()? - start)
            }
            ["touch", name, first, count] => {
                let (enclave, first, count) = (self.enclave(name)?, number(first)?, number(count)?);
                ensure!(first + count <= enclave.data_pages(), "there are no so many pages");
                timed(|| enclave.touch(first, count))
            }
            ["grow", name, count] => {
                let (enclave, count) = (self.enclave(name)?, number(count)?);
                timed(|| heap::grow(enclave, count))
            }
            ["shrink", name, count, chunk] => {
                let (enclave, count, chunk) = (self.enclave(name)?, number(count)?, number(chunk)?);
                timed(|| heap::shrink(enclave, count, chunk))
            }
            // A page after the other, with a pause after each `chunk`, for the reclaimer to keep up.
            ["stroll", name, first, count, chunk, micros] => {
                let enclave = self.enclave(name)?;
                let (first, count, chunk) = (number(first)?, number(count)?, number(chunk)?.max(1));
                let pause = Duration::from_micros(number(micros)? as u64);
                let pages = enclave.data_pages();
                timed(|| {
                    for at in (first..first + count).step_by(chunk) {
                        enclave.touch(at % pages, chunk.min(pages - at % pages))?;
                        std::thread::sleep(pause);
                    }
                    Ok(())
                })
            }
            _ => bail!("not a step"),
        }
    }

    fn enclave(&self, name: &str) -> Result<&Enclave> {
        self.enclaves.get(name).context("not loaded")
    }
}

fn timed(f: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let start = Instant::now();
    f()?;
    Ok(start.elapsed())
}
