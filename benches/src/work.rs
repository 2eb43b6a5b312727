//! The product's paths that are measured.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::guest::image::{FIRST_DATA, Image, PAGE_SIZE};
use crate::measure::{Activity, Effort, Measured};
use crate::product::Machine;

/// Bytes that an enclave page may cost beside its contents.
const BYTES_BOUND: f64 = 200.0;

/// An empty ECALL: through the vDSO (`ecalls`), or by ENCLU (`raw-ecalls`).
pub(crate) fn ecall(step: &'static str) -> Result<Activity> {
    let machine = Machine::start(256)?;
    let mut program = machine.program()?;
    program.prepare("small", Image { data_pages: 8, measured: false, heap_pages: 0 })?;
    program.step("load small")?;
    Ok(Box::new(move |times| program.step(&format!("{step} small {times}"))))
}

/// A fault on an evicted page while the EPC has free pages.
pub(crate) fn fault(effort: Effort) -> Result<Activity> {
    let (epc, pages) = if effort.is_small { (256, 64) } else { (2048, 1024) };
    let machine = Machine::start(epc)?;
    let mut program = machine.program()?;
    program.prepare("measured", Image { data_pages: pages, measured: false, heap_pages: 0 })?;
    // Fills the EPC more than twice (pages that were used get a second chance), so that all others have to go, and is
    // gone before anything is measured.
    program.prepare("displacer", Image { data_pages: epc * 5 / 2, measured: false, heap_pages: 0 })?;
    program.step("load measured")?;
    Ok(Box::new(move |times| {
        let (mut loads, mut time) = (0, Duration::ZERO);
        while loads < u64::from(times) {
            program.step("load displacer")?;
            program.step("close displacer")?;
            // Reclaim that is still at work would unmap pages that the program touches.
            let has_room = |free| free > (epc / 2) as u64;
            machine.wait_until(|stats| {
                stats.enclaves == 1 && has_room(stats.epc_free_pages) && !stats.ksgxd_busy
            })?;
            // The page of code and the frame come back first.
            program.step("touch measured 0 0")?;
            let before = machine.stats()?;
            time += program.step(&format!("touch measured 0 {pages}"))?;
            let after = machine.stats()?;
            let (loaded, faults) = (after.loads - before.loads, after.epc_faults - before.epc_faults);
            // The last pages that a thread has faulted in are spared for a while.
            let nearly = |count: u64| count + 48 >= pages as u64;
            ensure!(nearly(loaded) && nearly(pages as u64 * 2 - faults), "{loaded} loads in {faults} faults");
            loads += loaded;
        }
        Ok(time.mul_f64(f64::from(times) / loads as f64))
    }))
}

/// Pages that the program touches between two pauses: a few, so that it seldom meets ksgxd at work.
const CHUNK: usize = 2;
/// Microseconds of such a pause.
const PAUSE: usize = 150;
/// How often a turn goes round the EPC. The reclaimer unmaps all pages in one go and then evicts them one by one, so
/// that a turn must have its share of both.
const LAPS: usize = 4;
/// How often to measure again when a thread of the program had to reclaim for itself.
const TRIES: u32 = 20;

/// Pages of the EPC while reclaim is measured.
pub(crate) const RECLAIM_EPC: usize = 2048;

