//! Tells the binary which commit and compiler it was built from.

use std::{env, process::Command};

fn main() {
    println!("cargo::rerun-if-changed=../.git/HEAD");
    println!("cargo::rerun-if-changed=../.git/refs/heads");
    let revision = output("git", &["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    let rustc = env::var("RUSTC").ok().and_then(|rustc| output(&rustc, &["--version"]));
    let version = rustc
        .as_deref()
        .and_then(|text| text.split(' ').nth(1))
        .unwrap_or("unknown");
    println!("cargo::rustc-env=MACVLAN_AGENT_REVISION={revision}");
    println!("cargo::rustc-env=MACVLAN_AGENT_RUSTC={version}");
}

/// What a command prints, if it succeeds.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
