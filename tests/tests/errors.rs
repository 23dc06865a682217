//! What goes wrong is said in one sentence, with what to do about it, and with the exit code that scripts look at:
//! 1 when something failed, 2 when the command line is wrong.

use std::{
    fs,
    net::TcpListener,
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    process::{Command, Output},
    time::Duration,
};

use macvlan_agent_tests::{
    agent::{Agent, run_to_end, run_to_end_as},
    lab::{Lab, Mode, Place, Upstream},
    module,
    surroundings::{agent_program, eventually, on_host, patience},
    traffic::frame,
};

const NOBODY: u32 = 65_534;

/// What was said on standard error, after checking the exit code, that every word of `words` is in it, and that it is
/// one error and no panic.
fn refused(output: &Output, code: i32, words: &[&str]) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
    assert!(!said.contains("panicked") && !said.contains("Backtrace"), "{said}");
    assert!(said.ends_with('\n'), "{said:?}");
    said
}

/// The same for an error of `run`: whatever the log said before, the last line is the one sentence about it.
fn refused_in_one_sentence(output: &Output, words: &[&str]) {
    let said = refused(output, 1, words);
    let last = said.lines().last().unwrap_or_default();
    assert!(last.starts_with("macvlan-agent: "), "{said}");
    for word in words {
        assert!(last.contains(word), "{word:?} is not in the last line: {said}");
    }
}

fn run_dir() -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix("macvlan-agent-")
        .tempdir()
        .expect("a directory for temporary files")
}

fn run_in(dir: &tempfile::TempDir, flags: &[&str]) -> Vec<String> {
    let dir = format!("--run.dir={}", dir.path().display());
    ["run", &dir]
        .iter()
        .chain(flags)
        .map(|flag| (*flag).to_owned())
        .collect()
}

#[test]
fn a_port_that_is_taken() {
    macvlan_agent_tests::lab::loopback_up().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let flag = format!("--web.listen-address={address}");
    let output = run_to_end(&run_in(&run_dir(), &[&flag]));
    refused_in_one_sentence(&output, &[&address, "in use", "--web.listen-address"]);
}

#[test]
fn a_flag_that_does_not_exist() {
    let output = run_to_end(&["run", "--web.listen-addres=:1"]);
    refused(&output, 2, &["--web.listen-addres", "--web.listen-address"]);
    refused(&run_to_end(&["runn"]), 2, &["runn"]);
    refused(
        &run_to_end(&["run", "--hook.handle_frame=perhaps"]),
        2,
        &["perhaps", "auto", "off", "required"],
    );
}

#[test]
fn an_address_that_is_none() {
    let output = run_to_end(&run_in(&run_dir(), &["--web.listen-address=here"]));
    refused(&output, 2, &["here", "--web.listen-address"]);
}

