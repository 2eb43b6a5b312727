//! The pages that ADD_PAGES reads: the client copies them into its thread's data area, one half of it ahead.
//!
//! While the machine measures what is in one half, the client fills the other. Called by the caller of an ioctl, one
//! page after the other.

use std::cell::Cell;

use usgx_driver::SourceError;
use usgx_isa::{PAGE_SIZE, Page};
use usgx_wire::process::DATA_SIZE;
use usgx_wire::slot::upcall;

use crate::clients::worker::Link;

/// Bytes of a half of the data area.
const HALF: u64 = DATA_SIZE as u64 / 2;

/// Memory of the client, in a half of the data area.
#[derive(Clone, Copy, Debug, Default)]
struct Part {
    addr: u64,
    length: u64,
    /// Where it is in the data area: 0 or [`HALF`].
    at: u64,
}

impl Part {
    /// Where the page at `addr` is in the data area.
    fn find(self, addr: u64) -> Option<usize> {
        let offset = addr.checked_sub(self.addr)?;
        let fits = offset.checked_add(PAGE_SIZE as u64)? <= self.length;
        // The sum lies in the data area, if the page does.
        fits.then(|| (self.at + offset) as usize)
    }

    /// What follows it, in the other half; `remaining` bytes are wanted after it.
    fn next(self, remaining: u64) -> Option<Self> {
        let addr = self.addr.checked_add(self.length)?;
        let length = remaining.min(HALF);
        (length >= PAGE_SIZE as u64).then_some(Self { addr, length, at: HALF - self.at })
    }

    /// The question to the client.
    fn question(self) -> [u64; 3] {
        [self.addr, self.length, self.at]
    }

    /// The part with as much as the client says that it copied. That is clamped: it may say anything.
    fn answered(self, answer: Option<u64>) -> Result<Self, SourceError> {
        match answer {
            Some(upcall::NEVER_EXECUTABLE) => Err(SourceError::Access),
            copied => Ok(Self { length: copied.unwrap_or(0).min(self.length), ..self }),
        }
    }
}

/// What is in the data area, and on its way there.
#[derive(Debug, Default)]
pub(crate) struct SourcePages {
    here: Cell<Part>,
    ahead: Cell<Option<Part>>,
}

impl SourcePages {
    /// Copies the page at `addr`, from which on `remaining` bytes are wanted.
    pub(crate) fn read(
        &self,
        link: &Link,
        addr: u64,
        remaining: u64,
        out: &mut Page,
    ) -> Result<(), SourceError> {
        let offset = match self.here.get().find(addr) {
            Some(offset) => offset,
            None => self.fetch(link, addr, remaining)?.find(addr).ok_or(SourceError::Fault)?,
        };
        link.memory().read_data(offset, &mut out.0);
        Ok(())
    }

    /// The data area is about to be used for something else.
    pub(crate) fn forget(&self) {
        self.here.take();
        self.ahead.take();
    }

    /// Gets the part that begins at `addr`, and has the client go on with the next.
    fn fetch(&self, link: &Link, addr: u64, remaining: u64) -> Result<Part, SourceError> {
        self.here.take();
        let part = match self.ahead.take().filter(|part| part.addr == addr) {
            Some(part) => part.answered(link.answer_ahead())?,
            None => {
                let length = remaining.clamp(PAGE_SIZE as u64, HALF);
                let part = Part { addr, length, at: 0 };
                part.answered(link.upcall(upcall::SOURCE, part.question()))?
            }
        };
        self.here.set(part);
        // A part that is short ends with its mapping; what follows may be another, or nothing.
        if part.length == HALF
            && let Some(next) = part.next(remaining.saturating_sub(part.length))
        {
            link.ask_ahead(upcall::SOURCE, next.question());
            self.ahead.set(Some(next));
        }
        Ok(part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_take_turns_to_the_end() {
        let first = Part { addr: 0x10_0000, length: HALF, at: 0 };
        let second = first.next(HALF + 0x1000).expect("more is wanted");
        assert_eq!(second.question(), [0x10_0000 + HALF, HALF, HALF]);
        let third = second.next(0x1000).expect("a page is wanted");
        assert_eq!(third.question(), [0x10_0000 + 2 * HALF, 0x1000, 0]);
        assert!(third.next(0).is_none());
        assert!(Part { addr: u64::MAX - 0xfff, ..first }.next(HALF).is_none(), "past the last address");
    }

    #[test]
    fn a_page_is_found_where_it_was_copied() {
        let part = Part { addr: 0x8000, length: 0x3800, at: HALF };
        assert_eq!(part.find(0x8000), Some(HALF as usize));
        assert_eq!(part.find(0xa000), Some(HALF as usize + 0x2000));
        assert_eq!((part.find(0xb000), part.find(0x7000), part.find(u64::MAX)), (None, None, None));
        let answered = |answer| part.answered(answer).map(|part| part.length);
        assert_eq!(answered(Some(0x1000)), Ok(0x1000));
        assert_eq!(answered(Some(0x4000)), Ok(0x3800), "more than was asked for");
        assert_eq!(answered(None), Ok(0), "it hung up");
        assert_eq!(answered(Some(upcall::NEVER_EXECUTABLE)), Err(SourceError::Access));
    }
}
