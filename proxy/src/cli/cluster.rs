//! `pgsplice cluster`: what each store says, what each member says of itself, and what follows.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::client::ClientArgs;
use super::table::{Table, age, bytes, or_dash};
use crate::admin::api;

/// Show what the store says, what each member says, and what pgsplice concludes and why
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only this [cluster.NAME]
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// Show the changes of roles with their times
    #[arg(long)]
    pub history: bool,
    #[command(flatten)]
    pub client: ClientArgs,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut answer: api::Clusters = args.client.get("/v1/clusters", &())?;
    if let Some(name) = &args.name {
        let known: Vec<_> = answer.clusters.iter().map(|one| one.name.clone()).collect();
        answer.clusters.retain(|one| one.name == *name);
        if answer.clusters.is_empty() {
            anyhow::bail!("no cluster named {name:?}; there are: {}", known.join(", "));
        }
    }
    let show = if args.history { history } else { evidence };
    args.client.print(&answer, |answer| {
        if answer.clusters.is_empty() {
            return "no cluster is configured\n".into();
        }
        answer.clusters.iter().map(show).collect::<Vec<_>>().join("\n")
    })?;
    Ok(ExitCode::SUCCESS)
}

fn evidence(one: &api::ClusterReport) -> String {
    let error = if one.store_error.is_empty() { String::new() } else { format!(" ({})", one.store_error) };
    let mut text = format!("cluster {}: {} {}{error}\n", one.name, one.store_kind, one.store);
    let is_static = one.store_kind == "static";
    text += &match &one.leader_key {
        Some(leader) => format!("  the leader key names {leader}\n"),
        None if is_static => "  no Patroni: the members themselves are asked\n".into(),
        None => "  no member holds the leader key\n".into(),
    };
    let mut say = |is: bool, what: String| {
        if is {
            text += &format!("  {what}\n");
        }
    };
    say(one.standby_cluster, "this is a standby cluster".into());
    say(one.patroni_paused, "Patroni is paused: it watches and changes nothing".into());
    say(!one.failsafe.is_empty(), format!("failsafe mode: {}", one.failsafe.join(", ")));
    let mode = if one.quorum_mode { "quorum of" } else { "synchronous:" };
    say(!one.synchronous.is_empty(), format!("{mode} {}", one.synchronous.join(", ")));
    say(one.failover.is_some(), format!("asked for: a move {}", one.failover.as_deref().unwrap_or_default()));
    let role = if is_static { "ROLE" } else { "ITS KEY" };
    let mut members = Table::new(&["MEMBER", role, ">TIMELINE", ">LAG", ">LATE", "SAYS OF ITSELF", "CONCLUDED"]);
    for member in &one.members {
        members.row([
            member.name.clone(),
            format!("{} ({})", member.role, member.state),
            or_dash(&member.timeline),
            member.lag.map_or("-".into(), bytes),
            member.lag_seconds.map_or("-".into(), |late| format!("{late:.1} s")),
            member.says.clone(),
            member.concluded.clone(),
        ]);
    }
    text += &members.render(2);
    let mut bouncers = Table::new(&["BOUNCER", "ADDRESS", "STATE", "POINTS TO", "WHY"]);
    for bouncer in &one.bouncers {
        let points_to = or_dash(&bouncer.leader);
        bouncers.row([
            bouncer.name.clone(),
            bouncer.address.clone(),
            bouncer.state.clone(),
            points_to,
            bouncer.reason.clone(),
        ]);
    }
    if !bouncers.is_empty() {
        text += &bouncers.render(2);
    }
    text + &match (&one.primary, one.timeline) {
        (Some(member), Some(timeline)) => {
            let since = one.primary_since.map(|since| format!(", for {}", age(since_unix(since)))).unwrap_or_default();
            format!("  concluded: the primary is {member}, timeline {timeline}{since}\n")
        }
        _ => format!("  concluded: no primary: {}\n", one.closed_because),
    }
}

fn since_unix(time: u64) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_secs(time))
}

fn history(one: &api::ClusterReport) -> String {
    let mut text = format!("cluster {}, seen by this process\n", one.name);
    let mut changes = Table::new(&["AGO", "WHAT"]);
    for change in &one.changes {
        changes.row([age(since_unix(change.at)), change.what.clone()]);
    }
    text += &changes.render(2);
    if one.history.is_empty() {
        return text;
    }
    text += "written by Patroni\n";
    let mut timelines = Table::new(&[">TIMELINE", "ENDED", ">AT LSN", "THEN LED BY", "REASON"]);
    for end in &one.history {
        timelines.row([
            end.timeline.to_string(),
            or_dash(&end.at),
            format!("{:X}/{:X}", end.lsn >> 32, end.lsn & 0xffff_ffff),
            or_dash(&end.new_leader),
            or_dash(&end.reason),
        ]);
    }
    text + &timelines.render(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> api::ClusterReport {
        let member = |name: &str, role: &str, concluded: &str| api::MemberReport {
            name: name.into(),
            role: role.into(),
            state: "running".into(),
            timeline: Some(2),
            lag: Some(0),
            lag_seconds: Some(0.0),
            says: format!("{role} (running)"),
            concluded: concluded.into(),
            ..api::MemberReport::default()
        };
        api::ClusterReport {
            name: "main".into(),
            store_kind: "etcd".into(),
            store: "connected".into(),
            leader_key: Some("pg1".into()),
            closed_because: "pg1 does not answer".into(),
            synchronous: vec!["pg2".into()],
            members: vec![
                member("pg1", "primary", "closed: pg1 does not answer"),
                member("pg2", "replica", "a replica"),
            ],
            history: vec![api::TimelineReport {
                timeline: 1,
                lsn: 0x1_0000_00a0,
                reason: Some("no recovery target specified".into()),
                at: Some("2026-11-26T01:00:00+00:00".into()),
                new_leader: Some("pg1".into()),
            }],
            ..api::ClusterReport::default()
        }
    }

    #[test]
    fn the_evidence_stands_beside_what_is_concluded() {
        let expected = "\
cluster main: etcd connected
  the leader key names pg1
  synchronous: pg2
  MEMBER  ITS KEY            TIMELINE  LAG   LATE  SAYS OF ITSELF     CONCLUDED
  pg1     primary (running)         2  0 B  0.0 s  primary (running)  closed: pg1 does not answer
  pg2     replica (running)         2  0 B  0.0 s  replica (running)  a replica
  concluded: no primary: pg1 does not answer
";
        assert_eq!(evidence(&report()), expected);
    }

    #[test]
    fn the_history_has_patronis_timelines() {
        let text = history(&report());
        assert!(
            text.contains("1  2026-11-26T01:00:00+00:00    1/A0  pg1          no recovery target specified"),
            "{text}"
        );
    }
}
