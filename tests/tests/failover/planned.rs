//! `pgsplice switchover` on the whole data centre: what pgbench notices of it, and what is left when Patroni refuses.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use xtask::lab::Lab;
use xtask::lab::cluster::FLEET_PORT;

use super::{calm, other_than, until_whole};

fn pgbench(lab: &Lab, seconds: u32) -> Child {
    let conninfo = lab.conninfo(lab.proxy(), FLEET_PORT);
    let time = format!("--time={seconds}");
    let mut command = lab.client().command(["pgbench", "-n", "--client=8", "--jobs=2", &time, &conninfo]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn a_planned_move_is_a_wait_and_no_failed_transaction_and_a_refused_one_changes_nothing() {
    let (lab, old) = calm();
    lab.client().run(["pgbench", "-q", "-i", &lab.conninfo(lab.proxy(), FLEET_PORT)]).unwrap();
    let load = pgbench(&lab, 12);
    std::thread::sleep(Duration::from_secs(2));

    // Patroni refuses a candidate that has no PostgreSQL to take over with.
    let new = other_than(&lab, &old);
    let replica = lab.host(&new).service("patroni").unwrap();
    replica.kill(libc::SIGSTOP).unwrap();
    let begun = Instant::now();
    let refused = lab.pgsplice(&["switchover", "--to", &new]).unwrap_err().to_string();
    assert!(refused.contains("Patroni refused") && refused.contains(&format!("goes on at {old}")), "{refused}");
    println!("refused after {:.1} s", begun.elapsed().as_secs_f64());
    replica.kill(libc::SIGCONT).unwrap();
    assert_eq!(until_whole(&lab), old);

    let report = lab.pgsplice(&["switchover", "--to", &new, "--json"]).unwrap();
    let report: Value = serde_json::from_str(&report).unwrap();
    println!("{report:#}");
    assert_eq!((&report["to"], &report["error"]), (&Value::from(new.clone()), &Value::Null));
    assert_eq!(until_whole(&lab), new);

    let output = load.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    println!("{said}");
    assert!(output.status.success(), "a client of pgbench lost its session");
    assert!(said.contains("number of failed transactions: 0 (0.000%)"));
    for host in lab.bouncers() {
        let databases = lab.bouncer_admin(host, "SHOW DATABASES").unwrap();
        assert!(databases.contains(&lab.host(&new).v4().to_string()), "{databases}");
    }
}
