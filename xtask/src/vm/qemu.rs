//! The emulator: boots a kernel with an image, gathers what the machine prints, and ends it when its time is up.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::host;

/// Emulated everywhere: a /dev/kvm that opens but then never runs a machine cannot be told from a good one.
///
/// Both processors in one thread: with a thread each, one of them sometimes runs a stale copy of an instruction that the
/// kernel is patching (a static branch, when a device gets its first TC program), and the kernel panics with `int3`.
///
/// Two network cards, wired to each other and to nothing else; they let every frame through, for whatever MAC and VLAN.
const MACHINE: &str = "-M q35 -cpu max -accel tcg,thread=single -m 1024 \
    -display none -monitor none -no-reboot \
    -netdev hubport,id=near,hubid=0 -device virtio-net-pci,netdev=near,romfile=,ctrl_rx=off,ctrl_vlan=off \
    -netdev hubport,id=far,hubid=0 -device virtio-net-pci,netdev=far,romfile=,ctrl_rx=off,ctrl_vlan=off";

/// What the clock of a machine counts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clock {
    /// Time.
    Time,
    /// Instructions, on the one processor that it then has: a nanosecond is one instruction.
    Instructions,
}

impl Clock {
    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Time => &["-smp", "2"],
            Self::Instructions => &["-smp", "1", "-icount", "shift=0,sleep=off"],
        }
    }
}

/// How long a machine may take to its first line: some twenty times what it takes on a machine that has other work.
const FIRST_LINE: Duration = Duration::from_mins(2);

/// How often a machine is started that never says a line. Once in some fifty boots the emulator stands still before the
/// kernel's first instruction; no test has run by then, so nothing is tried twice that could have failed.
const STARTS: u32 = 3;

/// What a machine left behind.
pub(crate) struct Session {
    /// What the script printed, the verdict left out.
    pub(crate) output: String,
    /// What the kernel printed.
    kernel_log: String,
    /// The script's own last word; none after a panic, a hang, or when the time was up.
    pub(crate) verdict: Option<bool>,
}

impl Session {
    /// The end of what the kernel said, to explain a verdict that never came.
    pub(crate) fn end_of_kernel_log(&self) -> String {
        let lines: Vec<_> = self.kernel_log.lines().collect();
        let end = lines[lines.len().saturating_sub(40)..].join("\n");
        if end.trim().is_empty() {
            "the kernel's console is empty".to_owned()
        } else {
            format!("the kernel's console ends\n{end}")
        }
    }
}

/// Boots and waits until the machine is off, at most for `limit`. One that never says a line is started again.
pub(crate) fn boot(kernel: &Path, initramfs: &Path, clock: Clock, limit: Duration, echo: bool) -> Result<Session> {
    for start in 1..STARTS {
        let session = boot_once(kernel, initramfs, clock, limit, echo)?;
        if !session.output.is_empty() {
            return Ok(session);
        }
        println!(
            "{} said nothing for {} s: started again, {start} of {} times; {}",
            kernel.display(),
            FIRST_LINE.as_secs(),
            STARTS - 1,
            session.end_of_kernel_log()
        );
    }
    boot_once(kernel, initramfs, clock, limit, echo)
}

fn boot_once(kernel: &Path, initramfs: &Path, clock: Clock, limit: Duration, echo: bool) -> Result<Session> {
    let console = initramfs.with_file_name("console");
    let mut machine = command(kernel, initramfs, clock, &console)
        .spawn()
        .context("start the emulator")?;
    let lines = lines(machine.stdout.take().context("the machine's port")?);
    let (mut output, in_time) = gather(&lines, limit, echo);
    if !in_time {
        machine.kill().context("stop the machine")?;
        if !output.is_empty() {
            output.push_str("the machine was stopped: its time was up\n");
        }
    }
    machine.wait()?;
    let verdict = take_verdict(&mut output);
    let kernel_log = std::fs::read(&console).unwrap_or_default();
    Ok(Session {
        output,
        kernel_log: String::from_utf8_lossy(&kernel_log).replace('\r', ""),
        verdict,
    })
}

fn command(kernel: &Path, initramfs: &Path, clock: Clock, console: &Path) -> Command {
    // The machine ends also where this task was ended before it.
    let mut command = host::tool("setpriv");
    command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
    command.args(MACHINE.split_whitespace()).args(clock.flags());
    command
        .arg("-serial")
        .arg(format!("file:{}", console.display()))
        .args(["-serial", "stdio"]);
    command.arg("-kernel").arg(kernel).arg("-initrd").arg(initramfs);
    command
        .args(["-append", "console=ttyS0 loglevel=6 panic=-1"])
        .stdout(Stdio::piped());
    command
}

/// Reads the port to its end, line by line.
fn lines(port: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(port).split(b'\n').map_while(Result::ok) {
            // The other end has gone when the time was up.
            let _ = sender.send(String::from_utf8_lossy(&line).replace('\r', ""));
        }
    });
    receiver
}

/// Gathers lines until there are no more; false when the time was up before that.
fn gather(lines: &Receiver<String>, limit: Duration, echo: bool) -> (String, bool) {
    let end = Instant::now() + limit;
    let first = Instant::now() + limit.min(FIRST_LINE);
    let mut text = String::new();
    loop {
        let deadline = if text.is_empty() { first } else { end };
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                if echo {
                    println!("{line}");
                }
                text.push_str(&line);
                text.push('\n');
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => return (text, true),
            Err(mpsc::RecvTimeoutError::Timeout) => return (text, false),
        }
    }
}

/// Takes the last line off the output where it is a verdict.
fn take_verdict(output: &mut String) -> Option<bool> {
    let verdict = match output.lines().next_back()? {
        "verdict pass" => true,
        "verdict fail" => false,
        _ => return None,
    };
    let end = output.trim_end().rfind('\n').map_or(0, |place| place + 1);
    output.truncate(end);
    Some(verdict)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::{gather, take_verdict};

    #[test]
    fn a_machine_that_stands_still_is_told_from_one_that_ended() {
        let (sender, lines) = mpsc::channel();
        sender.send("up".to_owned()).unwrap();
        assert_eq!(
            gather(&lines, Duration::from_millis(20), false),
            ("up\n".to_owned(), false)
        );
        drop(sender);
        assert_eq!(gather(&lines, Duration::from_mins(1), false), (String::new(), true));
    }

    #[test]
    fn the_last_line_alone_is_the_verdict() {
        let mut output = "verdict fail\nmore\nverdict pass\n".to_owned();
        assert_eq!(take_verdict(&mut output), Some(true));
        assert_eq!(output, "verdict fail\nmore\n");
    }

    #[test]
    fn a_machine_that_dies_has_no_verdict() {
        assert_eq!(take_verdict(&mut "verdict pass\nhalf a li".to_owned()), None);
        assert_eq!(take_verdict(&mut String::new()), None);
    }
}
