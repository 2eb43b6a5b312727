//! What the runtime asks `/proc`. Where it is not mounted, there is no answer.

use core::ffi::CStr;

use crate::arch::close;
use crate::arch::syscall::nr;
use crate::sys;

const O_CLOEXEC: u64 = 0o2000000;

/// A path below `/proc`, built piece by piece, with its terminating zero.
struct Path {
    bytes: [u8; 64],
    len: usize,
}

impl Path {
    fn new(start: &[u8]) -> Self {
        let mut new = Self { bytes: [0; 64], len: 0 };
        new.text(start);
        new
    }

    /// Appends text. All paths here are short: three parts of text and one number.
    fn text(&mut self, text: &[u8]) {
        self.bytes[self.len..self.len + text.len()].copy_from_slice(text);
        self.len += text.len();
    }

    fn number(&mut self, number: u32) {
        let mut digits = [0u8; 10];
        let (mut rest, mut at) = (number, digits.len());
        loop {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        self.text(&digits[at..]);
    }
}

/// The lines of a file below `/proc`, one after the other. Of a line that is longer than the buffer, its beginning.
pub struct Lines {
    fd: i32,
    bytes: [u8; 1024],
    /// Where the next line begins, and where what has been read ends.
    at: usize,
    len: usize,
    /// The rest of a long line comes first.
    is_rest: bool,
}

impl Lines {
    /// Opens a file.
    pub fn of(path: &CStr) -> Option<Self> {
        // SAFETY: the name ends with a zero.
        let fd = unsafe { sys!(nr::OPEN, path.as_ptr(), O_CLOEXEC) };
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
        Some(Self { fd, bytes: [0; 1024], at: 0, len: 0, is_rest: false })
    }

    /// The next line, without its end.
    pub fn next(&mut self) -> Option<&[u8]> {
        let range = loop {
            let rest = &self.bytes[self.at..self.len];
            if let Some(length) = rest.iter().position(|byte| *byte == b'\n') {
                let start = self.at;
                self.at += length + 1;
                if !core::mem::take(&mut self.is_rest) {
                    break start..start + length;
                }
            } else if self.at == 0 && self.len == self.bytes.len() {
                self.at = self.len;
                if !core::mem::replace(&mut self.is_rest, true) {
                    break 0..self.len;
                }
            } else {
                self.read_on()?;
            }
        };
        Some(&self.bytes[range])
    }

    /// Moves the unfinished line to the front, and reads what follows.
    fn read_on(&mut self) -> Option<()> {
        self.bytes.copy_within(self.at..self.len, 0);
        self.len -= self.at;
        self.at = 0;
        let room = &mut self.bytes[self.len..];
        // SAFETY: the kernel writes at most the room's length.
        let read = unsafe { sys!(nr::READ, self.fd, room.as_mut_ptr(), room.len()) };
        self.len += usize::try_from(read).ok().filter(|read| *read != 0)?;
        Some(())
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        close(self.fd);
    }
}

/// The path behind a descriptor of this process; its length, if it is shorter than the buffer.
pub fn path_of(fd: i32, into: &mut [u8; 64]) -> Option<usize> {
    let mut link = Path::new(b"/proc/self/fd/");
    link.number(u32::try_from(fd).ok()?);
    // SAFETY: the kernel reads the name, which ends with a zero, and writes at most the buffer's length.
    let len = unsafe { sys!(nr::READLINK, link.bytes.as_ptr(), into.as_mut_ptr(), into.len()) };
    (len > 0 && (len as usize) < into.len()).then_some(len as usize)
}

/// The process that a thread belongs to.
pub fn process_of(tid: u32) -> Option<u32> {
    let mut path = Path::new(b"/proc/");
    path.number(tid);
    path.text(b"/status");
    status_number(&path, b"Tgid:")
}

/// Whether somebody traces the calling thread.
pub fn is_traced() -> bool {
    status_number(&Path::new(b"/proc/thread-self/status"), b"TracerPid:").is_some_and(|tracer| tracer != 0)
}

/// A number among the first lines of a `status` file.
fn status_number(path: &Path, field: &[u8]) -> Option<u32> {
    // SAFETY: the name ends with a zero.
    let fd = unsafe { sys!(nr::OPEN, path.bytes.as_ptr(), O_CLOEXEC) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
    let mut text = [0u8; 512];
    // SAFETY: the kernel writes at most the buffer's length.
    let len = unsafe { sys!(nr::READ, fd, text.as_mut_ptr(), text.len()) };
    close(fd);
    let text = &text[..usize::try_from(len).ok()?];
    let line = text.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(field))?;
    decimal(line.trim_ascii())
}

/// Reads a number.
pub fn decimal(digits: &[u8]) -> Option<u32> {
    core::str::from_utf8(digits).ok()?.parse().ok()
}
