//! Dashboards, made as code from the table of metrics; and everything that can be said of them, of the rules and of the
//! alerts without data: Grafana's own schema, the linter's rules, names and labels by the table, promtool.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::gate::{Gate, Outcome};
use crate::{apt, host, python, suite};

/// The packages that have Grafana's types, and that make a JSON schema of them.
const SCHEMA_PACKAGES: [&str; 2] = ["@grafana/schema@13.2.3", "ts-json-schema-generator@2.9.0"];

/// Makes the dashboards anew, in place.
pub(crate) fn write() -> Result<()> {
    generate(&home()?)
}

/// Adds what can be checked to a list of steps.
pub(crate) fn steps(gate: &mut Gate) {
    gate.step("dashboards made anew", || compare().map(Outcome::note));
    gate.step("dashboards, rules and alerts", || check().map(Outcome::note));
    gate.step("promtool on rules and alerts", || promtool().map(Outcome::note));
}

/// Puts everything it needs into the cache.
pub(crate) fn provision() -> Result<()> {
    environment()?;
    schema()?;
    Ok(())
}

fn home() -> Result<PathBuf> {
    Ok(host::work_tree()?.join("dashboards"))
}

fn generate(to: &Path) -> Result<()> {
    let table = table()?;
    host::read(script("generate.py")?.arg(table.path().join("table.json")).arg(to))?;
    Ok(())
}

/// What is committed is what the generator makes.
fn compare() -> Result<String> {
    let fresh = tempfile::tempdir()?;
    generate(fresh.path())?;
    let mut names = Vec::new();
    for entry in fs::read_dir(fresh.path())? {
        let path = entry?.path();
        let name = path.file_name().context("a file has a name")?.to_owned();
        let committed = fs::read(home()?.join(&name)).unwrap_or_default();
        ensure!(
            committed == fs::read(&path)?,
            "dashboards/{} is not what the generator makes: run `cargo xtask dashboards`",
            name.display()
        );
        names.push(name);
    }
    ensure!(!names.is_empty(), "the generator made nothing");
    Ok(format!("{} files", names.len()))
}

fn check() -> Result<String> {
    host::read(&mut script("test_queries.py")?)?;
    let table = table()?;
    let said = host::read(
        script("check.py")?
            .arg(table.path().join("table.json"))
            .arg(schema()?)
            .arg(home()?),
    )?;
    Ok(said.trim().to_owned())
}

fn promtool() -> Result<String> {
    let promtool = suite::unpacked(&["prometheus"], "usr/bin")?.join("promtool");
    let home = home()?;
    let files = |directory: &str| -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(home.join(directory))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "yml") {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    };
    let mut check = host::tool(&promtool);
    check.args(["check", "rules", "--lint=all", "--lint-fatal"]);
    host::read(check.args(files("rules")?).args(files("alerts")?))?;
    let tests = [files("rules/tests")?, files("alerts/tests")?].concat();
    host::read(host::tool(&promtool).args(["test", "rules"]).args(&tests))?;
    for name in ["prometheus.yml", "federation.yml", "remote-write.yml"] {
        let file = home.join("provisioning").join(name);
        host::read(host::tool(&promtool).args(["check", "config"]).arg(file))?;
    }
    Ok(format!("{} files of tests", tests.len()))
}

/// The table of metrics, as the agent prints it.
fn table() -> Result<tempfile::TempDir> {
    let directory = tempfile::tempdir()?;
    let table = host::read(&mut host::cargo(
        "run --quiet --locked --package macvlan-agent -- metrics --output json",
    )?)?;
    fs::write(directory.path().join("table.json"), table)?;
    Ok(directory)
}

fn script(name: &str) -> Result<std::process::Command> {
    let mut python = host::tool(environment()?.join("bin/python"));
    // Nothing is left beside the sources.
    python.env("PYTHONDONTWRITEBYTECODE", "1");
    python.arg(home()?.join("generator").join(name));
    Ok(python)
}

/// Python with what the generator needs, by the hash of its list.
fn environment() -> Result<PathBuf> {
    let _lock = host::lock_cache()?;
    let requirements = home()?.join("generator/requirements.txt");
    let digest = Sha256::digest(fs::read(&requirements)?);
    let short: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    let environment = host::cache()?.join(format!("dashboards-{short}"));
    let finished = environment.join("finished");
    if !finished.exists() {
        let list = requirements.to_string_lossy().into_owned();
        python::environment(&environment, &["--requirement", &list])?;
        fs::write(&finished, "")?;
    }
    Ok(environment)
}

/// Grafana's JSON schema of a dashboard, made from its published types.
fn schema() -> Result<PathBuf> {
    let _lock = host::lock_cache()?;
    let name = SCHEMA_PACKAGES.join("-").replace(['@', '/'], "-");
    let home = host::cache()?.join(format!("schema{name}"));
    let schema = home.join("dashboard.json");
    if !schema.exists() {
        fs::create_dir_all(&home)?;
        if host::find_tool("npm").is_none() {
            apt::install(&["nodejs", "npm"])?;
        }
        fs::write(home.join("package.json"), "{ \"private\": true }\n")?;
        fs::write(
            home.join("dashboard.ts"),
            "import { Dashboard } from '@grafana/schema';\nexport type Page = Dashboard;\n",
        )?;
        let mut install = host::tool("npm");
        install.args(["install", "--no-audit", "--no-fund", "--loglevel=error"]);
        host::read(install.args(SCHEMA_PACKAGES).current_dir(&home))?;
        let made = host::read(
            host::tool("node")
                .arg("node_modules/ts-json-schema-generator/bin/ts-json-schema-generator.js")
                .args([
                    "--path",
                    "dashboard.ts",
                    "--type",
                    "Page",
                    "--no-type-check",
                    "--expose",
                    "none",
                ])
                .current_dir(&home),
        )?;
        fs::write(&schema, made)?;
    }
    Ok(schema)
}
