//! How long each of two threads that take turns through a shared word looks at it before it sleeps.
//!
//! Waking a thread that sleeps on an idle processor takes longer than most calls do: some 2 µs on a computer, 20 µs on a
//! virtual machine. A thread that looks is not asleep, but it takes a processor, so it looks only where that is likely
//! to pay: the partner runs on another processor, its last turn of this kind took less than 50 µs, and there
//! are two processors for each pair that is at work ([`Crowd`]). A wrong guess costs those 50 µs, or one wake-up, and
//! corrects the next. The machine's workers decide for themselves and for their clients, which have no clock that is
//! theirs to use; the benchmarks' floors do the same.

use std::hint::spin_loop;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::process;

/// The longest turn of a partner that is worth looking for, and about how long a thread looks: two wake-ups of an idle
/// processor of a virtual machine.
const LONGEST: Duration = Duration::from_micros(50);

/// All pairs of a process that take turns.
#[derive(Debug)]
pub struct Crowd {
    /// Pairs that are at work: whose thread of this process is not asleep.
    awake: AtomicUsize,
    /// Most pairs that may look at a time.
    room: usize,
    /// How many looks take [`LONGEST`].
    looks: u32,
}

impl Default for Crowd {
    /// For as many processors as the process may use.
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self { awake: AtomicUsize::new(0), room: processors / 2, looks: calibrate() }
    }
}

/// How many looks take [`LONGEST`]. A pause takes 10 to 150 cycles, by the processor's model.
fn calibrate() -> u32 {
    const PAUSES: u32 = 100;
    let round = || {
        let start = Instant::now();
        (0..PAUSES).for_each(|_| spin_loop());
        start.elapsed()
    };
    // The shortest of a few: others may have been interrupted.
    let shortest = (0..5).map(|_| round()).min().unwrap_or(LONGEST).max(Duration::from_nanos(1));
    u32::try_from(LONGEST.as_nanos() * u128::from(PAUSES) / shortest.as_nanos()).unwrap_or(u32::MAX)
}

/// Looks at a turn word until `is_ours`, at most `times`.
pub fn look(times: u32, mut is_ours: impl FnMut() -> bool) -> bool {
    (0..times).any(|_| {
        spin_loop();
        is_ours()
    })
}

/// What a thread waits for: each kind of turn has a length of its own.
#[derive(Clone, Copy, Debug)]
pub enum Wait {
    /// The partner's next call, after whatever it does in between.
    Call = 0,
    /// The partner's answer to a question.
    Answer = 1,
}

/// One thread's sense of how long turns take: its partner's, and its own.
#[derive(Debug)]
pub struct Pace {
    crowd: Arc<Crowd>,
    /// When the turn last changed.
    since: Instant,
    /// Whether the partner's last turn was short, by [`Wait`].
    was_short: [bool; 2],
    is_awake: bool,
}

impl Pace {
    /// That of a thread that is at work from now on.
    #[must_use]
    pub fn new(crowd: &Arc<Crowd>) -> Self {
        crowd.awake.fetch_add(1, Relaxed);
        Self { crowd: Arc::clone(crowd), since: Instant::now(), was_short: [false; 2], is_awake: true }
    }

    /// How often the thread should look for its turn now, with a partner that was last seen on `processor`.
    #[must_use]
    pub fn own_looks(&self, wait: Wait, processor: u32) -> u32 {
        self.looks(self.was_short[wait as usize], processor)
    }

    /// It is the thread's turn, for which it has waited.
    pub fn takes_turn(&mut self, wait: Wait) {
        self.set_awake(true);
        self.was_short[wait as usize] = self.turn_ends();
    }

    /// The thread is about to give the turn to its partner, last seen on `processor`: how often the partner should look
    /// when it next waits, which will be as long as this time.
    pub fn gives_turn(&mut self, processor: u32) -> u32 {
        let was_short = self.turn_ends();
        self.looks(was_short, processor)
    }

    /// The thread goes to sleep until its turn.
    pub fn sleeps(&mut self) {
        self.set_awake(false);
    }

    /// When the turn last changed.
    #[must_use]
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Whether the turn that ends now was short.
    fn turn_ends(&mut self) -> bool {
        let (now, before) = (Instant::now(), self.since);
        self.since = now;
        now - before < LONGEST
    }

    fn looks(&self, was_short: bool, processor: u32) -> u32 {
        // In this order: the last takes longest.
        let pays = was_short
            && self.crowd.awake.load(Relaxed) <= self.crowd.room
            && process::processor() != processor as usize;
        if pays { self.crowd.looks } else { 0 }
    }

    fn set_awake(&mut self, is_awake: bool) {
        if is_awake == self.is_awake {
            return;
        }
        self.is_awake = is_awake;
        if is_awake {
            self.crowd.awake.fetch_add(1, Relaxed);
        } else {
            self.crowd.awake.fetch_sub(1, Relaxed);
        }
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        self.set_awake(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A processor on which no thread runs.
    const ELSEWHERE: u32 = u32::MAX;

    fn crowd(room: usize) -> Arc<Crowd> {
        Arc::new(Crowd { awake: AtomicUsize::new(0), room, looks: 7 })
    }

    /// A pace whose partner's last call came at once.
    fn quick(crowd: &Arc<Crowd>) -> Pace {
        let mut pace = Pace::new(crowd);
        pace.was_short[Wait::Call as usize] = true;
        pace
    }

    #[test]
    fn looking_pays_after_a_short_turn_only() {
        let mut pace = Pace::new(&crowd(1));
        assert_eq!(pace.own_looks(Wait::Call, ELSEWHERE), 0, "nothing is known");
        pace.since = Instant::now() + LONGEST;
        pace.takes_turn(Wait::Call);
        assert_eq!(pace.own_looks(Wait::Call, ELSEWHERE), 7);
        assert_eq!(pace.own_looks(Wait::Answer, ELSEWHERE), 0, "another kind of turn");
        std::thread::sleep(LONGEST);
        assert_eq!(pace.gives_turn(ELSEWHERE), 0, "this turn took long, and the partner's wait");
        std::thread::sleep(LONGEST);
        pace.takes_turn(Wait::Call);
        assert_eq!(pace.own_looks(Wait::Call, ELSEWHERE), 0);
    }

    #[test]
    fn nobody_looks_where_processors_are_few() {
        let crowd = crowd(1);
        let mut first = quick(&crowd);
        assert_eq!(first.own_looks(Wait::Call, ELSEWHERE), 7);
        let second = quick(&crowd);
        assert_eq!((first.own_looks(Wait::Call, ELSEWHERE), second.own_looks(Wait::Call, ELSEWHERE)), (0, 0));
        first.sleeps();
        first.sleeps();
        assert_eq!(second.own_looks(Wait::Call, ELSEWHERE), 7, "the first sleeps");
        drop((first, second));
        assert_eq!(crowd.awake.load(Relaxed), 0);
    }

    #[test]
    fn a_look_ends_with_the_turn_or_the_count() {
        let mut left = 5;
        let is_ours = || {
            left -= 1;
            left == 0
        };
        assert!(look(100, is_ours));
        assert!(!look(3, || false) && !look(0, || true));
        assert!(Crowd::default().looks > 0);
    }
}
