//! Processes by a descriptor, which never comes to mean another process, as a number can.

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The process behind a pidfd, as this process numbers it; `None` if `fd` is no pidfd, if the process has ended, or
/// if it cannot be seen from here.
pub fn process_behind(fd: impl AsFd) -> Option<u32> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd())).ok()?;
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse::<i64>().ok()?;
    // 0: not in this PID namespace; -1: ended.
    u32::try_from(pid).ok().filter(|pid| *pid != 0)
}

/// A process that may have ended, but is no other.
#[derive(Debug)]
pub struct ProcessHandle(OwnedFd);

impl ProcessHandle {
    /// Takes hold of the process that has the number `pid` now.
    ///
    /// # Errors
    /// [`Errno::SRCH`] if there is none; whatever else `pidfd_open` says.
    pub fn open(pid: u32) -> Result<Self, Errno> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
        pidfd_open(pid, PidfdFlags::empty()).map(Self)
    }

    /// Asks the process to end: SIGTERM.
    ///
    /// # Errors
    /// [`Errno::PERM`] for somebody else's process; [`Errno::SRCH`] if it has ended.
    pub fn terminate(&self) -> Result<(), Errno> {
        pidfd_send_signal(&self.0, Signal::TERM)
    }

    /// Ends the process: SIGKILL.
    ///
    /// # Errors
    /// As [`terminate`](Self::terminate).
    pub fn kill(&self) -> Result<(), Errno> {
        pidfd_send_signal(&self.0, Signal::KILL)
    }
}

impl AsFd for ProcessHandle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_ended_once() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().expect("sleep exists");
        let handle = ProcessHandle::open(child.id()).expect("it lives");
        handle.terminate().expect("it is ours");
        assert!(!child.wait().expect("it ends").success());
        assert_eq!(handle.kill(), Err(Errno::SRCH));
        assert!(matches!(ProcessHandle::open(0), Err(Errno::SRCH)));
    }

    #[test]
    fn a_descriptor_names_its_process() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().expect("sleep exists");
        let handle = ProcessHandle::open(child.id()).expect("it lives");
        assert_eq!(process_behind(&handle), Some(child.id()));
        handle.kill().expect("it is ours");
        child.wait().expect("it ends");
        assert_eq!(process_behind(&handle), None);
        assert_eq!(process_behind(std::io::stdin()), None);
    }
}
