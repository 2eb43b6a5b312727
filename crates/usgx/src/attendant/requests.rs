//! Messages of the run's processes, from bytes to meaning.
//!
//! Any process of the run can write anything; a message that makes no sense is dropped, and the descriptor
//! that came with it is closed, which its sender sees.

use std::fs;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use anyhow::Result;
use usgx_sys::attendant;
use usgx_sys::ptrace::Tid;
use usgx_wire::boot::{
    EXEC_AWAITED, EXEC_BEGIN, EXEC_FAILED, EXEC_INHERIT, EXEC_TRACED, EXIT_NOTICE, ExecAnswer, ExecRequest,
};

use crate::inject::Legacy;

/// A socket on which one answer is awaited.
#[derive(Debug)]
pub(super) struct Reply(OwnedFd);

impl Reply {
    /// Sends the answer: 0, or a negative errno.
    pub(super) fn answer(self, status: i32) {
        self.send(&ExecAnswer { status, reserved: 0, entry: 0, blocked: 0 });
    }

    /// Sends the answer to [`Event::ExecInherit`].
    pub(super) fn answer_start(self, start: Result<Start, i32>) {
        match start {
            Ok(Start { entry, blocked }) => {
                self.send(&ExecAnswer { status: 0, reserved: 0, entry, blocked });
            }
            Err(status) => self.answer(status),
        }
    }

    fn send(&self, answer: &ExecAnswer) {
        let head = [answer.status.to_le_bytes(), answer.reserved.to_le_bytes()].concat();
        let bytes = [&head[..], &answer.entry.to_le_bytes(), &answer.blocked.to_le_bytes()].concat();
        // A sender that has died meanwhile needs none.
        let _ = attendant::send_short(self.0.as_fd(), &bytes);
    }
}

/// How a new image that its tracer holds is to be started.
#[derive(Clone, Copy, Debug)]
pub(super) struct Start {
    /// Where.
    pub(super) entry: u64,
    /// Signals that are blocked beside those of the kernel's mask.
    pub(super) blocked: u64,
}

/// A process that its tracer asks about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Traced {
    /// The tracer, of which the kernel vouches.
    pub(super) tracer: Tid,
    /// The process, as the tracer numbers it.
    pub(super) pid: Tid,
}

/// What a process asks.
#[derive(Debug)]
pub(super) enum Event {
    /// Nothing, just now.
    None,
    /// The last process of the run has gone.
    HangUp,
    /// Something that makes no sense.
    Malformed,
    /// The thread is about to call `execve`. `None`: there is no such thread.
    ExecBegin(Option<Tid>, Legacy, Reply),
    /// Its `execve` has failed.
    ExecFailed(Option<Tid>, Reply),
    /// Does the process wait for a runtime?
    ExecAwaited(Traced, Reply),
    /// The process has a new image, that would start with these RIP and RSP, and room for its runtime.
    ExecInherit(Traced, [u64; 2], Reply),
    /// The run's first process is about to end.
    ExitNotice(Reply),
}

/// Takes the next message.
///
/// # Errors
///
/// If the socket itself fails.
pub(super) fn next(socket: BorrowedFd<'_>) -> Result<Event> {
    let mut bytes = [0; size_of::<ExecRequest>() + 1];
    let Some(letter) = attendant::receive_letter(socket, &mut bytes)? else { return Ok(Event::None) };
    if letter.length == 0 && letter.descriptor.is_none() {
        // Processes do not send empty messages; one that did would only cut its own run off.
        return Ok(Event::HangUp);
    }
    let (Some(request), Some(sender), Some(reply)) =
        (parse(&bytes[..letter.length]), letter.sender, letter.descriptor)
    else {
        return Ok(Event::Malformed);
    };
    let reply = Reply(reply);
    Ok(match request.kind {
        EXEC_BEGIN | EXEC_TRACED => {
            let legacy =
                Legacy { blocked: u64::from(request.blocked), trace_me: request.kind == EXEC_TRACED };
            Event::ExecBegin(true_thread(sender, &request), legacy, reply)
        }
        EXEC_AWAITED | EXEC_INHERIT => {
            let Ok(pid) = Tid::try_from(request.tid) else { return Ok(Event::Malformed) };
            let traced = Traced { tracer: sender, pid };
            match request.kind {
                EXEC_AWAITED => Event::ExecAwaited(traced, reply),
                _ => Event::ExecInherit(traced, [request.rip, request.rsp], reply),
            }
        }
        EXEC_FAILED => Event::ExecFailed(true_thread(sender, &request), reply),
        EXIT_NOTICE => Event::ExitNotice(reply),
        _ => Event::Malformed,
    })
}

