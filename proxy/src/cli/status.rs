//! `pgsplice status`: one screen.

use std::process::ExitCode;
use std::time::Duration;

use super::client::ClientArgs;
use super::table::{Table, age, bytes, count, or_dash};
use crate::admin::api;

/// Show what the running proxy does: listeners, pools, clusters
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub client: ClientArgs,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let answer: api::Status = args.client.get("/v1/status", &())?;
    args.client.print(&answer, human)?;
    Ok(ExitCode::SUCCESS)
}

fn human(status: &api::Status) -> String {
    let api::Status { version, pid, lifecycle, threads, .. } = status;
    let uptime = age(Duration::from_secs(status.uptime_seconds));
    let mut text = format!("pgsplice {version}, pid {pid}, {lifecycle}, up {uptime}, ");
    text += &format!("{}, {}\n", count(*threads, "thread"), count(status.sessions, "session"));
    if let Some(file) = &status.config_file {
        text += &format!("configuration {file}\n");
    }
    text + "\n"
        + &listeners(&status.listeners)
        + "\n"
        + &pools(&status.pools)
        + &clusters(&status.clusters)
        + &guard(&status.guard)
}

fn guard(guard: &Option<api::GuardStatus>) -> String {
    let Some(guard) = guard else { return String::new() };
    let on: Vec<_> = guard.attachments.iter().map(|one| format!("{} ({})", one.interface, one.mode)).collect();
    let mut table = Table::new(&["LISTENER", ">PACKETS", ">BYTES", ">SYNS", ">DENIED"]);
    for one in &guard.listeners {
        let counters = [one.packets.to_string(), bytes(one.bytes), one.syns.to_string(), one.denied.to_string()];
        table.row([one.listener.clone()].into_iter().chain(counters));
    }
    format!("\nguard on {}\n{}", on.join(", "), table.render(2))
}

fn listeners(listeners: &[api::Listener]) -> String {
    let mut table = Table::new(&["LISTENER", "ADDRESS", "POOL", ">SESSIONS", ">LIMIT", ">ACCEPTED", ">IN", ">OUT"]);
    for one in listeners {
        table.row([
            one.name.clone(),
            one.bound.join(" "),
            one.pool.clone(),
            one.sessions.to_string(),
            if one.max_sessions == 0 { "-".into() } else { one.max_sessions.to_string() },
            one.accepted.to_string(),
            bytes(one.bytes_in),
            bytes(one.bytes_out),
        ]);
    }
    table.render(0)
}

fn pools(pools: &[api::Pool]) -> String {
    let mut table = Table::new(&["POOL", ">BACKENDS", ">CANDIDATES", ">WAITING", "WHY NONE"]);
    for one in pools {
        table.row([
            one.name.clone(),
            one.backends.to_string(),
            one.candidates.to_string(),
            one.waiting.to_string(),
            one.why_empty.clone(),
        ]);
    }
    table.render(0)
}

fn clusters(clusters: &[api::Cluster]) -> String {
    clusters.iter().map(|one| format!("\n{}", cluster(one))).collect()
}

fn cluster(one: &api::Cluster) -> String {
    let primary = match (&one.primary, one.timeline) {
        (Some(member), Some(timeline)) => format!("primary {member} (timeline {timeline})"),
        (Some(member), None) => format!("primary {member}"),
        (None, _) => format!("no primary: {}", one.closed_because),
    };
    let error = if one.store_error.is_empty() { String::new() } else { format!(" ({})", one.store_error) };
    let mut text = format!("cluster {}: {primary}; store {}{error}\n", one.name, one.store);
    let mut members = Table::new(&["MEMBER", "ROLE", "STATE", ">TIMELINE", ">LAG", "SAYS OF ITSELF"]);
    for member in &one.members {
        let cut = member.cut.as_ref().map_or(String::new(), |why| format!("; cut: {why}"));
        members.row([
            member.name.clone(),
            member.role.clone(),
            member.state.clone(),
            or_dash(&member.timeline),
            member.lag.map_or("-".into(), bytes),
            format!("{}{cut}", member.proof),
        ]);
    }
    if !members.is_empty() {
        text += &members.render(2);
    }
    let mut bouncers = Table::new(&["BOUNCER", "ADDRESS", "STATE", "POINTS TO", "WHY"]);
    for bouncer in &one.bouncers {
        bouncers.row([
            bouncer.name.clone(),
            bouncer.address.clone(),
            bouncer.state.clone(),
            or_dash(&bouncer.leader),
            bouncer.reason.clone(),
        ]);
    }
    if !bouncers.is_empty() {
        text += &bouncers.render(2);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::{AttachMode, Attachment, Xdp};
    use crate::guard::api::ListenerStatus;

    #[test]
    fn one_screen_says_who_is_primary_and_who_waits() {
        let status = api::Status {
            version: "0.1.0".into(),
            pid: 77,
            started_at: 0,
            uptime_seconds: 187,
            lifecycle: "running".into(),
            config_file: Some("/etc/pgsplice/pgsplice.toml".into()),
            threads: 2,
            sessions: 1,
            listeners: vec![api::Listener {
                name: "rw".into(),
                pool: "primary".into(),
                bound: vec!["0.0.0.0:5432".into()],
                sessions: 1,
                max_sessions: 0,
                accepted: 9,
                ended: Default::default(),
                bytes_in: 10,
                bytes_out: 20,
            }],
            pools: vec![api::Pool {
                name: "primary".into(),
                backends: 3,
                candidates: 0,
                waiting: 4,
                why_empty: "no primary".into(),
            }],
            clusters: vec![api::Cluster {
                name: "main".into(),
                store: "unreachable".into(),
                store_error: "connection refused".into(),
                leader_key: None,
                primary: None,
                timeline: None,
                primary_since: None,
                closed_because: "the leader key is absent".into(),
                generation: 3,
                members: Vec::new(),
                bouncers: Vec::new(),
            }],
            guard: Some(api::GuardStatus {
                attachments: vec![Attachment {
                    interface: "eth0".into(),
                    mode: AttachMode::Native,
                    program: Xdp::Guard,
                }],
                listeners: vec![ListenerStatus { listener: "rw".into(), packets: 12, bytes: 3400, syns: 2, denied: 1 }],
            }),
        };
        let expected = "\
pgsplice 0.1.0, pid 77, running, up 3m07s, 2 threads, 1 session
configuration /etc/pgsplice/pgsplice.toml

LISTENER  ADDRESS       POOL     SESSIONS  LIMIT  ACCEPTED    IN   OUT
rw        0.0.0.0:5432  primary         1      -         9  10 B  20 B

POOL     BACKENDS  CANDIDATES  WAITING  WHY NONE
primary         3           0        4  no primary

cluster main: no primary: the leader key is absent; store unreachable (connection refused)

guard on eth0 (native)
  LISTENER  PACKETS   BYTES  SYNS  DENIED
  rw             12  3.4 kB     2       1
";
        assert_eq!(human(&status), expected);
    }
}
