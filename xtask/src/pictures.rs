//! Pictures of the dashboards: the live test keeps what a real Prometheus answers to each panel, Grafana's own components
//! draw it, and what they drew is made small.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::{apt, host, programs, suite};

/// What draws, and what makes small, and the package of Debian's that has it.
const TOOLS: [(&str, &str); 4] = [
    ("node", "nodejs"),
    ("npm", "npm"),
    ("chromium", "chromium"),
    ("pngquant", "pngquant"),
];

/// Bytes above which a picture is too large for a repository.
const LARGEST: u64 = 200 * 1000;

/// The live test, of the binary `dashboards`.
const TEST: &str = "every_query_gives_data_that_matches_what_was_sent";

/// Makes `docs/pictures` anew.
pub(crate) fn write() -> Result<()> {
    let painter = painter()?;
    let directory = tempfile::tempdir()?;
    let (data, drawn) = (directory.path().join("data"), directory.path().join("drawn"));
    fs::create_dir(&drawn)?;
    println!("keeping the answers of some minutes");
    keep_answers(&data)?;
    println!("drawing");
    draw(&painter, &data, &drawn)?;
    for picture in files(&drawn)? {
        keep(&picture)?;
    }
    Ok(())
}

/// Runs the test in which a real Prometheus scrapes a real agent in a busy lab.
fn keep_answers(data: &Path) -> Result<()> {
    let agent = programs::take(
        &mut programs::release(&["macvlan-agent"], Stdio::inherit())?,
        "macvlan-agent",
        false,
    )?;
    let test = programs::take(&mut programs::tests(Stdio::inherit())?, "dashboards", true)?;
    let mut run = host::root_tool("env")?;
    run.arg(variable("MACVLAN_AGENT", &agent.path));
    run.arg(variable(
        "MACVLAN_PROMETHEUS_DIR",
        &suite::unpacked(&["prometheus"], "usr/bin")?,
    ));
    run.arg(variable("MACVLAN_PICTURES_DIR", data));
    run.arg(&test.path).args(["--exact", TEST]);
    let said = host::read(run.current_dir(host::work_tree()?.join("tests")))?;
    ensure!(said.contains("1 passed"), "{TEST} did not run:\n{said}");
    Ok(())
}

fn variable(name: &str, path: &Path) -> String {
    format!("{name}={}", path.display())
}

/// The sources of `dashboards/pictures` beside the packages they need, by the hash of the lock file.
fn painter() -> Result<PathBuf> {
    let _lock = host::lock_cache()?;
    let missing: Vec<_> = TOOLS
        .iter()
        .filter(|(tool, _)| host::find_tool(tool).is_none())
        .map(|(_, package)| *package)
        .collect();
    apt::install(&missing)?;
    let sources = host::work_tree()?.join("dashboards/pictures");
    let digest = Sha256::digest(fs::read(sources.join("package-lock.json"))?);
    let short: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    let painter = host::cache()?.join(format!("pictures-{short}"));
    fs::create_dir_all(&painter)?;
    for source in files(&sources)? {
        let name = source.file_name().context("a file has a name")?;
        fs::copy(&source, painter.join(name)).with_context(|| format!("copy {}", source.display()))?;
    }
    let finished = painter.join("finished");
    if !finished.exists() {
        host::read(host::tool("npm").args(["ci", "--loglevel=error"]).current_dir(&painter))?;
        fs::write(&finished, "")?;
    }
    Ok(painter)
}

fn draw(painter: &Path, data: &Path, to: &Path) -> Result<()> {
    let Some(chromium) = host::find_tool("chromium") else {
        bail!("no chromium on this machine's path");
    };
    let mut node = host::tool("node");
    node.arg("shoot.mjs").args([data, to, &chromium]);
    host::read(node.current_dir(painter))?;
    Ok(())
}

/// Puts a picture into its place, small.
fn keep(drawn: &Path) -> Result<()> {
    let name = drawn.file_name().context("a file has a name")?;
    let to = host::work_tree()?.join("docs/pictures").join(name);
    let mut pngquant = host::tool("pngquant");
    pngquant.args(["--quality=80-100", "--speed=1", "--strip", "--force", "--output"]);
    host::read(pngquant.args([&to, drawn]))?;
    let size = fs::metadata(&to)?.len();
    ensure!(
        size <= LARGEST,
        "{} has {size} bytes, more than {LARGEST}",
        to.display()
    );
    println!("{}: {size} bytes", to.display());
    Ok(())
}

fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))? {
        let path = entry?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
