//! The kernel's own vDSO, as bytes.

use std::io;

/// Copies the vDSO image out of this process's own memory; `None` if the kernel maps none.
///
/// # Errors
///
/// The errno of reading `/proc/self/maps` or the memory.
pub fn own_image() -> io::Result<Option<Vec<u8>>> {
    // SAFETY: `getauxval` reads the auxiliary vector and has no preconditions.
    let base = unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) };
    if base == 0 {
        return Ok(None);
    }
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let Some(length) = mapping_length(&maps, base) else { return Ok(None) };
    let mut image = vec![0; length];
    let pid = i32::try_from(std::process::id()).map_err(io::Error::other)?;
    let done = crate::ptrace::read_memory(pid, base, &mut image)?;
    image.truncate(done);
    Ok(Some(image))
}

/// The address in this process's auxiliary vector by which programs find the vDSO, 0 if none.
#[must_use]
pub fn own_address() -> u64 {
    // SAFETY: `getauxval` reads the auxiliary vector and has no preconditions.
    unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) }
}

/// The length of the mapping that starts at `base`, from the text of `/proc/PID/maps`.
fn mapping_length(maps: &str, base: u64) -> Option<usize> {
    maps.lines().find_map(|line| {
        let (start, rest) = line.split_once('-')?;
        let (end, _) = rest.split_once(' ')?;
        let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
        if start == base { usize::try_from(end - start).ok() } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_found_by_its_start() {
        let maps = "7ffd000-7fff000 r-xp 00000000 00:00 0 [vdso]\n8000000-8001000 rw-p 0 0:0 0\n";
        assert_eq!(mapping_length(maps, 0x7ff_d000), Some(0x2000));
        assert_eq!(mapping_length(maps, 0x7ff_e000), None);
    }

    #[test]
    fn the_own_image_is_an_elf_file() {
        if let Some(image) = own_image().expect("it can be read") {
            assert_eq!(&image[..4], b"\x7fELF");
        }
    }
}
