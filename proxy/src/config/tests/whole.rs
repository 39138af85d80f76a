//! Whole files: what is missing, what does not fit together, which line is blamed, and what comes out of a good one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;

use super::FULL;
use crate::config::settings::{self, Settings, Value};
use crate::config::*;

fn errors(text: &str) -> Vec<String> {
    let errors = Config::from_str_named(text, "pgsplice.toml").expect_err(text);
    errors.errors.iter().map(ToString::to_string).collect()
}

fn warnings(text: &str) -> Vec<String> {
    let (_, warnings) = Config::from_str_named(text, "pgsplice.toml").expect(text);
    warnings.iter().map(ToString::to_string).collect()
}

/// A folder with the files `FULL` names.
fn folder() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    for file in ["ca.pem", "cert.pem", "key.pem", "etcd.password"] {
        let path = folder.path().join(file);
        std::fs::write(&path, "from file\nsecond line\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    folder
}

#[test]
fn all_errors_come_at_once_by_line() {
    let text = r#"
[listener.rw]
bind = [
  "10.0.0.1:5432",
  "10.0.0.2",
]
pool = "wr"

[pool.rw.queue]
size = "many"
timout = "3s"

[pool.rw]
route = "fleet"

[pool.ro]
cluster = "main"

[cluster.main]
"#;
    assert_eq!(
        errors(text),
        [
            r#"pgsplice.toml:5: listener.rw.bind: "10.0.0.2" has no port; expected ip:port such as 10.0.0.1:5432 or [2001:db8::1]:5432, or *:5432 for every address"#,
            r#"pgsplice.toml:7: listener.rw.pool: there is no pool "wr" (did you mean "rw"?); expected the name of a pool: "ro", "rw""#,
            r#"pgsplice.toml:10: pool.rw.queue.size: "many" is text; expected a whole number from 0 to 10000000"#,
            r#"pgsplice.toml:11: pool.rw.queue.timout: unknown key (did you mean "timeout"?); expected one of size, timeout"#,
            r#"pgsplice.toml:13: pool.rw: nothing says where its backends are; expected [[pool.rw.backend]] sections or cluster = "NAME""#,
            r#"pgsplice.toml:14: pool.rw.route: this pool has no cluster; expected cluster = "NAME" beside it"#,
            r#"pgsplice.toml:16: pool.ro.route: missing; expected "fleet" or "node-local""#,
            r#"pgsplice.toml:19: cluster.main.scope: missing; expected Patroni's scope, as in its own configuration"#,
            r#"pgsplice.toml:19: cluster.main: nothing says where Patroni keeps its keys; expected a section [cluster.main.etcd] with endpoints = ["http://10.0.0.1:2379"], or consul, zookeeper, rest or static"#,
        ]
    );
}

#[test]
fn an_empty_file_needs_a_listener() {
    let message =
        "pgsplice.toml:1: listener: there is none; expected at least one section [listener.NAME] with bind and pool";
    assert_eq!(errors(""), [message]);
    assert_eq!(errors("listener = {}"), [message]);
}

#[test]
fn broken_toml_is_blamed_line_by_line() {
    assert_eq!(
        errors("[listener.rw]\nbind = *:5432\nport = 10.0.0.1\npool = \"rw\"\npool = \"ro\"\n[pool.rw\nbackend = [\n"),
        [
            "pgsplice.toml:2: string values must be quoted; expected text in quotes, a number, true or false",
            "pgsplice.toml:3: invalid float; expected text in quotes, a number, true or false",
            "pgsplice.toml:5: duplicate key; expected each key once in its section",
            "pgsplice.toml:6: unclosed table; expected `]`",
            "pgsplice.toml:7: unclosed array; expected `]`",
        ]
    );
}

#[test]
fn a_file_that_cannot_be_read_says_why() {
    let missing = Config::load(Path::new("/nonexistent/pgsplice.toml")).unwrap_err();
    assert_eq!(
        missing.to_string(),
        "/nonexistent/pgsplice.toml: cannot read it: No such file or directory; expected a readable TOML file"
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), b"[log]\nlevel = \"\xff\"\n").unwrap();
    let binary = Config::load(file.path()).unwrap_err();
    let name = file.path().display();
    assert_eq!(binary.to_string(), format!("{name}:2: this line is not UTF-8; expected TOML, which is UTF-8 text"));
}