fn parse(bytes: &[u8]) -> Option<ExecRequest> {
    let bytes: &[u8; size_of::<ExecRequest>()] = bytes.try_into().ok()?;
    let field = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let long = |at: usize| u64::from(field(at)) | u64::from(field(at + 4)) << 32;
    Some(ExecRequest {
        kind: field(0),
        pid: field(4),
        tid: field(8),
        blocked: field(12),
        rip: long(16),
        rsp: long(24),
    })
}

/// The thread as this process numbers it: in another PID namespace it sees itself under other numbers.
fn true_thread(sender: Tid, request: &ExecRequest) -> Option<Tid> {
    let own = Tid::try_from(request.tid).ok()?;
    let threads = format!("/proc/{sender}/task");
    if u32::try_from(sender).ok()? == request.pid && fs::exists(format!("{threads}/{own}")).unwrap_or(false) {
        return Some(own);
    }
    fs::read_dir(threads).ok()?.find_map(|entry| {
        let entry = entry.ok()?;
        let status = fs::read_to_string(entry.path().join("status")).ok()?;
        if innermost_tid(&status)? == own { entry.file_name().to_str()?.parse().ok() } else { None }
    })
}

/// The number that a thread has in its own PID namespace, from the text of its `status`.
fn innermost_tid(status: &str) -> Option<Tid> {
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_whitespace().last()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_in_their_own_layout() {
        let bytes: Vec<u8> = [2u32, 7, 8, 0, 5, 6, 9, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
        let request = parse(&bytes).expect("it has the right length");
        assert_eq!((request.kind, request.pid, request.tid), (EXEC_FAILED, 7, 8));
        assert_eq!((request.rip, request.rsp), (6 << 32 | 5, 9));
        assert!(parse(&bytes[1..]).is_none());
        assert!(parse(&[0; 33]).is_none());
    }

    #[test]
    fn a_thread_in_another_namespace_is_found() {
        assert_eq!(innermost_tid("Name:\tsh\nNSpid:\t4711\t12\nVmPeak: 1\n"), Some(12));
        assert_eq!(innermost_tid("Name:\tsh\n"), None);
        let pid = std::process::id();
        let own = Tid::try_from(pid).expect("process IDs fit");
        let request = ExecRequest { kind: EXEC_BEGIN, pid, tid: pid, blocked: 0, rip: 0, rsp: 0 };
        assert_eq!(true_thread(own, &request), Some(own));
        let request = ExecRequest { tid: 1, ..request };
        assert_eq!(true_thread(own, &request), None);
    }

    #[test]
    fn messages_without_sense_are_dropped() {
        let (ours, theirs) = attendant::seqpacket_pair().expect("socket pairs can be made");
        attendant::report_senders(ours.as_fd()).expect("senders are reported");
        attendant::send_short(theirs.as_fd(), &[9; 32]).expect("there is room");
        assert!(matches!(next(ours.as_fd()).expect("the socket works"), Event::Malformed));
        assert!(matches!(next(ours.as_fd()).expect("the socket works"), Event::None));
        drop(theirs);
        assert!(matches!(next(ours.as_fd()).expect("the socket works"), Event::HangUp));
    }
}
