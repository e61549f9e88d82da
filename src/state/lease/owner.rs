//! Who a relay is, in a text that lets a neighbour prove that it died.
//!
//! Reads `/proc` and nothing else; what can't be read proves nothing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Stands for a part that could not be read.
const UNKNOWN: &str = "-";

/// What is known of the process that a lease names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// It may live.
    Unknown,
    /// It ran on this machine, since this boot, and exists no more.
    Dead,
}

/// One relay process: `<host>/<boot>/<pid namespace>+<time namespace>/<pid>/<start ticks>/<random>`.
///
/// A process reads another's start time shifted by its own time namespace, hence that one too.
#[derive(Clone, Debug)]
pub(crate) struct Owner {
    proc: PathBuf,
    text: String,
}

impl Owner {
    /// Names this process; each call gives another random part.
    pub(crate) fn this_process() -> Self {
        Self::read(Path::new("/proc"), std::process::id())
    }

    /// The text that stands in the lease.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// Says whether the process behind `other` is proven dead.
    ///
    /// Only for the same host, boot and namespaces, and only where `/proc` shows every process.
    pub(crate) fn life_of(&self, other: &str) -> Life {
        let (Some(ours), Some(theirs)) = (Parts::read(&self.text), Parts::read(other)) else {
            return Life::Unknown;
        };
        if ours.place != theirs.place || !shows_every_process(&self.proc) {
            return Life::Unknown;
        }
        match start_ticks(&self.proc, theirs.pid) {
            Ok(Some(start)) if start == theirs.start => Life::Unknown,
            Ok(_) => Life::Dead,
            Err(_) => Life::Unknown,
        }
    }

    fn read(proc: &Path, pid: u32) -> Self {
        let host = line(&proc.join("sys/kernel/hostname"));
        let boot = line(&proc.join("sys/kernel/random/boot_id"));
        let namespaces = namespaces(proc, pid);
        let start = start_ticks(proc, pid).ok().flatten();
        let text = [
            host.unwrap_or_else(|| UNKNOWN.to_owned()),
            boot.unwrap_or_else(|| UNKNOWN.to_owned()),
            namespaces.unwrap_or_else(|| UNKNOWN.to_owned()),
            pid.to_string(),
            start.map_or_else(|| UNKNOWN.to_owned(), |start| start.to_string()),
            uuid::Uuid::new_v4().simple().to_string()[..12].to_owned(),
        ];
        Self {
            proc: proc.to_owned(),
            text: text.join("/"),
        }
    }
}

/// An owner's text for people: its process and its machine; the text itself where it says neither.
pub(crate) fn shown(text: &str) -> String {
    match text.split('/').collect::<Vec<_>>()[..] {
        [host, _, _, pid, _, _] if host != UNKNOWN && !host.is_empty() => {
            format!("pid {pid} on {host}")
        }
        _ => text.to_owned(),
    }
}

/// An owner's text, taken apart; exists only where every part is known.
struct Parts<'a> {
    place: [&'a str; 3],
    pid: u32,
    start: u64,
}

impl<'a> Parts<'a> {
    fn read(text: &'a str) -> Option<Self> {
        let parts: Vec<&str> = text.split('/').collect();
        let [host, boot, namespaces, pid, start, _] = parts[..] else {
            return None;
        };
        let place = [host, boot, namespaces];
        if place.iter().any(|part| part.is_empty() || *part == UNKNOWN) {
            return None;
        }
        let (pid, start) = (pid.parse().ok()?, start.parse().ok()?);
        Some(Self { place, pid, start })
    }
}

fn line(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.trim().replace('/', "_");
    (!line.is_empty()).then_some(line)
}

/// The numbers of our namespaces; `None` where `/proc` belongs to another one than ours.
fn namespaces(proc: &Path, pid: u32) -> Option<String> {
    let seen = fs::read_link(proc.join("self")).ok()?;
    if seen != Path::new(&pid.to_string()) {
        return None;
    }
    let number = |name: &str| {
        let link = fs::read_link(proc.join("self/ns").join(name)).ok()?;
        let text = link.to_str()?;
        Some(text.split_once('[')?.1.strip_suffix(']')?.to_owned())
    };
    // Linux before 5.6 has no time namespaces.
    let time = number("time").unwrap_or_else(|| "0".to_owned());
    Some(format!("{}+{time}", number("pid")?))
}

