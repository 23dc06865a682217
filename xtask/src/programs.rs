//! Our own programs: built by cargo, and found where cargo says it put them.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::host;

/// One program that cargo built.
#[derive(Debug)]
pub(crate) struct Built {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    /// Whether it runs tests, and is not the program itself.
    pub(crate) is_test: bool,
}

#[derive(Deserialize)]
struct Message {
    target: Option<Target>,
    profile: Option<Profile>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

/// Builds the programs named, as users get them; what cargo says for people goes to `words`.
pub(crate) fn release(names: &[&str], words: Stdio) -> Result<Vec<Built>> {
    by_profile("release", names, words)
}

/// The same by a profile of the workspace.
pub(crate) fn by_profile(profile: &str, names: &[&str], words: Stdio) -> Result<Vec<Built>> {
    let mut cargo = host::cargo("build --locked --profile")?;
    cargo.arg(profile);
    for name in names {
        let package = if *name == "macvlan-agent" {
            name
        } else {
            "macvlan-agent-tests"
        };
        cargo.args(["--package", package, "--bin", name]);
    }
    let mut built = build(&mut cargo, words)?;
    names.iter().map(|name| take(&mut built, name, false)).collect()
}

/// Builds every test binary of the tests package, and the programs of that package.
pub(crate) fn tests(words: Stdio) -> Result<Vec<Built>> {
    build(
        &mut host::cargo("test --no-run --package macvlan-agent-tests --lib --tests --locked")?,
        words,
    )
}

/// Takes one out of what was built.
pub(crate) fn take(built: &mut Vec<Built>, name: &str, is_test: bool) -> Result<Built> {
    let place = built
        .iter()
        .position(|program| program.name == name && program.is_test == is_test);
    let place = place.with_context(|| format!("cargo did not say where it put {name}"))?;
    Ok(built.swap_remove(place))
}

/// Reads from cargo what it built.
fn build(cargo: &mut Command, words: Stdio) -> Result<Vec<Built>> {
    let output = cargo
        .arg("--message-format=json-render-diagnostics")
        .stderr(words)
        .output()
        .context("start cargo")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{} failed\n{said}", host::words(cargo));
    let text = String::from_utf8(output.stdout).context("what cargo says it built")?;
    let messages = text.lines().map(serde_json::from_str::<Message>);
    let programs = messages.filter_map(|message| match message {
        Ok(Message {
            target: Some(target),
            profile: Some(profile),
            executable: Some(path),
        }) => Some(Ok(Built {
            name: target.name,
            path,
            is_test: profile.test,
        })),
        Ok(_) => None,
        Err(error) => Some(Err(error)),
    });
    programs.collect::<Result<_, _>>().context("what cargo says it built")
}