#[test]
fn the_later_of_two_listeners_at_one_address_is_blamed() {
    let text = r#"
[pool.p]
backend = [{ address = "127.0.0.1:6432" }]
[listener.z]
bind = "127.0.0.1:5432"
pool = "p"
[listener.a]
bind = ["127.0.0.1:5433", "127.0.0.1:5432"]
pool = "p"
"#;
    assert_eq!(
        errors(text),
        [
            "pgsplice.toml:8: listener.a.bind: 127.0.0.1:5432 is also listener.z (line 4); expected an address of its own"
        ]
    );
}

#[test]
fn a_backend_that_is_the_listener_itself_is_found_behind_a_wildcard() {
    let text = |bind: &str, backend: &str| {
        format!(
            "pool.p.backend = [{{ address = \"{backend}\" }}]\nlistener.l.pool = \"p\"\nlistener.l.bind = \"{bind}\"\n"
        )
    };
    for (bind, backend) in
        [("*:5432", "127.0.0.1:5432"), ("0.0.0.0:5432", "localhost:5432"), ("[::]:5432", "[::1]:5432")]
    {
        let found = errors(&text(bind, backend));
        assert!(found[0].contains("is listener.l itself"), "{found:?}");
    }
    assert!(warnings(&text("127.0.0.1:5432", "127.0.0.2:5432")).is_empty());
}

#[test]
fn dubious_settings_are_warnings() {
    let text = r#"
[guard]
deny = "192.0.2.0/24"
[cluster.c]
scope = "main"
[cluster.c.etcd]
endpoints = "http://10.0.0.1"
user = "root"
password = "secret"
tls.server_name = "etcd"
[cluster.c.proof]
fast_interval = "2s"
[pool.p]
backend = [{ address = "a:1", backup = true, peer_id = 3 }, { address = "b:1", backup = true }]
[pool.p.queue]
size = 0
timeout = "1s"
[pool.p.probe]
interval = "1s"
timeout = "3s"
fast_interval = "2s"
[pool.q]
backend = [{ address = "a:1" }]
passive.failures = 0
tcp = { keepalive_idle = 0, keepalive_count = 3 }
[pool.q.probe]
kind = "none"
rise = 3
[listener.l]
bind = "127.0.0.1:0"
pool = "p"
"#;
    assert_eq!(
        warnings(text),
        [
            "pgsplice.toml:3: warning: guard.deny: nothing is dropped, because guard.interfaces is empty",
            "pgsplice.toml:4: warning: cluster.c: no pool uses it",
            "pgsplice.toml:7: warning: cluster.c.etcd.endpoints: the etcd password crosses the network in the clear, because no endpoint is https",
            "pgsplice.toml:10: warning: cluster.c.etcd.tls: not used, because no endpoint is https",
            "pgsplice.toml:12: warning: cluster.c.proof.fast_interval: 2s is longer than the interval of 1s",
            "pgsplice.toml:14: warning: pool.p.backend: every backend is a backup",
            "pgsplice.toml:14: warning: pool.p.backend: some backends have a peer_id and some have none; cancel requests by peer_id need it on all",
            "pgsplice.toml:17: warning: pool.p.queue.timeout: nobody waits, because the queue's size is 0",
            "pgsplice.toml:20: warning: pool.p.probe.timeout: 3s is longer than the interval of 1s",
            "pgsplice.toml:21: warning: pool.p.probe.fast_interval: 2s is longer than the interval of 1s",
            "pgsplice.toml:22: warning: pool.q: no listener uses it",
            "pgsplice.toml:25: warning: pool.q.tcp.keepalive_count: not used, because keepalive_idle is 0",
            "pgsplice.toml:27: warning: pool.q.probe.kind: neither probes nor failed connects take a dead backend out of this pool",
            "pgsplice.toml:28: warning: pool.q.probe.rise: not used, because kind is \"none\"",
            "pgsplice.toml:30: warning: listener.l.bind: with port 0 the kernel picks another port at each start",
        ]
    );
}

