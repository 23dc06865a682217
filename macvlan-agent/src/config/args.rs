//! The command line.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::{
    Args, Parser, Subcommand, ValueEnum,
    builder::{OsStringValueParser, TypedValueParser as _},
};

use super::manage_args;
use crate::{
    kernel::hooks::{HandlerWish, Hook, Wish},
    manage::record::DEFAULT_DIRECTORY,
    owners::Sources,
};

/// Where the agent listens unless told otherwise.
pub const DEFAULT_PORT: u16 = 10_177;

/// Where the agent keeps what belongs to one run.
pub const DEFAULT_RUN_DIR: &str = "/run/macvlan-agent";

/// Which frames reached each macvlan sub-interface, which did not, and why.
#[derive(Debug, Parser)]
#[command(name = "macvlan-agent", version = VERSION, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Version, commit and compiler.
const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (",
    env!("MACVLAN_AGENT_REVISION"),
    ", rustc ",
    env!("MACVLAN_AGENT_RUSTC"),
    ")"
);

/// What the agent can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Observe every macvlan on this host and serve what is counted; keep the interfaces of a configuration.
    Run(Box<Run>),
    /// Say what this host is able to do; exit 0 all of it, 3 degraded, 1 cannot run.
    Check(Check),
    /// List parents and sub-interfaces over all namespaces, with the counts of the running agent.
    List(List),
    /// Make a sub-interface.
    Add(Box<manage_args::Add>),
    /// Change a sub-interface that was made with `add`.
    Set(Box<manage_args::Set>),
    /// Remove a sub-interface that was made with `add`.
    Del(manage_args::Del),
    /// Let the host and its sub-interfaces reach each other.
    #[command(subcommand)]
    Shim(manage_args::Shim),
    /// Say what `apply` would change.
    Plan(manage_args::Apply),
    /// Make the host what a configuration says.
    Apply(manage_args::Apply),
    /// About the configuration.
    #[command(subcommand)]
    Config(manage_args::Config),
    /// Print the table of metrics.
    Metrics(Metrics),
}

/// `run`.
#[derive(Debug, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of its own on the command line"
)]
pub struct Run {
    /// Address to listen on, repeatable: `:10177`, `127.0.0.1:10177`, `[::1]:10177`; port 0 takes a free one.
    #[arg(long = "web.listen-address", value_name = "ADDRESS", default_value = ":10177", value_parser = listen_address)]
    pub listen: Vec<SocketAddr>,
    /// Path of the metrics.
    #[arg(long = "web.telemetry-path", value_name = "PATH", default_value = "/metrics", value_parser = telemetry_path)]
    pub telemetry_path: String,
    /// File with TLS, client certificates, passwords, headers and the rate limit, as all exporters take it.
    #[arg(long = "web.config.file", value_name = "FILE")]
    pub web_config: Option<PathBuf>,
    /// Take the listening sockets from systemd instead of opening addresses.
    #[arg(long = "web.systemd-socket")]
    pub systemd_socket: bool,
    /// Scrapes that may be under way at once; more are answered 503. 0 sets no limit.
    #[arg(long = "web.max-requests", value_name = "N", default_value_t = 40)]
    pub max_requests: usize,
    /// Leave out `process_*`, the metrics of the agent's own process.
    #[arg(long = "web.disable-exporter-metrics")]
    pub disable_exporter_metrics: bool,
    /// Let `/` and `/api/v1` answer others than loopback; they show MACs and names.
    #[arg(long = "web.enable-remote-api")]
    pub remote_api: bool,
    /// Let `POST /-/reload` read the configuration anew.
    #[arg(long = "web.enable-lifecycle")]
    pub lifecycle: bool,
    /// The configuration; left out, everything is observed and nothing is changed.
    #[arg(long = "config.file", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory of the record of what was made.
    #[arg(long = "state.dir", value_name = "DIRECTORY", default_value = DEFAULT_DIRECTORY)]
    pub state_dir: PathBuf,
    /// The socket by which commands change interfaces; left out, control.sock in the run directory.
    #[arg(long = "control.socket", value_name = "PATH")]
    pub control_socket: Option<PathBuf>,
    /// What is logged, and how.
    #[command(flatten)]
    pub log: Log,
    /// Directory of what belongs to this run; one agent per directory.
    #[arg(long = "run.dir", value_name = "DIRECTORY", default_value = DEFAULT_RUN_DIR)]
    pub run_dir: PathBuf,
    /// What to ask of the kernel.
    #[command(flatten)]
    pub kernel: KernelArgs,
    /// Where names of containers come from.
    #[command(flatten)]
    pub containers: ContainerArgs,
}

