//! `list`: parents and sub-interfaces over all namespaces, with the counts of the running agent.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};

use crate::{
    config::args::{List, ListOutput},
    output::{self, visible},
    owners, run_dir,
    topology::{netns::Netns, watcher},
    view::{HostView, SubInterfaceView},
};

/// Writes the list, once or until interrupted.
pub async fn run(arguments: &List) -> Result<()> {
    loop {
        let (view, notes) = gather(arguments).await?;
        let text = match arguments.output {
            ListOutput::Json => format!("{}\n", serde_json::to_string_pretty(&view)?),
            ListOutput::Yaml => serde_saphyr::to_string(&view)?,
            ListOutput::Table => table(&view),
        };
        if !arguments.watch {
            for note in notes {
                tracing::warn!("{note}");
            }
            output::text(&text)?;
            return Ok(());
        }
        let text = notes
            .iter()
            .fold(text, |text, note| format!("{text}\n{}.\n", visible(note)));
        // Clears the terminal, as `watch` does.
        output::text(&format!("\x1b[2J\x1b[H{text}"))?;
        tokio::time::sleep(List::INTERVAL).await;
    }
}

/// What the running agent says; where there is none, what there is without counts.
async fn gather(arguments: &List) -> Result<(HostView, Vec<String>)> {
    let why = match run_dir::address(&arguments.run_dir) {
        None => format!("no agent runs with the run directory {}", arguments.run_dir.display()),
        Some(address) => match tokio::task::spawn_blocking(move || ask(address)).await? {
            Ok(asked) => return Ok(asked),
            Err(error) => format!("the agent at {address} does not answer: {error:#}"),
        },
    };
    let (inventory, namespaces) = watcher::dump_once(PathBuf::from("/run/netns"))
        .await
        .context("cannot read this host's interfaces")?;
    let own = Netns::own()?.inode();
    let owners = owners::gather_once(&inventory, namespaces, own, arguments.containers.sources()).await;
    let unreadable = inventory.unreadable.iter();
    let mut notes = vec![format!("{why}: counts are not known")];
    notes.extend(unreadable.map(|(label, reason)| format!("namespace {label}: {reason}")));
    notes.extend(inventory.problems.iter().chain(&owners.problems).cloned());
    Ok((HostView::without_counts(&inventory, &owners), notes))
}

/// Where the agent says what is missing.
const READY: &str = "/-/ready";

/// What the agent shows, and what it says is missing.
fn ask(address: SocketAddr) -> Result<(HostView, Vec<String>)> {
    let host = if address.ip().is_unspecified() {
        SocketAddr::new(std::net::Ipv4Addr::LOCALHOST.into(), address.port())
    } else {
        address
    };
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_global(Some(Duration::from_secs(5)))
        // One that is not ready says why.
        .http_status_as_error(false)
        .build()
        .into();
    let fetch = |path: &str| -> Result<String> {
        let mut answer = agent.get(format!("http://{host}{path}")).call()?;
        let status = answer.status();
        ensure!(status.is_success() || path == READY, "{path}: {status}");
        Ok(answer.body_mut().read_to_string()?)
    };
    let view = HostView {
        parents: serde_json::from_str(&fetch("/api/v1/parents")?)?,
        sub_interfaces: serde_json::from_str(&fetch("/api/v1/sub-interfaces")?)?,
    };
    let ready = fetch(READY)?;
    let notes = ready.lines().filter_map(|line| line.strip_prefix("- "));
    Ok((view, notes.map(str::to_owned).collect()))
}

fn table(view: &HostView) -> String {
    if view.sub_interfaces.is_empty() {
        return "There is no macvlan sub-interface in any namespace that can be seen.\n".to_owned();
    }
    let mut rows = vec![
        [
            "PARENT",
            "INTERFACE",
            "NETNS",
            "MODE",
            "OWNER",
            "MAC",
            "STATE",
            "DELIVERED",
            "SIBLING",
            "SENT",
            "DROPPED",
            "ADDRESSES",
        ]
        .map(str::to_owned),
    ];
    rows.extend(view.sub_interfaces.iter().map(row));
    columns(&rows)
}

fn row(each: &SubInterfaceView) -> [String; 12] {
    let count = |of: fn(&crate::view::CountsView) -> u64| {
        each.counts
            .as_ref()
            .map_or_else(|| "-".to_owned(), |counts| of(counts).to_string())
    };
    [
        visible(&each.parent),
        visible(&each.interface),
        visible(&each.netns),
        each.mode.clone(),
        each.owner
            .as_ref()
            .map_or_else(|| "-".to_owned(), |owner| visible(&owner.display())),
        each.mac.clone(),
        if each.up { "up" } else { "down" }.to_owned(),
        count(|counts| counts.delivered_external),
        count(|counts| counts.delivered_sibling),
        count(|counts| counts.transmitted_external + counts.transmitted_sibling),
        count(|counts| counts.dropped.values().sum()),
        each.addresses.join(","),
    ]
}

/// Rows with their columns below each other.
fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    rows.iter()
        .map(|row| {
            let line: String = row
                .iter()
                .zip(widths)
                .map(|(cell, width)| format!("{cell:<width$}  "))
                .collect();
            format!("{}\n", line.trim_end())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other() {
        let rows = [["A".to_owned(), "B".to_owned()], ["long".to_owned(), "x".to_owned()]];
        assert_eq!(columns(&rows), "A     B\nlong  x\n");
    }
}