#[test]
fn dubious_settings_of_the_splice_are_warnings() {
    let unused = r#"
[splice]
mode = "tc"
max_sessions = 5
source_ports = "20000-29999"
[pool.p]
backend = [{ address = "a:1" }]
[listener.l]
bind = "127.0.0.1:5432"
pool = "p"
splice = "relay"
splice_after = 2
"#;
    assert_eq!(
        warnings(unused),
        [
            "pgsplice.toml:3: warning: splice.mode: not used, because splice.interfaces is empty",
            "pgsplice.toml:4: warning: splice.max_sessions: not used, because splice.interfaces is empty",
            "pgsplice.toml:5: warning: splice.source_ports: not used, because splice.interfaces is empty",
            "pgsplice.toml:12: warning: listener.l.splice_after: not used, because splice is \"relay\"",
        ]
    );
    let nobody = r#"
[splice]
interfaces = ["eth0"]
[pool.p]
backend = [{ address = "a:1" }]
[listener.l]
bind = "127.0.0.1:15432"
pool = "p"
splice = "sockmap"
"#;
    assert_eq!(
        warnings(nobody),
        [
            "pgsplice.toml:3: warning: splice.interfaces: nothing runs there, because every listener's splice is another road",
            "pgsplice.toml:7: warning: listener.l.bind: port 15432 is within splice.source_ports, 12000-32767: a session may hold it",
        ]
    );
}

#[test]
fn splice_after_is_turns_or_time() {
    let after = |text: &str| {
        let text = format!("splice_after = {text}\n");
        let text = FULL[2].replace("splice_after = \"50ms\"\n", &text);
        Config::from_str_named(&text, "pgsplice.toml").unwrap().0.listeners["l"].splice_after
    };
    assert_eq!(after("\"auto\""), SpliceAfter::Auto);
    assert_eq!(after("0"), SpliceAfter::Turns(0));
    assert_eq!(after("12"), SpliceAfter::Turns(12));
    assert_eq!(after("\"50ms\""), SpliceAfter::Time(Duration::from_millis(50)));
}

#[test]
fn a_fleet_cannot_be_found_without_a_registry() {
    let text = FULL[5].replace("node-local", "fleet").replace("address = \"conn-url\"", "");
    assert_eq!(
        errors(&text),
        [
            "pgsplice.toml:7: pool.p.route: agents cannot register through Patroni's REST API; expected route = \"node-local\", or backend sections"
        ]
    );
}

#[test]
fn a_static_cluster_has_no_patroni_and_no_registry() {
    let text = FULL[6]
        .replace("[cluster.c.static]", "[cluster.c]\nscope = \"main\"\n[cluster.c.static]")
        .replace("password_file = \"etcd.password\"", "")
        .replace("\"any\"", "\"sync\"");
    assert_eq!(
        errors(&text),
        [
            "pgsplice.toml:19: pool.p.role: only Patroni tells who has this role, and a static cluster has none; expected \"primary\", \"replica\" or \"any\""
        ]
    );
    let text = text.replace("\"sync\"", "\"primary\"");
    let (config, said) = Config::from_str_named(&text, "pgsplice.toml").unwrap();
    assert_eq!(
        said[0].to_string(),
        "pgsplice.toml:3: warning: cluster.c.scope: not used, because a static cluster has no Patroni"
    );
    let StoreConfig::Static(fixed) = &config.clusters["c"].store else { panic!("not static") };
    assert_eq!((fixed.password.as_deref(), &*fixed.members[0].address), (None, "pg1.example:5432"));
    for (from, to, expected) in [
        (
            "primary = \"pg1\"",
            "primary = \"pg3\"",
            "cluster.c.static.primary: there is no member \"pg3\" (did you mean",
        ),
        ("name = \"pg2\"", "name = \"pg1\"", "cluster.c.static.member[1].name: pg1 is also that of another member"),
        ("user = \"pgsplice\"", "", "cluster.c.static.user: missing; expected the name of a PostgreSQL user"),
        ("address = 6432", "address = \"proxy-url\"", "pool.p.address: a member of a static cluster has no proxy_url"),
        ("\"node-local\"", "\"fleet\"\nrole = \"primary\"", "pool.p.route: agents cannot register in a static cluster"),
    ] {
        let text = text.replace("role = \"primary\"\n        address = 6432", "address = 6432").replace(from, to);
        let text = if from.contains("node-local") { text.replace("address = 6432", "") } else { text };
        let found = errors(&text).join("\n");
        assert!(found.contains(expected), "{found}");
    }
}