/// Whether a process that is not seen in `/proc` does not exist: not so when it is mounted with `hidepid`.
fn shows_every_process(proc: &Path) -> bool {
    let Ok(mounts) = fs::read_to_string(proc.join("self/mounts")) else {
        return false;
    };
    let mount = mounts.lines().rev().find_map(|line| {
        let mut fields = line.split(' ');
        let (place, kind, options) = (fields.nth(1)?, fields.next()?, fields.next()?);
        (place == "/proc").then_some((kind, options))
    });
    let Some((kind, options)) = mount else {
        return false;
    };
    let hides = |option: &str| match option.strip_prefix("hidepid=") {
        Some(value) => !matches!(value, "0" | "off"),
        None => false,
    };
    kind == "proc" && !options.split(',').any(hides)
}

/// When the process was started, in clock ticks since boot; `None` where there is none, or only its remains.
///
/// Source: proc_pid_stat(5), fields 3 (state), 20 (threads) and 22 (start time).
fn start_ticks(proc: &Path, pid: u32) -> io::Result<Option<u64>> {
    let stat = match fs::read_to_string(proc.join(pid.to_string()).join("stat")) {
        Ok(stat) => stat,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        // The process ended between open and read.
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    // The name in parentheses may hold anything, parentheses too.
    let fields: Vec<&str> = match stat.rsplit_once(')') {
        Some((_, fields)) => fields.split_ascii_whitespace().collect(),
        None => return Err(io::ErrorKind::InvalidData.into()),
    };
    let (Some(state), Some(threads), Some(start)) =
        (fields.first(), fields.get(17), fields.get(19))
    else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    // Nobody has waited for it yet, but all its threads are gone and its sockets are closed.
    if matches!(*state, "Z" | "X") && *threads == "1" {
        return Ok(None);
    }
    let start = start.parse().map_err(|_| io::ErrorKind::InvalidData)?;
    Ok(Some(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_living_process_is_never_proven_dead() {
        let (standby, holder) = (Owner::this_process(), Owner::this_process());
        assert_ne!(standby.as_str(), holder.as_str());
        assert_eq!(standby.life_of(holder.as_str()), Life::Unknown);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_killed_process_is_proven_dead_before_and_after_it_is_waited_for() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .expect("sleep starts");
        let standby = Owner::this_process();
        let start = start_ticks(Path::new("/proc"), child.id()).expect("a stat");
        let holder = with(&standby, child.id(), start.expect("it lives"));
        assert_eq!(standby.life_of(&holder), Life::Unknown);
        child.kill().expect("our own child");
        while start_ticks(Path::new("/proc"), child.id())
            .expect("a stat")
            .is_some()
        {
            std::thread::yield_now();
        }
        assert_eq!(standby.life_of(&holder), Life::Dead);
        child.wait().expect("our own child");
        assert_eq!(standby.life_of(&holder), Life::Dead);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_pid_that_another_process_has_now_proves_the_first_one_dead() {
        let standby = Owner::this_process();
        let holder = with(&standby, std::process::id(), 1);
        assert_eq!(standby.life_of(&holder), Life::Dead);
    }

    #[test]
    fn another_place_proves_nothing() {
        let standby = Owner::this_process();
        for holder in [
            "elsewhere/b/1+1/4711/1/abc",
            "-/-/-/4711/1/abc",
            "nonsense",
            "",
        ] {
            assert_eq!(standby.life_of(holder), Life::Unknown);
        }
    }

    #[test]
    fn a_proc_that_hides_processes_proves_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("self")).expect("a folder");
        for (options, shows) in [
            ("rw,relatime", true),
            ("rw,hidepid=off", true),
            ("rw,hidepid=invisible", false),
            ("rw,hidepid=2,gid=5", false),
        ] {
            let mounts = format!(
                "overlay / overlay rw 0 0\nproc /proc proc {options} 0 0\ntmpfs /run tmpfs rw 0 0\n"
            );
            fs::write(folder.path().join("self/mounts"), mounts).expect("a file");
            assert_eq!(shows_every_process(folder.path()), shows, "{options}");
        }
    }

    fn with(owner: &Owner, pid: u32, start: u64) -> String {
        let place: Vec<&str> = owner.as_str().split('/').take(3).collect();
        format!("{}/{pid}/{start}/abcdef", place.join("/"))
    }

    #[test]
    fn a_holder_is_named_by_its_process_and_its_machine() {
        let host = line(Path::new("/proc/sys/kernel/hostname")).expect("a machine has a name");
        let owner = Owner::this_process();
        let pid = std::process::id();
        assert_eq!(shown(owner.as_str()), format!("pid {pid} on {host}"));
        for text in ["somebody", "-/b/n/1/2/3", "/b/n/1/2/3", ""] {
            assert_eq!(shown(text), text);
        }
    }
}
