//! Numbered slots of one size in a file without a name, for evicted pages.
//!
//! Room is reserved on the disk before a slot is handed out, so a full disk is noticed while the page is still
//! in the EPC. Lock order: as for [`Slab`](crate::kernel::slab::Slab).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use usgx_sys::{Errno, process};

use crate::kernel::slab::SLOT_SIZE;

/// Slots reserved at a time.
const CHUNK_SLOTS: u64 = 256;
const CHUNK_SIZE: u64 = CHUNK_SLOTS * SLOT_SIZE as u64;

/// A slot in use. It can be read and written without the books of the file.
#[derive(Debug)]
pub(crate) struct FileSlot {
    file: Arc<File>,
    offset: u64,
}

impl FileSlot {
    /// Writes the slot.
    pub(crate) fn write(&self, bytes: &[u8; SLOT_SIZE]) -> std::io::Result<()> {
        self.file.write_all_at(bytes, self.offset)
    }

    /// Reads the slot.
    pub(crate) fn read(&self, bytes: &mut [u8; SLOT_SIZE]) -> std::io::Result<()> {
        self.file.read_exact_at(bytes, self.offset)
    }
}

/// The slots.
#[derive(Debug)]
pub(crate) struct SwapFile {
    file: Arc<File>,
    free: Vec<u64>,
    reserved_slots: u64,
    used: u64,
}

impl SwapFile {
    /// Makes a swap file in a directory.
    pub(crate) fn create(directory: &Path) -> std::io::Result<Self> {
        let file = match process::open_unnamed(directory) {
            Ok(file) => file,
            // A file system without unnamed files: take the name away at once.
            Err(Errno::OPNOTSUPP | Errno::ISDIR) => {
                let path = unused_name(directory);
                let file = File::options().read(true).write(true).create_new(true).open(&path)?;
                std::fs::remove_file(&path)?;
                file
            }
            Err(error) => return Err(error.into()),
        };
        Ok(Self { file: Arc::new(file), free: Vec::new(), reserved_slots: 0, used: 0 })
    }

    /// Takes a slot with disk space behind it.
    pub(crate) fn take(&mut self) -> Result<u64, Errno> {
        if self.free.is_empty() {
            process::reserve_space(&self.file, self.reserved_slots * SLOT_SIZE as u64, CHUNK_SIZE)?;
            self.free.extend((self.reserved_slots..self.reserved_slots + CHUNK_SLOTS).rev());
            self.reserved_slots += CHUNK_SLOTS;
        }
        let slot = self.free.pop().ok_or(Errno::NOSPC)?;
        self.used += 1;
        Ok(slot)
    }

    /// A slot in use.
    pub(crate) fn slot(&self, slot: u64) -> FileSlot {
        FileSlot { file: Arc::clone(&self.file), offset: slot * SLOT_SIZE as u64 }
    }

    /// Frees a slot. Disk space is given back when none is in use: usually the end of an enclave.
    pub(crate) fn free(&mut self, slot: u64) {
        self.free.push(slot);
        self.used -= 1;
        if self.used == 0 {
            self.free.clear();
            self.reserved_slots = 0;
            // If it fails, the space is used again all the same.
            let _ = self.file.set_len(0);
        }
    }

    /// Bytes of disk space in use.
    pub(crate) fn size(&self) -> u64 {
        self.reserved_slots * SLOT_SIZE as u64
    }
}

fn unused_name(directory: &Path) -> PathBuf {
    let mut random = [0; 8];
    process::random(&mut random);
    directory.join(format!("usgx-swap-{:016x}", u64::from_ne_bytes(random)))
}