#[test]
fn a_secret_in_the_clear_is_a_warning() {
    let head = "[pool.p]\ncluster = \"c\"\nroute = \"fleet\"\n[listener.l]\nbind = \"127.0.0.1:1\"\npool = \"p\"\n[cluster.c]\nscope = \"main\"\n";
    let consul = format!("{head}consul = {{ endpoints = \"http://a\", token = \"x\" }}\n");
    let zookeeper = format!("{head}zookeeper = {{ hosts = \"a\", user = \"u\", password = \"x\" }}\n");
    let head = head.replace("fleet", "node-local\"\naddress = \"conn-url").replace("scope = \"main\"\n", "");
    let fixed = format!(
        "{head}[cluster.c.static]\nuser = \"u\"\npassword = \"x\"\nmember = [{{ name = \"a\", address = \"a\" }}]\n"
    );
    assert_eq!(
        [warnings(&consul), warnings(&zookeeper), warnings(&fixed)].concat(),
        [
            "pgsplice.toml:9: warning: cluster.c.consul.endpoints: the Consul token crosses the network in the clear, because no endpoint is https",
            "pgsplice.toml:9: warning: cluster.c.zookeeper.hosts: the ZooKeeper password crosses the network in the clear, because there is no tls.ca",
            "pgsplice.toml:9: warning: cluster.c.static: the PostgreSQL password crosses the network in the clear if a server asks for it so, because there is no proof.tls.ca",
        ]
    );
}

#[test]
fn a_password_file_gives_its_first_line_and_should_be_private() {
    use std::os::unix::fs::PermissionsExt;
    let folder = folder();
    let name = folder.path().join("pgsplice.toml").display().to_string();
    let (config, warnings) = Config::from_str_named(FULL[1], &name).unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    let StoreConfig::Etcd(etcd) = &config.clusters["c"].store else { panic!("not etcd") };
    assert_eq!(etcd.password.as_deref(), Some("from file"));
    assert_eq!(etcd.tls.ca, Some(folder.path().join("ca.pem")));

    let secret = folder.path().join("etcd.password");
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (_, warnings) = Config::from_str_named(FULL[1], &name).unwrap();
    let file = secret.display();
    assert_eq!(
        warnings[0].to_string(),
        format!(
            "{name}:11: warning: cluster.c.etcd.password_file: every user of this host can read {file}; chmod o-r it"
        )
    );

    std::fs::write(&secret, "\n").unwrap();
    let errors = Config::from_str_named(FULL[1], &name).unwrap_err();
    assert_eq!(
        errors.errors[0].to_string(),
        format!(
            "{name}:11: cluster.c.etcd.password_file: the first line of {file} is empty; \
             expected a file with the password in its first line"
        )
    );
}

#[test]
fn every_address_of_the_host_is_both_families() {
    for text in ["*:5432", ":5432"] {
        let text = format!(
            "pool.p.backend = [{{ address = \"a:1\" }}]\nlistener.l.pool = \"p\"\nlistener.l.bind = \"{text}\"\n"
        );
        let (config, _) = Config::from_str_named(&text, "pgsplice.toml").unwrap();
        let mut both: Vec<std::net::SocketAddr> = vec!["0.0.0.0:5432".parse().unwrap()];
        if Path::new("/proc/net/if_inet6").exists() {
            both.push("[::]:5432".parse().unwrap());
        }
        assert_eq!(config.listeners["l"].bind, both);
    }
}

#[test]
fn addresses_alone_make_a_configuration() {
    let listen = ["127.0.0.1:5432".parse().unwrap()];
    let backends = ["127.0.0.1:6432".parse().unwrap(), "127.0.0.1:6433".parse().unwrap()];
    let config = Config::from_addresses(&listen, &backends);
    assert_eq!(config.listeners["default"].bind, listen);
    assert_eq!(config.listeners["default"].pool, "default");
    let written = write(&config);
    assert_eq!(Config::from_str_named(&written, "pgsplice.toml").unwrap().0, config, "{written}");
}

#[test]
fn addresses_alone_are_checked_too() {
    let check = |listen: &[&str], backends: &[&str]| {
        let parse =
            |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect::<Vec<std::net::SocketAddr>>();
        Config::from_addresses(&parse(listen), &parse(backends)).check().map_err(|errors| errors.to_string())
    };
    assert_eq!(check(&["127.0.0.1:5432"], &["127.0.0.1:6432"]), Ok(Vec::new()));
    for (listen, backends, message) in [
        (
            &["127.0.0.1:1"][..],
            &["127.0.0.1:1"][..],
            "pool.default.backend[0].address: 127.0.0.1:1 is listener.default itself, so sessions would go in circles; \
             expected the address of a PgBouncer or PostgreSQL",
        ),
        (
            &["127.0.0.1:1", "127.0.0.1:1"],
            &["127.0.0.1:2"],
            "listener.default.bind: 127.0.0.1:1 is there twice; expected an address of its own",
        ),
        (
            &["127.0.0.1:1"],
            &["127.0.0.1:2", "127.0.0.1:2"],
            "pool.default.backend[1].address: 127.0.0.1:2 is also that of another backend; expected an address once",
        ),
    ] {
        assert_eq!(check(listen, backends), Err(message.into()));
    }
}

