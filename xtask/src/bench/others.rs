//! What else the machine is doing: CPU time of processes that are not the bench's. A measurement that others disturbed
//! is made again.

use std::collections::HashMap;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::workload::cpus;

/// Ticks a second in /proc/PID/stat: USER_HZ, see [`super::load::cpu`].
const USER_HZ: f64 = 100.0;
const LOOK: Duration = Duration::from_millis(300);
const KTHREADD: i32 = 2;

/// A reading of what others have used so far.
pub struct Others {
    at: Instant,
    seconds: f64,
}

impl Others {
    pub fn now() -> Self {
        Self { at: Instant::now(), seconds: used(&processes(), std::process::id() as i32) }
    }

    /// What they used since, in percent of all CPUs' time.
    pub fn percent_since(&self) -> f64 {
        let later = Self::now();
        let elapsed = later.at.duration_since(self.at).as_secs_f64();
        100.0 * (later.seconds - self.seconds).max(0.0) / (elapsed * cpus() as f64)
    }
}

/// Waits for a moment in which others use no more than `calm` percent of the CPUs, until `deadline` at most.
pub fn wait_until_calm(deadline: Instant, calm: f64) {
    while Instant::now() < deadline {
        let before = Others::now();
        sleep(LOOK);
        if before.percent_since() <= calm {
            return;
        }
    }
}

struct Process {
    parent: i32,
    /// CPU seconds of its own and of its children that have ended.
    seconds: f64,
}

fn processes() -> HashMap<i32, Process> {
    let pids =
        fs::read_dir("/proc").into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| Some((pid, parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?))).collect()
}

/// Fields 4 (parent) and 14 to 17 (utime, stime, cutime, cstime) of proc(5)'s /proc/PID/stat.
fn parse(stat: &str) -> Option<Process> {
    // The name in field 2 may hold spaces and parentheses: count from its last one.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11..15)?.iter().filter_map(|field| field.parse::<f64>().ok()).sum::<f64>();
    Some(Process { parent: fields.get(1)?.parse().ok()?, seconds: ticks / USER_HZ })
}

/// Of all processes but `me`, what descends from it, and the kernel's threads (they work for the bench as well). A
/// child's time moves to its parent when it has ended, so that the sum loses nothing.
fn used(processes: &HashMap<i32, Process>, me: i32) -> f64 {
    let ours = |pid: i32| {
        let mut at = pid;
        while at != me && at != KTHREADD {
            match processes.get(&at) {
                Some(process) => at = process.parent,
                None => return false,
            }
        }
        true
    };
    // Those above the bench hold its time only once it has ended.
    processes.iter().filter(|(pid, _)| !ours(**pid)).map(|(_, process)| process.seconds).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_descendants_and_kernel_threads_are_not_others() {
        let stat = |pid: i32, parent: i32, ticks: u32| {
            (pid, parse(&format!("{pid} (a (b) c) S {parent} 1 1 0 -1 0 0 0 0 0 {ticks} 50 0 0 20 0")).unwrap())
        };
        let all =
            [stat(1, 0, 50), stat(2, 0, 50), stat(9, 2, 950), stat(40, 1, 150), stat(41, 40, 950), stat(50, 1, 250)];
        // 1 has used 1 s and 50 has used 3 s; 40 is the bench.
        assert_eq!(used(&all.into(), 40), 4.0);
    }
}
