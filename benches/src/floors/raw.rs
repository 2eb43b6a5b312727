//! The floors that need two processes and the product's own channel: a fault that another process repairs, and
//! pages that are taken away from another process.
#![expect(unsafe_code, reason = "signal handlers and shared memory are unsafe by nature")]

use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicPtr, AtomicU64, fence};
use std::time::Duration;

use anyhow::{Result, ensure};
use usgx_sys::pace::{Crowd, Pace, Wait, look};
use usgx_wire::slot::{NR_WORDS, Slot, turn, waiter};

use crate::raw::{Child, PAGE_SIZE, View, on_alternate_stack, shared_page};

/// A slot as the product has it, with a partner process behind it: the same words, the same looking and sleeping, the
/// same number of bytes.
#[derive(Clone, Copy)]
struct Line(&'static Slot);

impl Line {
    fn new() -> Result<Self> {
        let page = shared_page()?;
        // SAFETY: a page of zeros that is never unmapped; a slot is aligned, smaller, and all atomics.
        Ok(Self(unsafe { &*page.as_ptr().cast::<Slot>() }))
    }

    /// The runtime's side: makes a call and waits for its result.
    fn call(self, words: &[u64; NR_WORDS]) -> [u64; NR_WORDS] {
        let slot = self.0;
        for (to, from) in slot.words.iter().zip(words) {
            to.store(*from, Relaxed);
        }
        // A number that the system call library reads where the runtime does.
        slot.processor.store(usgx_sys::process::processor() as u32, Relaxed);
        slot.turn.store(turn::CALL, Release);
        fence(SeqCst);
        if slot.waiting.load(Relaxed) & waiter::MACHINE != 0 {
            self.wake();
        }
        let looks = slot.looks.load(Relaxed);
        if !look(looks, || slot.turn.load(Acquire) == turn::REPLY) {
            slot.waiting.fetch_or(waiter::RUNTIME, SeqCst);
            loop {
                match slot.turn.load(SeqCst) {
                    turn::REPLY => break,
                    other => self.wait(other, 1),
                }
            }
            slot.waiting.fetch_and(!waiter::RUNTIME, SeqCst);
        }
        let result = std::array::from_fn(|index| slot.words[index].load(Relaxed));
        slot.turn.store(turn::IDLE, Release);
        result
    }

    /// The machine's side: answers calls until the slot is closed.
    fn serve(self, mut work: impl FnMut(&[u64; NR_WORDS])) {
        let slot = self.0;
        let mut pace = Pace::new(&Arc::new(Crowd::default()));
        loop {
            let looks = pace.own_looks(Wait::Call, slot.processor.load(Relaxed));
            look(looks, || slot.turn.load(Acquire) == turn::CALL);
            loop {
                let seen = slot.turn.load(Acquire);
                match seen {
                    turn::CALL => break,
                    turn::CLOSED => return,
                    _ => {}
                }
                pace.sleeps();
                slot.waiting.fetch_or(waiter::MACHINE, SeqCst);
                fence(SeqCst);
                if slot.turn.load(SeqCst) == seen {
                    self.wait(seen, 60);
                }
                slot.waiting.fetch_and(!waiter::MACHINE, SeqCst);
            }
            pace.takes_turn(Wait::Call);
            let words: [u64; NR_WORDS] = std::array::from_fn(|index| slot.words[index].load(Relaxed));
            work(&words);
            for (to, from) in slot.words.iter().zip(&words) {
                to.store(*from, Relaxed);
            }
            slot.looks.store(pace.gives_turn(slot.processor.load(Relaxed)), Relaxed);
            slot.turn.store(turn::REPLY, SeqCst);
            fence(SeqCst);
            if slot.waiting.load(SeqCst) & waiter::RUNTIME != 0 {
                self.wake();
            }
        }
    }

    fn close(self) {
        self.0.turn.store(turn::CLOSED, SeqCst);
        self.wake();
    }

    fn wake(self) {
        // SAFETY: the word lives for ever, and this operation uses no other pointer.
        unsafe { libc::syscall(libc::SYS_futex, self.0.turn.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
    }

    /// Sleeps while the turn is `seen`, with a bound as in the product, where either side may die.
    fn wait(self, seen: u32, seconds: i64) {
        let bound = libc::timespec { tv_sec: seconds, tv_nsec: 0 };
        // A wait may return early for any reason: the caller looks again.
        // SAFETY: the word lives for ever, the bound as long as the call.
        unsafe {
            libc::syscall(libc::SYS_futex, self.0.turn.as_ptr(), libc::FUTEX_WAIT, seen, &raw const bound)
        };
    }
}

/// A partner process that answers calls in a slot.
pub(crate) struct Partner {
    line: Line,
    // Waits for the child, so it goes after `drop` has told the child to end.
    _child: Child,
}

impl Partner {
    /// Starts it. It does `work` for each call.
    pub(crate) fn start(work: impl FnMut(&[u64; NR_WORDS])) -> Result<Self> {
        let line = Line::new()?;
        let child = Child::start(move || line.serve(work))?;
        Ok(Self { line, _child: child })
    }

    /// Asks and waits for the answer.
    pub(crate) fn round_trip(&self) {
        self.ask(0);
    }

    /// Asks for something that has a number, and waits for the answer.
    pub(crate) fn ask(&self, number: u64) {
        self.line.call(&asking(number));
    }
}

impl Drop for Partner {
    fn drop(&mut self) {
        self.line.close();
    }
}

/// The words of a question for something that has a number.
fn asking(number: u64) -> [u64; NR_WORDS] {
    let mut words = [0; NR_WORDS];
    words[2] = number;
    words
}

/// What a question is for.
pub(crate) fn asked(words: &[u64; NR_WORDS]) -> u64 {
    words[2]
}

/// The slot that the handler of SIGBUS asks.
static ASKED: AtomicPtr<Slot> = AtomicPtr::new(ptr::null_mut());
/// Faults that the handler had repaired.
static REPAIRED: AtomicU64 = AtomicU64::new(0);

/// Memory whose missing pages raise SIGBUS, a handler that asks a partner process for them, and the partner, which
/// puts them there.
pub(crate) struct FaultingMemory {
    view: View,
    partner: Partner,
}

impl FaultingMemory {
    /// Makes it. `page` is what the partner does for each page before it puts it there.
    pub(crate) fn new(pages: usize, mut page: impl FnMut() -> [u8; PAGE_SIZE]) -> Result<Self> {
        let view = View::new(pages)?;
        // The partner process has the userfaultfd too, and it stays this process's.
        let theirs = view.try_clone()?;
        let start = theirs.start();
        let partner = Partner::start(move |words| {
            let index = (asked(words) as usize - start) / PAGE_SIZE;
            // A refusal shows at the other side: the fault comes again, for ever.
            let _ = theirs.copy_in(index, &page());
        })?;
        on_alternate_stack(libc::SIGBUS, ask)?;
        Ok(Self { view, partner })
    }

    /// Touches pages; they are not there before.
    pub(crate) fn touch(&self, count: usize) -> Result<Duration> {
        ASKED.store(ptr::from_ref(self.partner.line.0).cast_mut(), SeqCst);
        let before = REPAIRED.load(Relaxed);
        let start = std::time::Instant::now();
        for index in 0..count {
            self.view.touch(index);
        }
        let time = start.elapsed();
        let repaired = REPAIRED.load(Relaxed) - before;
        ensure!(repaired == count as u64, "{repaired} faults for {count} pages");
        self.view.punch(0, count)?;
        Ok(time)
    }
}

extern "C" fn ask(_signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: set before the first fault, to a slot that lives for ever.
    let slot = unsafe { &*ASKED.load(SeqCst) };
    // SAFETY: the kernel's information on a SIGBUS has an address.
    let address = unsafe { (*info).si_addr() } as u64;
    Line(slot).call(&asking(address & !(PAGE_SIZE as u64 - 1)));
    REPAIRED.fetch_add(1, Relaxed);
}
