//! The configuration as a whole: good ones, wrong ones, and the files and pages that speak of it.

mod files;
mod whole;
mod wrong_fields;

use std::collections::BTreeSet;

/// Configurations that together set every key, each to something other than its default.
const FULL: [&str; 7] = [
    r#"
        [proxy]
        threads = 3
        drain_timeout = "45s"
        [log]
        format = "json"
        level = "info,pgsplice=debug"
        access = false
        [admin]
        socket = "/tmp/admin.sock"
        http = "127.0.0.1:9187"
        [guard]
        interfaces = ["eth0", "eth1"]
        mode = "native"
        pin_path = "/sys/fs/bpf/other"
        deny = ["192.0.2.0/24", "2001:db8::/32"]
        [splice]
        interfaces = ["eth0", "eth1"]
        mode = "xdp"
        max_sessions = 200000
        source_ports = "20000-29999"
        [pool.p]
        balance = "two-choices"
        max_sessions_per_backend = 500
        connect_attempts = 5
        cut_spread = "2s"
        slow_start = "20s"
        [[pool.p.backend]]
        address = "bouncer1.example:6432"
        name = "bouncer1"
        weight = 3
        backup = true
        peer_id = 1
        max_sessions = 100
        [[pool.p.backend]]
        address = "[2001:db8::7]:6432"
        peer_id = 2
        [pool.p.queue]
        size = 7
        timeout = "1m30s"
        [pool.p.timeouts]
        connect = "250ms"
        handshake = "5s"
        idle = "1h"
        half_closed = "0s"
        [pool.p.tcp]
        keepalive_idle = "30s"
        keepalive_interval = "5s"
        keepalive_count = 3
        user_timeout = "2m"
        [pool.p.probe]
        kind = "query"
        user = "probe"
        password = "secret"
        database = "postgres"
        query = "SHOW VERSION"
        interval = "3s"
        fast_interval = "100ms"
        timeout = "1s"
        rise = 1
        fall = 2
        [pool.p.passive]
        failures = 0
        retry_after = "1m"
        [listener.l]
        bind = ["127.0.0.1:5432", "[::1]:5432"]
        pool = "p"
        max_sessions = 10000
        startup_timeout = "3s"
        max_startup_size = 4096
        backlog = 512
        defer_accept = false
        splice = "xdp"
        splice_after = 3
        [listener.l.tcp]
        keepalive_idle = "2m"
        keepalive_interval = "20s"
        keepalive_count = 9
        user_timeout = "90s"
    "#,
    r#"
        [cluster.c]
        scope = "main"
        namespace = "/db"
        citus_group = 0
        leader_absent_debounce = "300ms"
        switchover_hold = "20s"
        [cluster.c.etcd]
        endpoints = ["https://etcd1:2379", "https://10.0.0.12:12379"]
        user = "pgsplice"
        password_file = "etcd.password"
        connect_timeout = "1s"
        keepalive_interval = "4s"
        keepalive_timeout = "5s"
        [cluster.c.etcd.tls]
        ca = "ca.pem"
        cert = "cert.pem"
        key = "key.pem"
        server_name = "etcd"
        [cluster.c.proof]
        interval = "2s"
        fast_interval = "50ms"
        timeout = "1s"
        user = "patroni"
        password_file = "etcd.password"
        [cluster.c.proof.tls]
        ca = "ca.pem"
        cert = "cert.pem"
        key = "key.pem"
        server_name = "patroni"
        [pool.p]
        cluster = "c"
        route = "node-local"
        role = "replica"
        max_lag = "16MiB"
        max_lag_time = "10s"
        cut_spread = "2s"
        slow_start = "20s"
        prefer = { zone = "3" }
        fallback_to_primary = true
        tags = { region = "eu", zone = "3", fast = "true" }
        address = 6432
        [pool.p.probe]
        kind = "query"
        user = "probe"
        password_file = "etcd.password"
        [listener.l]
        bind = "127.0.0.1:5432"
        pool = "p"
    "#,
    r#"
        [cluster.c]
        scope = "main"
        etcd.endpoints = "http://10.0.0.11:2379"
        [pool.p]
        cluster = "c"
        route = "fleet"
        role = "primary"
        balance = "source-hash"
        probe.kind = "tcp"
        [listener.l]
        bind = "127.0.0.1:5432"
        pool = "p"
        splice_after = "50ms"
    "#,
    r#"
        [cluster.c]
        scope = "main"
        [cluster.c.consul]
        endpoints = ["https://consul1:8501", "https://10.0.0.12:8501"]
        token_file = "etcd.password"
        datacenter = "dc2"
        connect_timeout = "1s"
        keepalive_interval = "4s"
        keepalive_timeout = "5s"
        [cluster.c.consul.tls]
        ca = "ca.pem"
        cert = "cert.pem"
        key = "key.pem"
        server_name = "consul"
        [pool.p]
        cluster = "c"
        route = "fleet"
        [listener.l]
        bind = "127.0.0.1:5432"
        pool = "p"
    "#,
    r#"
        [cluster.c]
        scope = "main"
        [cluster.c.zookeeper]
        hosts = ["zk1", "10.0.0.12:2281"]
        user = "pgsplice"
        password_file = "etcd.password"
        connect_timeout = "1s"
        keepalive_interval = "4s"
        keepalive_timeout = "5s"
        [cluster.c.zookeeper.tls]
        ca = "ca.pem"
        cert = "cert.pem"
        key = "key.pem"
        server_name = "zookeeper"
        [pool.p]
        cluster = "c"
        route = "fleet"
        [listener.l]
        bind = "127.0.0.1:5432"
        pool = "p"
    "#,
    r#"
        [cluster.c]
        scope = "main"
        rest.endpoints = ["http://10.0.0.31", "http://10.0.0.32:8009"]
        [pool.p]
        cluster = "c"
        route = "node-local"
        address = "conn-url"
        [listener.l]
        bind = "127.0.0.1:5432"
        pool = "p"
    "#,
    r#"
        [cluster.c.static]
        user = "pgsplice"
        password_file = "etcd.password"
        database = "monitor"
        primary = "pg1"
        [[cluster.c.static.member]]
        name = "pg1"
        address = "pg1.example"
        tags = { zone = "a", "with space" = "1" }
        [[cluster.c.static.member]]
        name = "pg2"
        address = "[2001:db8::2]:5433"
        [pool.p]
        cluster = "c"
        route = "node-local"
        role = "any"
        address = 6432
        [listener.l]
        bind = "127.0.0.1:5432"
        pool = "p"
    "#,
];

/// Every key the parser knows, sections left out, with NAME for the names people give.
fn schema_keys() -> BTreeSet<String> {
    let known: BTreeSet<String> = FULL.iter().flat_map(|text| super::parse::parse(text, "full").1).collect();
    let is_section = |key: &String| known.iter().any(|other| other.starts_with(&format!("{key}.")));
    known.iter().filter(|key| !is_section(key)).cloned().collect()
}

/// `pool.rw.backend[0].name` → `pool.NAME.backend.name`; a tag is `pool.NAME.tags`.
fn schema_of(key: &str) -> String {
    let mut parts: Vec<&str> = key.split('.').map(|part| part.split('[').next().unwrap_or_default()).collect();
    if matches!(parts[0], "cluster" | "pool" | "listener") && parts.len() > 1 {
        parts[1] = "NAME";
        if parts.get(2) == Some(&"tags") {
            parts.truncate(3);
        }
    }
    parts.join(".")
}
