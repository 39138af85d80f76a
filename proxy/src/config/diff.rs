//! What a reload changes: which listeners, pools and clusters come, go or change, in types for the program and in
//! lines for people, and which changes have to wait for a restart.

use std::collections::BTreeMap;

use super::model::{BackendConfig, BackendSource, Config, Pool};
use super::settings::{self, Settings, Value};

/// From one configuration to another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    pub listeners: Changes,
    pub pools: Changes,
    pub clusters: Changes,
    /// Some `[log]` key that can change while running did: `level` or `access`.
    pub log: bool,
    /// `guard.deny` did.
    pub deny: bool,
    /// One line each: `listener.rw: added`, `pool.rw: queue.timeout 30s → 10s`.
    pub lines: Vec<String>,
    /// Lines of the same form for what only a restart can change: `proxy: threads 2 → 4`.
    pub needs_restart: Vec<String>,
}

/// Names of sections of one kind, each list in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub added: Vec<String>,
    pub removed: Vec<String>,
    pub changed: Vec<String>,
}

impl Diff {
    /// Whether the two say the same.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.needs_restart.is_empty()
    }
}

pub fn diff(old: &Config, new: &Config) -> Diff {
    let mut diff = Diff::default();
    let restart = &mut diff.needs_restart;
    compare("proxy", &settings::proxy(&old.proxy), &settings::proxy(&new.proxy), restart);
    compare("admin", &settings::admin(&old.admin), &settings::admin(&new.admin), restart);
    compare("splice", &settings::splice(&old.splice), &settings::splice(&new.splice), restart);

    let mut log = Vec::new();
    compare("log", &settings::log(&old.log), &settings::log(&new.log), &mut log);
    let (restart, live): (Vec<_>, Vec<_>) = log.into_iter().partition(|line| line.starts_with("log: format "));
    diff.log = !live.is_empty();
    diff.lines.extend(live);
    diff.needs_restart.extend(restart);

    let mut guard = Vec::new();
    compare("guard", &settings::guard(&old.guard), &settings::guard(&new.guard), &mut guard);
    let (live, restart): (Vec<_>, Vec<_>) = guard.into_iter().partition(|line| line.starts_with("guard: deny "));
    diff.deny = !live.is_empty();
    diff.lines.extend(live);
    diff.needs_restart.extend(restart);

    let lines = &mut diff.lines;
    diff.clusters = sections("cluster", &old.clusters, &new.clusters, lines, |path, old, new, lines| {
        compare(path, &settings::cluster(old), &settings::cluster(new), lines);
    });
    diff.pools = sections("pool", &old.pools, &new.pools, lines, compare_pools);
    diff.listeners = sections("listener", &old.listeners, &new.listeners, lines, |path, old, new, lines| {
        compare(path, &settings::listener(old), &settings::listener(new), lines);
    });
    diff
}

/// Compares the named sections of one kind; `compare` adds a line for each difference between two of one name.
fn sections<T>(
    kind: &str,
    old: &BTreeMap<String, T>,
    new: &BTreeMap<String, T>,
    lines: &mut Vec<String>,
    compare: impl Fn(&str, &T, &T, &mut Vec<String>),
) -> Changes {
    let mut changes = Changes::default();
    for name in old.keys().filter(|name| !new.contains_key(*name)) {
        lines.push(format!("{kind}.{name}: removed"));
        changes.removed.push(name.clone());
    }
    for (name, new) in new {
        let path = format!("{kind}.{name}");
        let Some(old) = old.get(name) else {
            lines.push(format!("{path}: added"));
            changes.added.push(name.clone());
            continue;
        };
        let before = lines.len();
        compare(&path, old, new, lines);
        if lines.len() > before {
            changes.changed.push(name.clone());
        }
    }
    changes
}

fn compare_pools(path: &str, old: &Pool, new: &Pool, lines: &mut Vec<String>) {
    compare(path, &settings::pool(old), &settings::pool(new), lines);
    let (old, new) = (static_backends(old), static_backends(new));
    let find = |list: &[BackendConfig], address: &str| list.iter().position(|backend| backend.address == address);
    for gone in old.iter().filter(|backend| find(new, &backend.address).is_none()) {
        lines.push(format!("{path}: backend {} removed", gone.address));
    }
    let mut positions = Vec::new();
    for backend in new {
        match find(old, &backend.address) {
            None => lines.push(format!("{path}: backend {} added", backend.address)),
            Some(position) => {
                let prefix = format!("{path}: backend {}", backend.address);
                compare_with(&prefix, &settings::backend(&old[position]), &settings::backend(backend), lines);
                positions.push(position);
            }
        }
    }
    // Their order decides who gets a session with balance = "first".
    if !positions.is_sorted() {
        lines.push(format!("{path}: backends in another order"));
    }
}