/// Flags of the sources of containers' names.
#[derive(Clone, Debug, Args)]
pub struct ContainerArgs {
    /// Sockets of Docker's API, which podman speaks as well; given empty, none is asked.
    #[arg(
        long = "containers.socket",
        value_name = "FILE,…",
        value_delimiter = ',',
        // That of paths refuses an empty one.
        value_parser = OsStringValueParser::new().map(PathBuf::from),
        default_value = "/run/docker.sock,/run/podman/podman.sock"
    )]
    pub sockets: Vec<PathBuf>,
    /// CNI's cache, where results say for which pod an interface was made.
    #[arg(
        long = "containers.cni-cache",
        value_name = "DIRECTORY",
        default_value = "/var/lib/cni"
    )]
    pub cni: PathBuf,
}

impl ContainerArgs {
    /// Where to ask.
    #[must_use]
    pub fn sources(&self) -> Sources {
        let given = |socket: &&PathBuf| !socket.as_os_str().is_empty();
        Sources {
            sockets: self.sockets.iter().filter(given).cloned().collect(),
            cni: self.cni.clone(),
        }
    }
}

/// Flags of the log.
#[derive(Debug, Args)]
pub struct Log {
    /// Least severe level that is logged.
    #[arg(long = "log.level", value_name = "LEVEL", default_value = "info")]
    pub level: Level,
    /// How a record is written.
    #[arg(long = "log.format", value_name = "FORMAT", default_value = "text")]
    pub format: Format,
}

/// Severity.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[expect(missing_docs, reason = "the words say it")]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
}

/// Form of a log record.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Format {
    /// A line for people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Flags of the hooks.
#[derive(Clone, Debug, Args)]
pub struct KernelArgs {
    /// TC ingress of each parent: auto, off, or required.
    #[arg(long = "hook.parent_ingress", value_name = "WISH", default_value = "auto")]
    pub parent_ingress: Wish,
    /// TC egress of each parent.
    #[arg(long = "hook.parent_egress", value_name = "WISH", default_value = "auto")]
    pub parent_egress: Wish,
    /// Entry and return of `macvlan_handle_frame`.
    #[arg(long = "hook.handle_frame", value_name = "WISH", default_value = "auto")]
    pub handle_frame: HandlerWish,
    /// Frames that the kernel gives up, with its reason.
    #[arg(long = "hook.frame_free", value_name = "WISH", default_value = "auto")]
    pub frame_free: Wish,
    /// The kernel's own counters, through netlink.
    #[arg(long = "hook.kernel_counters", value_name = "WISH", default_value = "auto")]
    pub kernel_counters: Wish,
    /// Every hook that is not off is required.
    #[arg(long)]
    pub strict: bool,
    /// The kernel's type information.
    #[arg(long = "kernel.btf", value_name = "FILE", default_value = crate::kernel::btf::VMLINUX)]
    pub btf: PathBuf,
}

impl KernelArgs {
    /// What the user wants of a hook.
    #[must_use]
    pub fn wish(&self, hook: Hook) -> Wish {
        match hook {
            Hook::ParentIngress => self.parent_ingress,
            Hook::ParentEgress => self.parent_egress,
            Hook::HandleFrame => self.handle_frame.wish(),
            Hook::FrameFree => self.frame_free,
            Hook::KernelCounters => self.kernel_counters,
        }
    }

    /// Whether the agent is not ready without a hook.
    #[must_use]
    pub fn required(&self, hook: Hook) -> bool {
        match self.wish(hook) {
            Wish::Off => false,
            Wish::Required => true,
            Wish::Auto => self.strict || hook.row().required,
        }
    }
}

/// `check`.
#[derive(Debug, Args)]
pub struct Check {
    /// How to write it.
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: CheckOutput,
    /// What to ask of the kernel.
    #[command(flatten)]
    pub kernel: KernelArgs,
    /// Where names of containers come from.
    #[command(flatten)]
    pub containers: ContainerArgs,
}

