//! Where the processor's fuse keys come from: a file of this user's, or nowhere.

use std::fs::{DirBuilder, File};
use std::io::{Error, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use usgx_cpu::FuseKeys;
use usgx_sys::process::random;

/// The file in the state directory.
const FILE: &str = "fuses";

/// Loads the fuse keys from a directory, or makes them there. If that fails, says so and makes keys that are gone
/// with the machine.
pub(crate) fn load(directory: Option<&Path>) -> FuseKeys {
    let mut random = |bytes: &mut [u8]| random(bytes);
    let Some(directory) = directory else { return FuseKeys::generate(&mut random) };
    match load_or_create(directory, &mut random) {
        Ok(keys) => keys,
        Err(error) => {
            tracing::warn!(
                %error,
                directory = %directory.display(),
                "cannot keep the processor's keys: what enclaves seal now cannot be unsealed by the next machine"
            );
            FuseKeys::generate(&mut random)
        }
    }
}

fn load_or_create(directory: &Path, random: &mut dyn FnMut(&mut [u8])) -> Result<FuseKeys, Error> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let path = directory.join(FILE);
    if let Some(keys) = read(&path)? {
        return Ok(keys);
    }
    // Written under another name first, and linked: two machines that start together agree on the keys of one.
    let keys = FuseKeys::generate(random);
    let draft = directory.join(format!("{FILE}.{}", std::process::id()));
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    file.write_all(&keys.to_bytes())?;
    file.sync_all()?;
    let linked = std::fs::hard_link(&draft, &path);
    std::fs::remove_file(&draft)?;
    match linked {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        Err(_) => read(&path)?.ok_or_else(|| Error::from(ErrorKind::NotFound)),
        Ok(()) => Ok(keys),
    }
}

fn read(path: &Path) -> Result<Option<FuseKeys>, Error> {
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut stored = Vec::new();
    // One byte more than there should be, so that a longer file is noticed.
    file.take(FuseKeys::STORED as u64 + 1).read_to_end(&mut stored)?;
    FuseKeys::from_bytes(&stored).map(Some).map_err(|error| Error::new(ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn keys_are_kept_and_private() {
        let directory = std::env::temp_dir().join(format!("usgx-fuses-{}", std::process::id()));
        let first = load(Some(&directory));
        let second = load(Some(&directory));
        assert_eq!(first.to_bytes(), second.to_bytes());
        let mode = |path: &Path| std::fs::metadata(path).expect("exists").permissions().mode() & 0o777;
        assert_eq!(mode(&directory), 0o700);
        assert_eq!(mode(&directory.join(FILE)), 0o600);
        std::fs::write(directory.join(FILE), b"something else").expect("writable");
        assert_ne!(load(Some(&directory)).to_bytes(), first.to_bytes());
        std::fs::remove_dir_all(&directory).expect("ours");
        assert_ne!(load(None).to_bytes(), load(None).to_bytes());
    }
}
