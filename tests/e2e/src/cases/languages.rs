//! Programs in other languages, whose runtimes live on signals, threads and child processes of their own: each does its
//! work, and starts a program with an enclave.

use std::sync::Arc;

use anyhow::Result;
use libtest_mimic::Trial;

use super::invisible::printed_by;
use super::{LONG, Verdict, expect, missing, trial};
use crate::process;
use crate::stage::{Link, Stage, User};

/// Runtimes of other languages: their own program, and one that starts a program with an enclave.
const LANGUAGES: [(&str, &str, &[&str]); 4] = [
    (
        "node",
        "/usr/bin/node",
        &[
            "-e",
            "console.log('at work');\n\
             const { execFileSync } = require('child_process');\n\
             process.stdout.write(execFileSync(process.argv[1], process.argv.slice(2)));",
        ],
    ),
    (
        "python",
        "/usr/bin/python3",
        &[
            "-c",
            "import subprocess, sys, threading\n\
             thread = threading.Thread(target=print, args=('at work',)); thread.start(); thread.join()\n\
             sys.stdout.write(subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, text=True).stdout)\n",
        ],
    ),
    ("java", "/usr/bin/java", &["Start.java"]),
    ("go", "/usr/bin/go", &["run", "start.go"]),
];

const JAVA: &str = r#"
public class Start {
    public static void main(String[] arguments) throws Exception {
        Thread thread = new Thread(() -> System.out.println("at work"));
        thread.start();
        thread.join();
        // The collector and the checks of null references live on signals.
        String nothing = null;
        for (int i = 0; i < 100000; i++) {
            try {
                nothing.length();
            } catch (NullPointerException expected) {
            }
        }
        System.exit(new ProcessBuilder(arguments).inheritIO().start().waitFor());
    }
}
"#;

const GO: &str = r#"
package main

import (
	"fmt"
	"os"
	"os/exec"
	"sync"
)

func main() {
	var group sync.WaitGroup
	for i := 0; i < 100; i++ {
		group.Add(1)
		go func() { defer group.Done(); defer func() { recover() }(); var p *int; *p = 1 }()
	}
	group.Wait()
	fmt.Println("at work")
	command := exec.Command(os.Args[1], os.Args[2:]...)
	command.Stdout = os.Stdout
	if command.Run() != nil {
		os.Exit(1)
	}
}
"#;

pub(super) fn trials(stage: &Arc<Stage>) -> Vec<Trial> {
    let mut trials = Vec::new();
    for user in stage.users() {
        for (name, program, arguments) in LANGUAGES {
            let title = format!("languages/{}/{name}", user.name());
            trials.push(trial(stage, title, move |stage| {
                missing(program).map_or_else(|| language(stage, user, name, program, arguments), Ok)
            }));
        }
    }
    trials
}

fn language(stage: &Stage, user: User, name: &str, program: &str, arguments: &[&str]) -> Result<Verdict> {
    let home = stage.home(user);
    for (file, text) in [("Start.java", JAVA), ("start.go", GO)] {
        std::fs::write(home.join(file), text)?;
    }
    let mut command = stage.run(user, &[], program);
    command.args(arguments).arg(stage.program("inside", Link::Dynamic)).arg(stage.key()).arg("closing");
    if name == "go" {
        command.env("GOCACHE", home.join("go-cache")).env("GO111MODULE", "off");
    }
    let output = format!("at work\n{}", printed_by("closing"));
    expect(&process::run(&mut command, b"", LONG)?, 0, &output)
}