#[test]
fn what_is_read_is_what_is_written() {
    let folder = folder();
    let name = folder.path().join("pgsplice.toml").display().to_string();
    for text in FULL {
        // A password for PostgreSQL without it is a warning.
        let text = text.replace("[cluster.c.static]", "[cluster.c.proof.tls]\nca = \"ca.pem\"\n[cluster.c.static]");
        let (config, warnings) = Config::from_str_named(&text, &name).unwrap();
        assert!(warnings.is_empty(), "{warnings:?}");
        let written = write(&config);
        assert_eq!(Config::from_str_named(&written, &name).unwrap().0, config, "{written}");
    }
}

#[test]
fn no_key_is_read_and_forgotten() {
    let folder = folder();
    let name = folder.path().join("pgsplice.toml").display().to_string();
    let defaults: Settings = [
        settings::proxy(&Proxy::default()),
        settings::log(&Log::default()),
        settings::admin(&Admin::default()),
        settings::guard(&Guard::default()),
        settings::splice(&Splice::default()),
    ]
    .concat();
    let (config, _) = Config::from_str_named(FULL[0], &name).unwrap();
    let set = [
        settings::proxy(&config.proxy),
        settings::log(&config.log),
        settings::admin(&config.admin),
        settings::guard(&config.guard),
        settings::splice(&config.splice),
    ]
    .concat();
    differ(&defaults, &set);
    differ(&settings::pool(&Pool::default()), &settings::pool(&config.pools["p"]));
    differ(&settings::listener(&Listener::default()), &settings::listener(&config.listeners["l"]));
    let BackendSource::Static(backends) = &config.pools["p"].source else { panic!("not static") };
    differ(&settings::backend(&BackendConfig::at("a:1")), &settings::backend(&backends[0]));
    let (config, _) = Config::from_str_named(FULL[1], &name).unwrap();
    differ(&settings::cluster(&Cluster::default()), &settings::cluster(&config.clusters["c"]));
    let others = [
        StoreConfig::Consul(ConsulConfig::default()),
        StoreConfig::Zookeeper(ZookeeperConfig::default()),
        StoreConfig::Rest(RestConfig::default()),
        StoreConfig::Static(StaticConfig::default()),
    ];
    for (store, text) in others.iter().zip(&FULL[3..]) {
        let (config, _) = Config::from_str_named(text, &name).unwrap();
        differ(&settings::store(store), &settings::store(&config.clusters["c"].store));
    }
}

fn differ(defaults: &Settings, set: &Settings) {
    for (key, value) in defaults {
        let same = set.iter().any(|(other, set)| other == key && set == value);
        assert!(!same, "{key} is {value}, its default");
    }
}

#[test]
fn the_defaults_of_a_probe_that_logs_in() {
    let text = "pool.p.backend = [{ address = \"a:1\" }]\npool.p.probe = { kind = \"query\", user = \"u\" }\n\
        listener.l = { bind = \"127.0.0.1:1\", pool = \"p\" }\n";
    let (config, _) = Config::from_str_named(text, "pgsplice.toml").unwrap();
    let expected =
        ProbeKind::Query { user: "u".into(), password: None, database: "u".into(), query: "SELECT 1".into() };
    assert_eq!(config.pools["p"].probe.kind, expected);
}

#[test]
fn the_origin_says_where_a_key_stands() {
    let text = "pool.p.backend = [{ address = \"a:1\" }]\n[listener.l]\npool = \"p\"\nbind = \"127.0.0.1:1\"\n";
    let (config, _) = Config::from_str_named(text, "pgsplice.toml").unwrap();
    assert_eq!(config.origin.blame("listener.l.bind"), "pgsplice.toml:4: listener.l.bind: ");
    assert_eq!(config.origin.blame("listener.l.backlog"), "pgsplice.toml:2: listener.l.backlog: ");
    assert_eq!(config.origin.blame("admin.http"), "pgsplice.toml: admin.http: ");
    let none = Config::from_addresses(&[], &[]);
    assert_eq!(none.origin.blame("listener.default.bind"), "listener.default.bind: ");
}

