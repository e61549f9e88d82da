//! A process that is measured: its memory and its CPU time, and its end when dropped.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context;

/// Clock ticks of `/proc/PID/stat` in a second, on every Linux of today.
const TICKS_PER_SECOND: f64 = 100.0;

/// A child with its output in a log file; it is killed when dropped.
pub struct Process {
    child: Child,
    name: String,
}

impl Process {
    /// Starts the command, in a process group of its own.
    pub fn start(command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        use std::os::unix::process::CommandExt;
        let name = command.get_program().to_string_lossy().into_owned();
        let output = File::options().create(true).append(true).open(log)?;
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start `{name}`"))?;
        Ok(Self { child, name })
    }

    /// Fails if the process has ended.
    pub fn ensure_runs(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            Some(status) => anyhow::bail!("`{}` ended by itself ({status})", self.name),
            None => Ok(()),
        }
    }

    /// The exit status, once it has ended.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// The largest resident memory so far, in bytes.
    pub fn peak_bytes(&self) -> u64 {
        self.memory("VmHWM:")
    }

    /// The resident memory now, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// The CPU time so far, of all its threads.
    pub fn cpu(&self) -> Duration {
        cpu_of(self.child.id()).unwrap_or_default()
    }

    /// The same of the threads that live now, to the nanosecond: `cpu` counts in steps of 10 ms.
    ///
    /// Errors: there is no `/proc/PID/task/TID/schedstat`.
    pub fn cpu_of_threads(&self) -> anyhow::Result<Duration> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id()))?;
        let mut nanos = 0;
        for task in tasks {
            let path = task?.path().join("schedstat");
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            let on_processor = text.split(' ').next().unwrap_or_default();
            nanos += on_processor.parse::<u64>().with_context(|| text.clone())?;
        }
        Ok(Duration::from_nanos(nanos))
    }

    /// One line of `/proc/PID/status` in bytes; 0 where it can't be read.
    fn memory(&self, name: &str) -> u64 {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|text| text.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kib.unwrap_or(0) * 1024
    }

    /// Sends SIGTERM and waits up to 15 s for the end.
    pub fn stop(mut self) -> anyhow::Result<()> {
        let asked = Command::new("kill")
            .args(["-TERM", &self.child.id().to_string()])
            .status()?;
        anyhow::ensure!(asked.success(), "cannot signal `{}`", self.name);
        for _ in 0..300 {
            if self.child.try_wait()?.is_some() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        anyhow::bail!("`{}` did not stop within 15 s", self.name)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The CPU time so far of any process, of all its threads; `None` once it has ended.
pub fn cpu_of(pid: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(") ")?;
    // utime and stime, fields 14 and 15; the state behind the name is field 3.
    let ticks: f64 = after_name
        .split(' ')
        .skip(11)
        .take(2)
        .filter_map(|ticks| ticks.parse::<f64>().ok())
        .sum();
    Some(Duration::from_secs_f64(ticks / TICKS_PER_SECOND))
}
