//! The machine the tasks run on: where things are, how a program is started, and how it becomes root.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// Where Debian keeps the tools of the administrator, which a user's own `PATH` often leaves out.
const ADMINISTRATOR_PATHS: &str = "/usr/local/sbin:/usr/sbin:/sbin";

/// The top of the work tree.
pub(crate) fn work_tree() -> Result<PathBuf> {
    let own = std::env::var_os("CARGO_MANIFEST_DIR").context("start this as `cargo xtask`")?;
    let tree = Path::new(&own).parent().context("xtask has no parent directory")?;
    Ok(tree.to_owned())
}

/// Where kernels and tools are kept between runs, outside the work tree.
pub(crate) fn cache() -> Result<PathBuf> {
    let base = match (std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME")) {
        (Some(cache), _) if !cache.is_empty() => PathBuf::from(cache),
        (_, Some(home)) => Path::new(&home).join(".cache"),
        _ => bail!("neither XDG_CACHE_HOME nor HOME is set"),
    };
    let cache = base.join("macvlan-agent");
    fs::create_dir_all(&cache).with_context(|| format!("create {}", cache.display()))?;
    Ok(cache)
}

/// Keeps other runs of the tasks out of the cache and the package manager until it is dropped.
pub(crate) fn lock_cache() -> Result<File> {
    let path = cache()?.join("lock");
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    file.lock().with_context(|| format!("lock {}", path.display()))?;
    Ok(file)
}

/// A program found on `PATH` or among the administrator's tools, with nothing to read.
pub(crate) fn tool(program: impl AsRef<OsStr>) -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(program);
    command
        .env("PATH", format!("{path}:{ADMINISTRATOR_PATHS}"))
        .stdin(Stdio::null());
    command
}

/// The cargo that started this task, in the work tree, with these words.
pub(crate) fn cargo(words: &str) -> Result<Command> {
    let mut command = tool(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(work_tree()?).args(words.split_whitespace());
    Ok(command)
}

/// A program of the crate registry, built once into the cache: of that version, with these flags and variables.
pub(crate) fn crate_program(name: &str, version: &str, flags: &str, variables: &[(&str, &str)]) -> Result<PathBuf> {
    let home = cache()?.join(format!("{name}-{version}"));
    let program = home.join("bin").join(name);
    if !program.exists() {
        println!("building {name} {version}, once");
        let mut install = cargo(&format!("install {name} --version {version} --locked {flags} --root"))?;
        read(
            install
                .arg(&home)
                .envs(variables.iter().copied())
                .env_remove("CARGO_TARGET_DIR"),
        )?;
    }
    Ok(program)
}

/// A program started as root, by `sudo` where this is not root already.
pub(crate) fn root_tool(program: impl AsRef<OsStr>) -> Result<Command> {
    if is_root()? {
        return Ok(tool(program));
    }
    let mut command = tool("sudo");
    command.stdin(Stdio::inherit()).arg("--").arg(program);
    Ok(command)
}

pub(crate) fn is_root() -> Result<bool> {
    Ok(fs::metadata("/proc/self").context("read /proc/self")?.uid() == 0)
}

/// The path of a program that can be started, if there is one.
pub(crate) fn find_tool(program: &str) -> Option<PathBuf> {
    let path = format!("{}:{ADMINISTRATOR_PATHS}", std::env::var("PATH").unwrap_or_default());
    std::env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

/// Runs to the end and gives what was printed to standard output; a failure carries all that was printed.
pub(crate) fn read(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("start {}", words(command)))?;
    if !output.status.success() {
        bail!("{} ended with {}\n{}", words(command), output.status, printed(&output));
    }
    String::from_utf8(output.stdout).with_context(|| format!("what {} printed", words(command)))
}

/// All that a program printed, errors first, for a person to read.
pub(crate) fn printed(output: &Output) -> String {
    let text = [&output.stderr, &output.stdout].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    text.concat()
}

/// A command as a person would type it, without its environment.
pub(crate) fn words(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}
