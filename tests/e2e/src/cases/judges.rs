//! Enclaves before other people's judges: Fortanix's sgxs-tools measure, sign and load, and what they say is what the
//! software processor must find. Every enclave here has another shape.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;

use super::{LONG, SHORT, Verdict, trial};
use crate::process::{self, Outcome};
use crate::stage::{Link, Stage, User};

/// Enclaves that `enclave_kit` lays out, threads in each, and what they are signed with.
const LAYOUTS: [(&str, u32, &[&str]); 8] = [
    ("plain:1", 1, &[]),
    ("threads", 8, &[]),
    ("mixed", 1, &["--isvprodid", "7", "--isvsvn", "9"]),
    ("large", 1, &[]),
    ("rights", 1, &["--swdefined", "0x1234", "--date", "20240229"]),
    ("roomy:3000", 1, &[]),
    (
        "plain:2",
        1,
        &["--attributes", "0x4/0x2", "--isvextprodid", "0x0102030405060708", "--isvprodid", "258"],
    ),
    ("plain:3", 1, &["--attributes", "0x6/0x0", "--xfrm", "0x7/0x0", "--miscselect", "1/0"]),
];

/// The EPC of these tests: the largest enclave here needs paging.
const EPC: &str = "8M";

pub(super) fn trials(stage: &Arc<Stage>) -> Vec<Trial> {
    let mut trials = Vec::new();
    for (number, (layout, threads, options)) in LAYOUTS.into_iter().enumerate() {
        let name = format!("judges/layout {layout} {}", options.join(" "));
        trials.push(trial(stage, name.trim_end().to_owned(), move |stage| {
            judge_layout(stage, number, layout, threads, options)
        }));
    }
    for pages in ["0", "1", "500"] {
        let name = format!("judges/the kernel's test enclave with a heap of {pages} pages");
        trials.push(trial(stage, name, move |stage| judge_selftest(stage, pages)));
    }
    for user in stage.users() {
        let name = format!("judges/sgx-detect finds what it looks for, as {}", user.name());
        trials.push(trial(stage, name, move |stage| detect(stage, user)));
        let name = format!("judges/a signature with any byte changed is refused, as {}", user.name());
        trials.push(trial(stage, name, move |stage| flips(stage, user)));
    }
    trials.push(trial(stage, "judges/the example enclave".to_owned(), judge_example));
    trials
}

fn no_tools() -> Verdict {
    Verdict::Skipped("sgxs-tools are not there: cargo xtask tools".to_owned())
}

fn no_selftests() -> Verdict {
    Verdict::Skipped("needs the kernel selftests' enclave: cargo xtask selftests".to_owned())
}

/// Runs a command that has to succeed.
fn demand(command: &mut Command) -> Result<Outcome> {
    let outcome = process::run(command, b"", LONG)?;
    ensure!(outcome.end() == (Some(0), None), "{command:?}: {}", outcome.describe());
    Ok(outcome)
}

/// Lets `sgxs-sign` measure and sign a stream; returns the signature's file and MRENCLAVE.
fn signed_by_tools(
    stage: &Stage,
    tool: &PathBuf,
    stream: &PathBuf,
    options: &[&str],
) -> Result<(PathBuf, String)> {
    let signature = stream.with_extension("sig");
    let mut sign = stage.command(stage.best_user(), tool);
    sign.arg("--key").arg(stage.key()).args(options).arg(stream).arg(&signature);
    let outcome = demand(&mut sign)?;
    let text = outcome.text();
    let hash = text.split("ENCLAVEHASH: ").nth(1).and_then(|rest| rest.split(' ').next());
    let hash = hash.with_context(|| format!("sgxs-sign did not say what it measured: {text}"))?;
    ensure!(!text.contains("WARNING"), "sgxs-sign: {text}");
    stage.open_to_all(&signature)?;
    Ok((signature, hash.to_owned()))
}

/// Writes a stream by one of our programs.
fn stream(stage: &Stage, name: &str, command: impl FnOnce(&PathBuf) -> Command) -> Result<PathBuf> {
    let file = stage.home(stage.best_user()).join(format!("{name}.sgxs"));
    demand(&mut command(&file))?;
    stage.open_to_all(&file)?;
    Ok(file)
}

