//! The process itself, from `/proc/self` (proc(5)), under the names every Prometheus client library uses.

use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use super::collect::Families;

/// What cannot be read is left out of the scrape.
#[derive(Debug)]
pub struct ProcessCollector;

impl Collector for ProcessCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let mut out = Families(encoder);
        let now = Process::read();
        out.one_gauge("process_resident_memory_bytes", "Resident memory", now.resident)?;
        out.one_gauge("process_virtual_memory_bytes", "Virtual memory", now.virtual_)?;
        out.one_counter("process_cpu_seconds", "User and system CPU time", now.cpu)?;
        out.one_gauge("process_threads", "Threads", now.threads)?;
        out.one_gauge("process_open_fds", "Open file descriptors", now.open_fds)?;
        out.one_gauge("process_max_fds", "Limit of open file descriptors", now.max_fds)
    }
}

#[derive(Debug, Default)]
struct Process {
    resident: Option<u64>,
    virtual_: Option<u64>,
    cpu: Option<f64>,
    threads: Option<u64>,
    open_fds: Option<u64>,
    max_fds: Option<u64>,
}

impl Process {
    fn read() -> Self {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // The second field is the command in parentheses and may hold anything; count from behind it.
        let fields: Vec<u64> = stat.rsplit_once(')').map_or(Vec::new(), |(_, rest)| {
            rest.split_whitespace().map(|field| field.parse().unwrap_or_default()).collect()
        });
        // proc_pid_stat(5) counts from 1, and the state, its field 3, comes first here.
        let field = |number: usize| fields.get(number - 3).copied();
        // SAFETY: sysconf only reads a constant of the system.
        let (ticks, page) = unsafe { (libc::sysconf(libc::_SC_CLK_TCK), libc::sysconf(libc::_SC_PAGESIZE)) };
        let cpu = field(14).zip(field(15)).map(|(user, system)| (user + system) as f64 / ticks.max(1) as f64);
        Self {
            resident: field(24).map(|pages| pages * page.max(1) as u64),
            virtual_: field(23),
            cpu,
            threads: field(20),
            // The listing holds a descriptor of its own.
            open_fds: fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count().saturating_sub(1) as u64),
            max_fds: max_fds(),
        }
    }
}

fn max_fds() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live rlimit of ours, which the call fills in.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    (result == 0).then_some(limit.rlim_cur)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_this_process() {
        let now = Process::read();
        assert!(now.resident.unwrap() > 1 << 20, "{now:?}");
        assert!(now.virtual_.unwrap() >= now.resident.unwrap(), "{now:?}");
        assert!(now.threads.unwrap() >= 1 && now.open_fds.unwrap() >= 3, "{now:?}");
        assert!(now.max_fds.unwrap() >= now.open_fds.unwrap(), "{now:?}");
    }
}