fn static_backends(pool: &Pool) -> &[BackendConfig] {
    match &pool.source {
        BackendSource::Static(backends) => backends,
        BackendSource::Fleet { .. } | BackendSource::NodeLocal { .. } => &[],
    }
}

fn compare(path: &str, old: &Settings, new: &Settings, lines: &mut Vec<String>) {
    compare_with(&format!("{path}:"), old, new, lines);
}

/// Adds `PREFIX KEY OLD → NEW` for each key whose value differs; a key that one side lacks counts as not set there.
fn compare_with(prefix: &str, old: &Settings, new: &Settings, lines: &mut Vec<String>) {
    let value_in = |settings: &Settings, key: &str| {
        settings.iter().find(|(other, _)| other == key).map_or(Value::Unset, |(_, value)| value.clone())
    };
    let gone = old.iter().filter(|(key, _)| !new.iter().any(|(other, _)| other == key));
    for (key, _) in gone.chain(new) {
        match (value_in(old, key), value_in(new, key)) {
            (old, new) if old == new => {}
            (Value::Secret(_), Value::Secret(_)) => lines.push(format!("{prefix} {key} changed")),
            (old, new) => lines.push(format!("{prefix} {key} {old} → {new}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = r#"
        [pool.rw]
        balance = "first"
        queue.timeout = "30s"
        probe = { kind = "query", user = "probe", password = "one" }
        backend = [{ address = "10.0.0.6:6432" }, { address = "10.0.0.7:6432" }, { address = "10.0.0.8:6432" }]
        [listener.rw]
        bind = "127.0.0.1:5432"
        pool = "rw"
        [listener.old]
        bind = "127.0.0.1:5433"
        pool = "rw"
    "#;

    fn config(text: &str) -> Config {
        Config::from_str_named(text, "pgsplice.toml").unwrap().0
    }

    #[test]
    fn the_same_text_is_no_change() {
        assert!(diff(&config(OLD), &config(&format!("\n# moved down\n{OLD}"))).is_empty());
    }

    #[test]
    fn every_kind_of_change_is_a_line() {
        let new = r#"
            [proxy]
            threads = 4
            [log]
            format = "json"
            level = "debug"
            [guard]
            interfaces = "eth0"
            deny = "192.0.2.0/24"
            [splice]
            interfaces = ["eth0", "eth1"]
            source_ports = "20000-29999"
            [pool.rw]
            balance = "first"
            queue.timeout = "10s"
            probe = { kind = "query", user = "probe", password = "two" }
            backend = [{ address = "10.0.0.8:6432", weight = 2 }, { address = "10.0.0.7:6432" }, { address = "10.0.0.9:6432" }]
            [pool.ro]
            backend = [{ address = "10.0.0.9:5432" }]
            [listener.rw]
            bind = ["127.0.0.1:5432", "127.0.0.2:5432"]
            pool = "rw"
            splice = "xdp"
            splice_after = "50ms"
            [listener.ro]
            bind = "127.0.0.1:5434"
            pool = "ro"
        "#;
        let diff = diff(&config(OLD), &config(new));
        assert_eq!(
            diff.lines,
            [
                "log: level info → debug",
                "guard: deny none → 192.0.2.0/24",
                "pool.ro: added",
                "pool.rw: queue.timeout 30s → 10s",
                "pool.rw: probe.password changed",
                "pool.rw: backend 10.0.0.6:6432 removed",
                "pool.rw: backend 10.0.0.8:6432 weight 1 → 2",
                "pool.rw: backend 10.0.0.9:6432 added",
                "pool.rw: backends in another order",
                "listener.old: removed",
                "listener.ro: added",
                "listener.rw: bind 127.0.0.1:5432 → 127.0.0.1:5432, 127.0.0.2:5432",
                "listener.rw: splice auto → xdp",
                "listener.rw: splice_after auto → 50ms",
            ]
        );
        assert_eq!(
            diff.needs_restart,
            [
                "proxy: threads 0 → 4",
                "splice: interfaces none → eth0, eth1",
                "splice: source_ports 12000-32767 → 20000-29999",
                "log: format text → json",
                "guard: interfaces none → eth0",
            ]
        );
        let changes = |added: &[&str], removed: &[&str], changed: &[&str]| {
            let owned = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
            Changes { added: owned(added), removed: owned(removed), changed: owned(changed) }
        };
        assert_eq!(diff.listeners, changes(&["ro"], &["old"], &["rw"]));
        assert_eq!(diff.pools, changes(&["ro"], &[], &["rw"]));
        assert_eq!(diff.clusters, Changes::default());
        assert!(diff.log && diff.deny);
    }
}