fn kit(stage: &Stage) -> PathBuf {
    stage.program("enclave_kit", Link::Dynamic).to_owned()
}

fn judge_layout(
    stage: &Stage,
    number: usize,
    layout: &str,
    threads: u32,
    options: &[&str],
) -> Result<Verdict> {
    let (Some(sign), Some(load)) = (stage.sgxs_tool("sgxs-sign"), stage.sgxs_tool("sgxs-load")) else {
        return Ok(no_tools());
    };
    let user = stage.best_user();
    let file = stream(stage, &format!("layout-{number}"), |file| {
        let mut command = stage.command(user, kit(stage));
        command.args(["stream", layout]).arg(file);
        command
    })?;
    let (signature, measurement) = signed_by_tools(stage, &sign, &file, options)?;
    // EINIT accepts it, and the enclave's own report says the same.
    let mut ours = stage.run(user, &["--epc", EPC], kit(stage));
    ours.arg("load").arg(&file).arg(&signature).args(["enter", "report"]);
    let text = demand(&mut ours)?.text();
    ensure!(
        text.contains(&format!("entered {threads}\n"))
            && text.contains(&format!("MRENCLAVE {measurement}\n"))
            && text.contains("MRSIGNER is the key's\n")
            && text.ends_with("done\n"),
        "sgxs-sign measured {measurement}:\n{text}"
    );
    for (option, shown) in [
        ("--isvsvn", "product 7, version 9\n"),
        ("--isvextprodid", "attributes 0x85,"),
        ("--isvextprodid", "extended product 08070605040302010000000000000000\n"),
        ("--xfrm", "attributes 0x7, XFRM 0x7, MISC 0x1,"),
    ] {
        ensure!(!options.contains(&option) || text.contains(shown), "{option}: not {shown:?} in\n{text}");
    }
    // And so does somebody else's loader, which enters by ENCLU itself.
    let theirs = demand(stage.run(user, &["--epc", EPC], load).arg(&file).arg(&signature))?;
    ensure!(theirs.text() == "Got EEXIT\n", "sgxs-load: {}", theirs.describe());
    // A signature for another enclave is none for this one.
    let other = stream(stage, &format!("other-{number}"), |file| {
        let mut command = stage.command(user, kit(stage));
        command.args(["stream", "plain:77"]).arg(file);
        command
    })?;
    let mut wrong = stage.run(user, &["--epc", EPC], kit(stage));
    let wrong = process::run(wrong.arg("load").arg(&other).arg(&signature), b"", SHORT)?;
    ensure!(
        wrong.end() == (Some(4), None) && wrong.text() == "init: Operation not permitted\n",
        "another enclave with this signature: {}",
        wrong.describe()
    );
    Ok(Verdict::Passed)
}

fn judge_selftest(stage: &Stage, pages: &str) -> Result<Verdict> {
    let (Some(sign), Some(load)) = (stage.sgxs_tool("sgxs-sign"), stage.sgxs_tool("sgxs-load")) else {
        return Ok(no_tools());
    };
    let Some(directory) = stage.selftests() else { return Ok(no_selftests()) };
    let user = stage.best_user();
    let (elf, worker) = (directory.join("test_encl.elf"), stage.program("enclave_worker", Link::Dynamic));
    let file = stream(stage, &format!("selftest-{pages}"), |file| {
        let mut command = stage.command(user, worker);
        command.arg("stream").arg(&elf).arg(file).arg(pages);
        command
    })?;
    let (signature, measurement) = signed_by_tools(stage, &sign, &file, &[])?;
    let measured =
        demand(stage.command(user, worker).arg("measure").arg(&elf).arg(stage.key()).arg(pages))?.text();
    ensure!(measured.trim() == measurement, "sgxs-sign measured {measurement}, enclave_worker {measured}");
    let mut ours = stage.run(user, &["--epc", EPC], kit(stage));
    let loaded = demand(ours.arg("load").arg(&file).arg(&signature))?.text();
    ensure!(loaded == "loaded\ndone\n", "{loaded}");
    // The enclave reads a request from where RDI points to, which that loader leaves to chance: it leaves the
    // enclave in one way or the other.
    let theirs = demand(stage.run(user, &["--epc", EPC], load).arg(&file).arg(&signature))?;
    ensure!(theirs.text().starts_with("Got "), "sgxs-load: {}", theirs.describe());
    Ok(Verdict::Passed)
}

