//! What `pgsplice doctor` says of a host, in a network namespace that is made for it and gone with the command.

// A test stops at the first thing that goes wrong.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use anyhow::Result;
use pgsplice_tests::{Shared, proxy};
use serde_json::Value;
use xtask::lab::{Net, NetSpec};

static TOOLS: Shared<Net> = Shared::new(tools);

/// A host whose root has ip and nft. The commands run beside its network, not in it.
fn tools() -> Result<Net> {
    NetSpec::unique().host(proxy::host("tools")).up()
}

/// Two ends of a veth, everything as a careful operator has it.
const GOOD: &str = "\
    ip link set lo up
    ip link add left type veth peer name right
    ip link set left up; ip link set right up
    cd /proc/sys/net/ipv4
    echo 1 > ip_forward
    for name in all left right; do echo 0 > conf/$name/rp_filter; done
    echo 32768 60999 > ip_local_port_range
    nft 'add table inet t; add chain inet t f { type filter hook forward priority 0; policy drop; }'
";

/// Level and advice of each check, on a host that `GOOD` and then `script` have made.
fn doctor(script: &str, mode: &str) -> BTreeMap<String, (String, String)> {
    let config = format!(
        "splice = {{ interfaces = [\"left\", \"right\"], mode = \"{mode}\" }}\n\
         pool.p.backend = [{{ address = \"10.0.0.1:6432\" }}]\n\
         listener.l = {{ bind = \"127.0.0.1:5432\", pool = \"p\" }}\n"
    );
    let host = TOOLS.get().host("tools");
    let file = format!("/etc/{}.toml", std::thread::current().name().unwrap_or("doctor").replace(':', "-"));
    host.write(&file, config).unwrap();
    let script = format!(
        "set -e\nmount -t sysfs none /sys\n{GOOD}\n{script}\nexec /opt/pgsplice/pgsplice doctor --json --config {file}"
    );
    let output = host.command(["unshare", "--net", "--mount", "sh", "-c", &script]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let checks: Vec<Value> = serde_json::from_str(&said)
        .unwrap_or_else(|error| panic!("{error}: {said}{}", String::from_utf8_lossy(&output.stderr)));
    let text = |check: &Value, key: &str| check[key].as_str().unwrap_or_default().to_owned();
    checks.iter().map(|check| (text(check, "name"), (text(check, "level"), text(check, "advice")))).collect()
}

#[test]
fn a_host_that_is_fit_for_the_splice_is_told_so() {
    let checks = doctor("", "tc");
    for name in ["capabilities", "hand-off", "road tc", "splice on left", "splice on right", "rp_filter"] {
        assert_eq!(checks[name], ("ok".into(), String::new()), "{name}");
    }
    for name in ["splice.source_ports", "conntrack"] {
        assert_eq!(checks[name], ("ok".into(), String::new()), "{name}");
    }
    // TC asks no routing table.
    assert!(!checks.contains_key("forwarding"));
    let checks = doctor("", "xdp");
    assert_eq!(checks["forwarding"].0, "ok");
    // veth: no checksums.
    assert_eq!(checks["splice on left"].0, "warn");
}

#[test]
fn each_lack_is_named_with_what_to_do() {
    let cases = [
        ("echo 0 > conf/left/forwarding", "forwarding", "fail", "net/ipv4/conf/left/forwarding=1"),
        ("nft flush ruleset", "forwarding", "warn", "policy drop"),
        ("echo 1 > conf/left/rp_filter", "rp_filter", "warn", "2"),
        (
            "echo 10240 65535 > ip_local_port_range; echo 9000 > ip_local_reserved_ports",
            "splice.source_ports",
            "fail",
            "net.ipv4.ip_local_reserved_ports=9000,12000-32767",
        ),
        (
            "nft 'add chain inet t i { type filter hook input priority 0; }; add rule inet t i ct state invalid drop'",
            "conntrack",
            "warn",
            "notrack",
        ),
    ];
    for (script, name, level, advice) in cases {
        let checks = doctor(script, "xdp");
        let (found, said) = &checks[name];
        assert!(found == level && said.contains(advice), "{script}: {name} is {found}: {said}");
    }
}

#[test]
fn lists_of_gro_are_seen_on_the_ports_of_a_bridge() {
    let checks = doctor(
        "ip link set left down; ip link set left name port
         ethtool -K port gro on; ethtool -K port rx-gro-list on
         ip link add left type bridge; ip link set port master left
         ip link set left up; ip link set port up",
        "tc",
    );
    assert!(!checks.contains_key("GRO on left"), "{checks:?}");
    assert_eq!(checks["GRO on port"].0, "fail", "{checks:?}");
}
