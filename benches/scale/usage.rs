//! Time on a CPU and memory, as the system counts them.

use std::fs;
use std::ops::{Add, Sub};
use std::time::Duration;

use crate::harness::Outcome;

/// The time that a process has spent on a CPU, in user and kernel mode.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CpuTime(Duration);

impl CpuTime {
    pub(crate) fn of(id: u32) -> Outcome<Self> {
        Stat::read(id).map(|stat| stat.own)
    }

    /// The time of a process and of all its children, with those that have ended.
    pub(crate) fn of_family(id: u32) -> Outcome<Self> {
        let parent = Stat::read(id)?;
        let mut time = parent.own.0 + parent.ended_children.0;
        for process in fs::read_dir("/proc")?.flatten() {
            let Some(id) = process.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            // A process may end between two looks.
            if let Ok(child) = Stat::read(id)
                && child.parent == parent.id
            {
                time += child.own.0 + child.ended_children.0;
            }
        }
        Ok(Self(time))
    }

    pub(crate) fn as_secs_f64(self) -> f64 {
        self.0.as_secs_f64()
    }
}

impl Add for CpuTime {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

impl Sub for CpuTime {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self(self.0.saturating_sub(earlier.0))
    }
}

/// A part of `/proc/PID/stat`.
struct Stat {
    id: u32,
    parent: u32,
    own: CpuTime,
    ended_children: CpuTime,
}

impl Stat {
    fn read(id: u32) -> Outcome<Self> {
        let text = fs::read_to_string(format!("/proc/{id}/stat"))?;
        // The name stands in parentheses, and may hold anything.
        let (_, rest) = text.rsplit_once(") ").ok_or("no name in /proc/PID/stat")?;
        let fields: Vec<&str> = rest.split(' ').collect();
        let field = |number: usize| -> Outcome<u64> {
            Ok(fields.get(number - 3).ok_or("a short line in /proc/PID/stat")?.parse()?)
        };
        let time = |user, kernel| -> Outcome<CpuTime> {
            let ticks = field(user)? + field(kernel)?;
            let nanos = 1_000_000_000 / rustix::param::clock_ticks_per_second();
            Ok(CpuTime(Duration::from_nanos(ticks * nanos)))
        };
        Ok(Self {
            id,
            parent: u32::try_from(field(4)?)?,
            own: time(14, 15)?,
            ended_children: time(16, 17)?,
        })
    }
}

/// The memory that a process holds, in bytes.
pub(crate) fn resident_bytes(id: u32) -> Outcome<f64> {
    let status = fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix("kB"));
    let kibibytes: f64 = kibibytes.ok_or("the system does not tell")?.trim().parse()?;
    Ok(kibibytes * 1024.0)
}
