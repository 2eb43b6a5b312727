//! A worker: the machine's thread that serves one slot, and its line to the client's thread.
//!
//! It waits for the client's turn word, carries the call out, and replies. In between it may ask the client
//! something ([`Link::upcall`]); no lock is held then, as the client may take for ever. A worker ends when its
//! thread gives the slot back or the process is gone.
//!
//! Before it sleeps it may look at the turn word for a while, see [`usgx_sys::pace`].

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use usgx_epc::check_none_held;
use usgx_sys::pace::{Pace, Wait, look};
use usgx_wire::slot::{NR_WORDS, turn, upcall};

use crate::calls;
use crate::clients::{Client, ThreadSlot};
use crate::hardware::region::SlotMemory;
use crate::kernel::platform::HostPlatform;
use crate::system::Host;

/// Stack of a worker: calls are shallow, and their largest locals are a few pages.
const STACK_SIZE: usize = 256 * 1024;
/// How often at most a client is asked whether a signal is pending; a question is a round trip.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(1);
thread_local! {
    static CURRENT: RefCell<Option<Arc<Link>>> = const { RefCell::new(None) };
}

/// Runs `f` with the client's thread that the calling worker serves, if it is a worker.
pub(crate) fn with_current<R>(f: impl FnOnce(Option<&Link>) -> R) -> R {
    let link = CURRENT.with(|current| current.borrow().clone());
    f(link.as_deref())
}

/// A question whose answer is not needed yet.
#[derive(Clone, Copy, Debug)]
enum Ahead {
    None,
    /// It is the client's turn.
    Asked,
    /// `None` if it hung up instead of answering.
    Answered(Option<u64>),
}

/// A worker's line to its client's thread.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) host: Arc<Host>,
    pub(crate) client: Arc<Client>,
    pub(crate) slot: Arc<ThreadSlot>,
    /// When the client was last asked for signals, or the call began.
    asked: Mutex<Instant>,
    /// Only the worker takes this lock and the next, and only for a moment.
    pace: Mutex<Pace>,
    ahead: Mutex<Ahead>,
    /// The page of the last ENCLU operand that was not there, plus 1; 0 if none. See `calls::fault`.
    pub(crate) missing_operand: AtomicU64,
}

impl Link {
    pub(crate) fn memory(&self) -> SlotMemory<'_> {
        self.client.region().slot(self.slot.index())
    }

    /// Whether the client's thread is gone.
    pub(crate) fn is_over(&self) -> bool {
        self.client.is_closed() || self.slot.is_ending()
    }

    /// Asks the client something; `None` if it hung up instead of answering.
    pub(crate) fn upcall(&self, what: u64, args: [u64; 3]) -> Option<u64> {
        check_none_held::<HostPlatform>("a message to a client");
        self.await_ahead();
        self.ask(what, args);
        self.answer()
    }

    /// Asks the client something whose answer is not needed yet; see [`answer_ahead`](Self::answer_ahead).
    pub(crate) fn ask_ahead(&self, what: u64, args: [u64; 3]) {
        self.await_ahead();
        self.ask(what, args);
        *self.ahead.lock() = Ahead::Asked;
    }

    /// The answer to the last question that was asked ahead; waits for it. `None` if the client hung up.
    pub(crate) fn answer_ahead(&self) -> Option<u64> {
        check_none_held::<HostPlatform>("a message to a client");
        self.await_ahead();
        match std::mem::replace(&mut *self.ahead.lock(), Ahead::None) {
            Ahead::Answered(answer) => answer,
            Ahead::None | Ahead::Asked => None,
        }
    }

    /// Makes it the machine's turn again.
    fn await_ahead(&self) {
        let ahead = *self.ahead.lock();
        if matches!(ahead, Ahead::Asked) {
            *self.ahead.lock() = Ahead::Answered(self.answer());
        }
    }

    fn ask(&self, what: u64, args: [u64; 3]) {
        self.host.upcalls.fetch_add(1, Relaxed);
        let mut words = [0; NR_WORDS];
        words[0] = what;
        words[1..4].copy_from_slice(&args);
        self.hand_over(&words, turn::UPCALL);
    }

    fn answer(&self) -> Option<u64> {
        self.wait_for(turn::ANSWER, Wait::Answer).then(|| self.memory().load_words()[1])
    }

    /// Whether a signal is pending for the client's thread; asks now and then only.
    pub(crate) fn signal_pending(&self) -> bool {
        if self.is_over() {
            return true;
        }
        {
            let mut asked = self.asked.lock();
            if asked.elapsed() < SIGNAL_INTERVAL {
                return false;
            }
            *asked = Instant::now();
        }
        self.upcall(upcall::SIGNAL_PENDING, [0; 3]).is_none_or(|pending| pending != 0)
    }

    /// Gives the turn to the client's thread.
    fn hand_over(&self, words: &[u64; NR_WORDS], whose: u32) {
        let memory = self.memory();
        let looks = self.pace.lock().gives_turn(memory.processor());
        memory.hand_over(words, whose, looks);
    }

    /// Waits until it is the machine's turn with `wanted`; false if the client's thread is gone.
    fn wait_for(&self, wanted: u32, wait: Wait) -> bool {
        let memory = self.memory();
        let looks = self.pace.lock().own_looks(wait, memory.processor());
        look(looks, || memory.load_turn() == wanted);
        loop {
            if self.is_over() {
                return false;
            }
            let seen = memory.load_turn();
            if seen == wanted {
                self.pace.lock().takes_turn(wait);
                return true;
            }
            self.pace.lock().sleeps();
            memory.sleep(seen, || !self.is_over());
        }
    }

    fn run(&self) {
        let memory = self.memory();
        while self.wait_for(turn::CALL, Wait::Call) {
            // Copied once; what the client writes from here on is not looked at.
            let words = memory.load_words();
            self.host.calls.fetch_add(1, Relaxed);
            *self.asked.lock() = self.pace.lock().since();
            let Ok(reply) = catch_unwind(AssertUnwindSafe(|| calls::dispatch(self, &words))) else {
                tracing::error!(
                    pid = self.client.credentials().pid,
                    call = words[0],
                    "a call made the machine panic; its client is given up"
                );
                self.client.close();
                break;
            };
            self.await_ahead();
            self.count_as_reentered();
            self.hand_over(&reply, turn::REPLY);
        }
    }

    /// A thread that was in a call while inside an enclave counts as having come back just now.
    fn count_as_reentered(&self) {
        let Some((handle, _)) = self.memory().inside() else { return };
        if let Some(enclave) = self.client.enclave(handle) {
            self.slot.write_off(handle, enclave.view.epoch());
        }
    }
}

/// Starts the worker of a slot.
pub(crate) fn start(host: &Arc<Host>, client: &Arc<Client>, slot: &Arc<ThreadSlot>) -> std::io::Result<()> {
    let link = Arc::new(Link {
        host: Arc::clone(host),
        client: Arc::clone(client),
        slot: Arc::clone(slot),
        asked: Mutex::new(Instant::now()),
        pace: Mutex::new(Pace::new(&host.crowd)),
        ahead: Mutex::new(Ahead::None),
        missing_operand: AtomicU64::new(0),
    });
    let name = format!("slot-{}-{}", client.credentials().pid, slot.index());
    std::thread::Builder::new().name(name).stack_size(STACK_SIZE).spawn(move || {
        CURRENT.with(|current| *current.borrow_mut() = Some(Arc::clone(&link)));
        link.run();
        CURRENT.with(|current| current.borrow_mut().take());
        link.memory().close();
        link.client.remove_slot(link.slot.index());
    })?;
    Ok(())
}