/// The reclaim of a page by ksgxd: time of its thread for each page that it evicts. The program touches pages in turn,
/// and slowly enough.
pub(crate) fn reclaim(effort: Effort) -> Result<Activity> {
    let epc = if effort.is_small { 256 } else { RECLAIM_EPC };
    let pages = 4 * epc;
    let machine = Machine::start(epc)?;
    let mut program = machine.program()?;
    program.prepare("measured", Image { data_pages: pages, measured: false, heap_pages: 0 })?;
    program.step("load measured")?;
    let mut next = 0;
    Ok(Box::new(move |times| {
        let count = (times as usize).next_multiple_of(CHUNK).max(LAPS * epc);
        for _ in 0..TRIES {
            let (before, time_before) = (machine.stats()?, machine.thread_time("ksgxd")?);
            program.step(&format!("stroll measured {next} {count} {CHUNK} {PAUSE}"))?;
            next = (next + count) % pages;
            machine.wait_until(|stats| !stats.ksgxd_busy)?;
            let (after, time) = (machine.stats()?, machine.thread_time("ksgxd")? - time_before);
            let evictions = u32::try_from(after.evictions - before.evictions)?;
            // Whether it still runs can be seen on a busy computer as well.
            let is_alone = after.direct_reclaims == before.direct_reclaims || effort.is_small;
            if is_alone && evictions > 0 {
                return Ok(time.mul_f64(f64::from(times) / f64::from(evictions)));
            }
        }
        anyhow::bail!("ksgxd does not keep up with a slow program")
    }))
}

/// Loading an enclave of 256 MiB, all of it measured. A unit is the whole enclave.
pub(crate) fn load(pages: usize) -> Result<Activity> {
    let machine = Machine::start(pages + pages / 16 + 1024)?;
    let mut program = machine.program()?;
    program.prepare("large", Image { data_pages: pages - FIRST_DATA, measured: true, heap_pages: 0 })?;
    Ok(Box::new(move |times| {
        let mut time = Duration::ZERO;
        for _ in 0..times {
            time += program.step("load large")?;
            program.step("close large")?;
            machine.wait_until(|stats| stats.enclaves == 0)?;
        }
        Ok(time)
    }))
}

/// What an enclave page costs the machine beside its contents, while it is resident, mapped, or evicted and the machine
/// is idle.
pub(crate) fn memory(effort: Effort) -> Result<Vec<Measured>> {
    let data_pages = if effort.is_small { 4096 } else { 1 << 16 };
    // On small input the machine's own growth is larger than what is measured.
    let bound = if effort.is_small { 4096.0 } else { BYTES_BOUND };
    let image = Image { data_pages, measured: false, heap_pages: 0 };
    let (pages, contents) = (image.pages() as f64, (image.pages() * PAGE_SIZE) as f64);
    let mut results = Vec::new();
    let mut most_held = 0.0_f64;
    let mut note = |state: &str, before: u64, after: u64| {
        let grown = after as f64 - before as f64;
        most_held = most_held.max(grown);
        let name = format!("memory_per_page, {state} (bytes)");
        // Against one byte, so that the bound is in bytes.
        results.push(Measured::bytes(&name, (grown - contents) / pages, 1.0, bound));
    };
    let warm_up = Image { data_pages: 64, measured: false, heap_pages: 0 };
    // Of the machine with the small EPC, for both: what is kept for each page of the EPC is a cost of pages, too.
    let mut before = None;
    for (states, epc) in [(&["evicted"][..], 1024), (&["resident", "mapped"], image.pages() * 17 / 16 + 1024)]
    {
        let machine = Machine::start(epc)?;
        let mut program = machine.program()?;
        program.prepare("warm-up", warm_up)?;
        program.prepare("large", image)?;
        for step in ["load warm-up", "touch warm-up 0 64", "close warm-up"] {
            program.step(step)?;
        }
        machine.wait_until(|stats| stats.enclaves == 0)?;
        let before = match before {
            Some(before) => before,
            None => *before.insert(machine.idle_memory()?),
        };
        program.step("load large")?;
        for state in states {
            if *state == "mapped" {
                program.step(&format!("touch large 0 {data_pages}"))?;
            }
            let stats = machine.stats()?;
            let client = stats.clients.first().context("the program is not there")?;
            let (is_resident, is_mapped) =
                (client.evicted_pages == 0, stats.mapped_pages >= data_pages as u64);
            let wanted = (*state != "evicted", *state == "mapped");
            ensure!((is_resident, is_mapped) == wanted, "{state}: {stats:#?}");
            note(state, before, machine.idle_memory()?);
        }
    }
    let name = "contents held (bytes)";
    results.push(Measured::bytes(name, most_held, contents, 1.0 + bound / PAGE_SIZE as f64));
    Ok(results)
}