#[test]
fn a_namespace_is_written_as_patroni_takes_it() {
    for written in ["service", "/service", "service/", "/service/"] {
        let text = FULL[2].replace("scope =", &format!("namespace = \"{written}\"\nscope ="));
        let (config, _) = Config::from_str_named(&text, "pgsplice.toml").unwrap();
        assert_eq!(config.clusters["c"].namespace, "/service");
        assert_eq!(config.clusters["c"].leader_absent_debounce, Duration::from_secs(1));
    }
}

/// A configuration as TOML, from its settings.
fn write(config: &Config) -> String {
    let mut text = String::new();
    let mut section = |path: String, settings: Settings| {
        for (key, value) in settings {
            let value = match value {
                Value::Text(value) | Value::Secret(value) => format!("{value:?}"),
                Value::Bare(value) => value,
                Value::List(values) => format!("{values:?}"),
                Value::Unset => continue,
            };
            text.push_str(&format!("{path}.{key} = {value}\n"));
        }
    };
    section("proxy".into(), settings::proxy(&config.proxy));
    section("log".into(), settings::log(&config.log));
    section("admin".into(), settings::admin(&config.admin));
    section("guard".into(), settings::guard(&config.guard));
    section("splice".into(), settings::splice(&config.splice));
    for (name, cluster) in &config.clusters {
        section(format!("cluster.{name}"), settings::cluster(cluster));
    }
    for (name, pool) in &config.pools {
        section(format!("pool.{name}"), settings::pool(pool));
    }
    for (name, listener) in &config.listeners {
        section(format!("listener.{name}"), settings::listener(listener));
    }
    for (name, pool) in &config.pools {
        let BackendSource::Static(backends) = &pool.source else { continue };
        for backend in backends {
            text.push_str(&format!("[[pool.{name}.backend]]\n"));
            for (key, value) in settings::backend(backend) {
                match value {
                    Value::Text(value) => text.push_str(&format!("{key} = {value:?}\n")),
                    Value::Unset => {}
                    value => text.push_str(&format!("{key} = {value}\n")),
                }
            }
        }
    }
    text
}

/// Lines of a good file in any order, some of them bent: deeper than what random characters reach.
fn bent_file() -> impl Strategy<Value = String> {
    let lines: Vec<String> = FULL.iter().flat_map(|text| text.lines()).map(|line| line.trim().to_owned()).collect();
    let values = prop::sample::select(vec!["0", "-1", "\"\"", "[]", "{}", "\"é\"", "[[]]", "true", "1e9", "\"*:1\""]);
    let line = (prop::sample::select(lines), prop::option::of(values)).prop_map(|(line, value)| match value {
        Some(value) => format!("{} = {value}", line.split('=').next().unwrap_or_default().trim()),
        None => line,
    });
    prop::collection::vec(line, 0..30).prop_map(|lines| lines.join("\n"))
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC*") {
        let _ = Config::from_str_named(&text, "pgsplice.toml");
    }

    #[test]
    fn no_bytes_of_toml_panic(text in "[\\[\\]{}=.,\"'#a-c0-9\n é]*") {
        let _ = Config::from_str_named(&text, "pgsplice.toml");
    }

    #[test]
    fn no_bent_file_panics(text in bent_file()) {
        if let Err(errors) = Config::from_str_named(&text, "pgsplice.toml") {
            prop_assert!(!errors.errors.is_empty());
            let lines: Vec<_> = errors.errors.iter().map(|error| error.line).collect();
            prop_assert!(lines.is_sorted());
            prop_assert!(errors.errors.iter().all(|error| !error.problem.is_empty() && !error.expected.is_empty()));
        }
    }
}

/// Kept from becoming relative to anything else: an absolute path stays as it is.
#[test]
fn an_absolute_file_is_taken_as_it_is() {
    let folder = folder();
    let ca: PathBuf = folder.path().join("ca.pem");
    let text = FULL[2].replace("[pool.p]", &format!("proof.tls.ca = {ca:?}\n[pool.p]"));
    let (config, _) = Config::from_str_named(&text, "elsewhere/pgsplice.toml").unwrap();
    assert_eq!(config.clusters["c"].proof.tls.ca, Some(ca));
}