#[test]
fn a_second_agent_on_the_same_run_directory() {
    let first = Agent::start();
    let dir = format!("--run.dir={}", first.run_dir().display());
    let output = run_to_end(&["run", "--web.listen-address=127.0.0.1:0", &dir]);
    refused_in_one_sentence(
        &output,
        &[
            &first.pid().to_string(),
            &first.run_dir().display().to_string(),
            "--run.dir",
        ],
    );
    assert_eq!(first.get("/-/ready").status, 200, "the first one goes on");
    let dir = first.run_dir().to_owned();
    assert_eq!(first.stop().status.code(), Some(0));
    // The lock went with its holder.
    fs::create_dir_all(&dir).unwrap();
    let next = Agent::start_with(&[&format!("--run.dir={}", dir.display())]);
    assert_eq!(next.stop().status.code(), Some(0));
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_user_without_capabilities() {
    let dir = run_dir();
    chown(dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    // A copy that this user may reach, wherever the build is.
    let place = run_dir();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = place.path().join("macvlan-agent");
    fs::copy(agent_program(), &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let as_nobody = |arguments: &[String]| {
        Command::new(&program)
            .args(arguments)
            .uid(NOBODY)
            .gid(NOBODY)
            .current_dir("/")
            .output()
            .unwrap()
    };
    let output = as_nobody(&run_in(&dir, &["--web.listen-address=127.0.0.1:0"]));
    refused_in_one_sentence(&output, &["CAP_BPF", "root"]);
    let check = as_nobody(&["check".to_owned()]);
    assert_eq!(check.status.code(), Some(1), "{check:?}");
    let said = [check.stdout, check.stderr].concat();
    assert!(
        String::from_utf8_lossy(&said).contains("CAP_BPF"),
        "{}",
        String::from_utf8_lossy(&said)
    );
}

#[test]
fn a_run_directory_that_cannot_be_made() {
    let output = run_to_end(&[
        "run",
        "--web.listen-address=127.0.0.1:0",
        "--run.dir=/proc/macvlan-agent",
    ]);
    refused_in_one_sentence(&output, &["/proc/macvlan-agent", "--run.dir"]);
}

/// Not an end: it counts what it can, and says to whoever asks that it is not what was wanted.
#[test]
fn a_required_hook_that_cannot_be_had() {
    let flags = [
        "--web.listen-address=127.0.0.1:0",
        "--kernel.btf=/nonexistent",
        "--hook.handle_frame=required",
    ];
    let flags = flags.map(Into::into);
    let go_on = || Ok(());
    let never_ready = Agent::launch_within(&agent_program(), &flags, patience(Duration::from_secs(2)), &go_on);
    let said = format!("{:#}", never_ready.expect_err("it is not ready"));
    for word in ["503", "handle_frame", "/nonexistent"] {
        assert!(said.contains(word), "{word} is not in: {said}");
    }
}

#[test]
fn without_btf_only_the_hook_that_reads_the_kernel_is_off() {
    let lab = Lab::new(Place::Named, Upstream::Wire);
    let sub = lab.add("macv1", Mode::Bridge);
    let agent = Agent::start_with(&["--kernel.btf=/nonexistent"]);
    agent.await_known(&[&sub]);
    let scrape = agent.scrape();
    let hook = [("hook", "handle_frame")];
    assert_eq!(scrape.count("macvlan_agent_hook_attached", &hook), 0);
    assert_ne!(scrape.sample("macvlan_agent_hook_info", &hook).label("reason"), "");
    assert!(agent.get("/-/ready").body.to_lowercase().contains("degraded"));
    let parent = lab.parent_label();
    for hook in ["parent_ingress", "parent_egress"] {
        assert_eq!(
            scrape.count("macvlan_agent_hook_attached", &[("hook", hook), ("parent", &parent)]),
            1
        );
    }
    lab.station.send(&frame(sub.mac(), lab.station.mac, 200), 1000);
    let labels = [("parent", parent.as_str()), ("cast", "unicast"), ("path", "external")];
    eventually(patience(Duration::from_secs(2)), || {
        match agent.scrape().count("macvlan_delivered_frames_total", &labels) {
            1000 => Ok(()),
            other => Err(format!("{other} of 1000 frames counted")),
        }
    });
    let check = run_to_end(&["check", "--kernel.btf=/nonexistent"]);
    let said = String::from_utf8_lossy(&check.stdout).into_owned();
    assert_eq!(check.status.code(), Some(3), "{said}");
    assert!(said.contains("/nonexistent"), "{said}");
}

/// With the module gone there is no macvlan anywhere: the agent is ready and waits for it. On the host macvlan is
/// built in; there it waits for a parent.
#[test]
fn without_macvlan_or_a_parent_it_waits() {
    if !on_host() {
        module::unload();
    }
    let agent = Agent::start();
    assert_eq!(agent.get("/-/ready").status, 200);
    let check = run_to_end(&["check"]);
    let said = String::from_utf8_lossy(&check.stdout).into_owned();
    assert_eq!(check.status.code(), Some(3), "{said}");
    if !on_host() {
        assert!(said.contains("module"), "{said}");
        module::load();
    }
    // And when it comes, it counts.
    let lab = Lab::new(Place::Named, Upstream::Wire);
    let sub = lab.add("macv1", Mode::Bridge);
    agent.await_known(&[&sub]);
    lab.station.send(&frame(sub.mac(), lab.station.mac, 200), 10);
    let parent = lab.parent_label();
    let labels = [("parent", parent.as_str()), ("cast", "unicast"), ("path", "external")];
    eventually(patience(Duration::from_secs(2)), || {
        match agent.scrape().count("macvlan_delivered_frames_total", &labels) {
            10 => Ok(()),
            other => Err(format!("{other} of 10 frames counted")),
        }
    });
}

#[test]
fn help_and_version_are_no_errors() {
    for arguments in [
        ["--help"].as_slice(),
        &["--version"],
        &["run", "--help"],
        &["check", "--help"],
    ] {
        let output = run_to_end_as(arguments, |_| {});
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(
            !output.stdout.is_empty() && output.stderr.is_empty(),
            "{arguments:?}: {output:?}"
        );
    }
}
