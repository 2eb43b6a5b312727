//! The descriptor numbers that the runtime keeps for itself in every process of a run.
//!
//! They are the top of what `select` and the usual limit of 1024 allow, where programs rarely come, and the
//! same in all processes: the seccomp filter knows them.

use anyhow::{Result, ensure};

/// How many numbers are reserved.
pub(crate) const COUNT: i32 = 16;
/// The usual soft limit: programs that raise it do not expect the numbers below to be special.
const USUAL_LIMIT: u64 = 1024;
/// A program needs a few numbers for itself.
const LEAST_FOR_PROGRAM: i32 = 16;

/// Chooses the first of the reserved numbers, below `limit`, so that none of them is in use.
///
/// # Errors
///
/// If there is no room.
pub(crate) fn choose(limit: u64, in_use: impl Fn(i32) -> bool) -> Result<i32> {
    let top = i32::try_from(limit.min(USUAL_LIMIT))?;
    ensure!(
        top >= COUNT + LEAST_FOR_PROGRAM,
        "the limit of open files is {limit}, and usgx needs {COUNT} of them for itself; \
         raise it with 'ulimit -n 64' or more"
    );
    let mut base = top - COUNT;
    // Down past whatever the program inherits there.
    while let Some(taken) = (base..base + COUNT).rev().find(|&fd| in_use(fd)) {
        base = taken - COUNT;
        ensure!(base >= LEAST_FOR_PROGRAM, "no {COUNT} free descriptor numbers in a row below {top}");
    }
    Ok(base)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_top_of_the_usual_range_is_taken() {
        assert_eq!(choose(1 << 20, |_| false).expect("there is room"), 1008);
        assert_eq!(choose(256, |_| false).expect("there is room"), 240);
        assert_eq!(choose(32, |_| false).expect("there is room"), 16);
    }

    #[test]
    fn inherited_descriptors_are_left_alone() {
        assert_eq!(choose(1024, |fd| fd == 1010).expect("there is room"), 994);
        assert_eq!(choose(1024, |fd| fd == 1010 || fd == 1000).expect("there is room"), 984);
        assert!(choose(64, |fd| fd % 8 == 0).is_err());
    }

    #[test]
    fn a_limit_that_is_too_small_is_named() {
        assert!(choose(20, |_| false).expect_err("too small").to_string().contains("ulimit -n 64"));
    }
}