fn judge_example(stage: &Stage) -> Result<Verdict> {
    let (Some(sign), Some(load)) = (stage.sgxs_tool("sgxs-sign"), stage.sgxs_tool("sgxs-load")) else {
        return Ok(no_tools());
    };
    let Some(example) = stage.example() else {
        return Ok(Verdict::Skipped("the example program is not built".to_owned()));
    };
    let user = stage.best_user();
    let file = stream(stage, "example", |file| {
        let mut command = stage.command(user, &example);
        command.arg("stream").arg(file);
        command
    })?;
    // The example's own signature demands DEBUG too.
    let (signature, measurement) = signed_by_tools(stage, &sign, &file, &["--attributes", "0x6/0x0"])?;
    let told = demand(stage.run(user, &[], &example).arg("identity"))?.text();
    ensure!(
        told.starts_with(&format!("MRENCLAVE {measurement}\n")),
        "sgxs-sign measured {measurement}, the enclave's report says {told}"
    );
    let mut ours = stage.run(user, &["--epc", EPC], kit(stage));
    let loaded = demand(ours.arg("load").arg(&file).arg(&signature))?.text();
    ensure!(loaded == "loaded\ndone\n", "{loaded}");
    let theirs = demand(stage.run(user, &["--epc", EPC], load).arg(&file).arg(&signature))?;
    ensure!(theirs.text().starts_with("Got "), "sgxs-load: {}", theirs.describe());
    Ok(Verdict::Passed)
}

/// Every byte of the signature by `sgxs-sign`, changed in three ways: what is signed, the modulus, the signature,
/// Q1 and Q2, and what is reserved. Linux's errno each time, and the unchanged one is accepted after all of them.
fn flips(stage: &Stage, user: User) -> Result<Verdict> {
    let Some(sign) = stage.sgxs_tool("sgxs-sign") else { return Ok(no_tools()) };
    let file = stream(stage, &format!("flips-{}", user.name()), |file| {
        let mut command = stage.command(stage.best_user(), kit(stage));
        command.args(["stream", "plain:4"]).arg(file);
        command
    })?;
    let (signature, _) = signed_by_tools(stage, &sign, &file, &[])?;
    let mut command = stage.run(user, &[], kit(stage));
    let outcome = demand(command.arg("load").arg(&file).arg(&signature).arg("flips"))?;
    let expected = format!("refused {}\nloaded\ndone\n", 1808 * 3);
    ensure!(outcome.text() == expected, "expected\n{expected}--- got {}", outcome.describe());
    Ok(Verdict::Passed)
}

/// The tool with which people find out whether a machine can do SGX. What belongs to Intel's platform software
/// (AESM) is not there, and need not be: the processor has flexible launch control.
fn detect(stage: &Stage, user: User) -> Result<Verdict> {
    let Some(tool) = stage.sgxs_tool("sgx-detect") else { return Ok(no_tools()) };
    let outcome = process::run(stage.run(user, &[], tool).arg("--verbose"), b"", LONG)?;
    let text = outcome.text();
    for line in [
        "yes SGX instruction set",
        "yes CPU support",
        "yes CPU configuration",
        "yes Enclave attributes",
        "yes Enclave Page Cache",
        "yes SGX2",
        "yes KSS",
        "yes Flexible launch control",
        "yes Able to launch production mode enclave",
        "yes SGX kernel device (/dev/sgx_enclave)",
        "yes Able to launch enclaves",
        "yes Debug mode",
        "yes Production mode",
        "yes Production mode (Intel whitelisted)",
        "You're all set to start running SGX programs!",
    ] {
        ensure!(text.contains(line), "sgx-detect does not say {line:?}: {}", outcome.describe());
    }
    Ok(Verdict::Passed)
}
