//! A control group for one process, of version 1 or 2, gone when dropped.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const ROOT: &str = "/sys/fs/cgroup";

static GROUPS: AtomicU32 = AtomicU32::new(0);

#[derive(Debug)]
pub struct Cgroup {
    folder: PathBuf,
    is_v2: bool,
}

impl Cgroup {
    /// Whether a group with this controller (`cpu`, `memory` or `freezer`) can be made here.
    pub fn is_possible(controller: &str) -> bool {
        Self::create(controller).is_ok()
    }

    pub fn create(controller: &str) -> io::Result<Self> {
        let v1 = Path::new(ROOT).join(controller);
        let is_v2 = !v1.is_dir();
        let parent = if is_v2 { PathBuf::from(ROOT) } else { v1 };
        if is_v2 && controller != "freezer" {
            fs::write(
                parent.join("cgroup.subtree_control"),
                format!("+{controller}"),
            )?;
        }
        let number = GROUPS.fetch_add(1, Ordering::Relaxed);
        let folder = parent.join(format!("outboxd-faults-{}-{number}", std::process::id()));
        fs::create_dir(&folder)?;
        Ok(Self { folder, is_v2 })
    }

    /// Moves a process, with all its threads, into the group.
    pub fn take(&self, pid: u32) {
        self.write("cgroup.procs", &pid.to_string());
    }

    /// At most so many hundredths of one processor.
    pub fn limit_cpu(&self, percent: u32) {
        let quota = percent * 1_000;
        match self.is_v2 {
            true => self.write("cpu.max", &format!("{quota} 100000")),
            false => self.write("cpu.cfs_quota_us", &quota.to_string()),
        }
    }

    pub fn limit_memory(&self, bytes: u64) {
        let file = if self.is_v2 {
            "memory.max"
        } else {
            "memory.limit_in_bytes"
        };
        self.write(file, &bytes.to_string());
    }

    pub fn freeze(&self) {
        match self.is_v2 {
            true => self.write("cgroup.freeze", "1"),
            false => self.write("freezer.state", "FROZEN"),
        }
    }

    pub fn thaw(&self) {
        match self.is_v2 {
            true => self.write("cgroup.freeze", "0"),
            false => self.write("freezer.state", "THAWED"),
        }
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.folder.join(file);
        fs::write(&path, text)
            .unwrap_or_else(|error| panic!("write `{text}` to {}: {error}", path.display()));
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A group goes when its last process has gone, which a killed one does in a moment.
        for _ in 0..50 {
            if fs::remove_dir(&self.folder).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