/// Forms of `check`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CheckOutput {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// `list`.
#[derive(Debug, Args)]
pub struct List {
    /// How to write it.
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: ListOutput,
    /// Write it again every two seconds until interrupted.
    #[arg(long)]
    pub watch: bool,
    /// Run directory of the agent whose counts are shown.
    #[arg(long = "run.dir", value_name = "DIRECTORY", default_value = DEFAULT_RUN_DIR)]
    pub run_dir: PathBuf,
    /// Where names of containers come from when no agent runs.
    #[command(flatten)]
    pub containers: ContainerArgs,
}

impl List {
    /// Time between two lists.
    pub const INTERVAL: Duration = Duration::from_secs(2);
}

/// Forms of `list`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ListOutput {
    /// For people.
    Table,
    /// For programs.
    Json,
    /// For people who like it.
    Yaml,
}

/// `metrics`.
#[derive(Debug, Args)]
pub struct Metrics {
    /// How to write it.
    #[arg(short, long, value_name = "FORMAT", default_value = "markdown")]
    pub output: MetricsOutput,
}

/// Forms of `metrics`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MetricsOutput {
    /// For people: `docs/METRICS.md`.
    Markdown,
    /// For programs: what dashboards and rules are checked against.
    Json,
}

/// An address as exporters take it: without a host it is every address.
fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let advice = "expected ADDRESS:PORT, as in :10177, 127.0.0.1:10177 or [::1]:10177";
    if let Some(port) = text.strip_prefix(':') {
        let port = port.parse().map_err(|_| format!("{port:?} is not a port; {advice}"))?;
        return Ok(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port));
    }
    text.replacen("localhost:", "127.0.0.1:", 1)
        .parse()
        .map_err(|_| advice.to_owned())
}

fn telemetry_path(text: &str) -> Result<String, String> {
    let plain = text
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && !b"{}?#*\"".contains(&byte));
    if !text.starts_with('/') || !plain {
        return Err("expected a path that begins with /, as in /metrics".to_owned());
    }
    if text == "/" || text.starts_with("/-/") || text.starts_with("/api/") {
        return Err("that path is taken by the agent's own pages; expected one like /metrics".to_owned());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_flags_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn listen_addresses_are_taken_as_exporters_take_them() {
        assert_eq!(listen_address(":10177").expect("valid").to_string(), "[::]:10177");
        assert_eq!(listen_address("127.0.0.1:0").expect("valid").to_string(), "127.0.0.1:0");
        assert_eq!(listen_address("localhost:1").expect("valid").to_string(), "127.0.0.1:1");
        assert!(listen_address("10177").is_err());
        assert!(listen_address(":x").expect_err("invalid").contains("is not a port"));
    }

    #[test]
    fn no_socket_is_asked_where_none_is_given() {
        for (flag, sockets) in [("", 0), ("=", 0), ("=/a", 1), ("=/a,/b", 2)] {
            let flag = format!("--containers.socket{flag}");
            let cli = Cli::try_parse_from(
                ["x", "list", &flag]
                    .into_iter()
                    .chain(flag.ends_with('t').then_some("")),
            );
            let Command::List(list) = cli.expect("valid").command else {
                unreachable!("list was parsed")
            };
            assert_eq!(list.containers.sources().sockets.len(), sockets, "{flag}");
        }
    }

    #[test]
    fn the_metrics_take_no_path_of_the_agents_own() {
        assert!(telemetry_path("/metrics/macvlan").is_ok());
        for path in ["metrics", "/", "/-/ready", "/api/v1", "/{x}", "/a b"] {
            assert!(telemetry_path(path).is_err(), "{path}");
        }
    }

    #[test]
    fn a_hook_that_is_off_is_never_required() {
        let cli = Cli::try_parse_from(["x", "run", "--strict", "--hook.handle_frame=off"]).expect("valid");
        let Command::Run(run) = cli.command else {
            unreachable!("run was parsed")
        };
        assert!(run.kernel.required(Hook::ParentIngress));
        assert!(!run.kernel.required(Hook::HandleFrame));
    }
}
