//! Each field wrong, with the message a person sees.

use std::collections::BTreeSet;

use super::{schema_keys, schema_of};
use crate::config::{Config, ConfigErrors};

/// What stands around a wrong field, key by key; a case that sets one of them takes its place.
type Around = &'static [(&'static str, &'static str)];

const STATIC: Around = &[
    ("listener.l.bind", r#""127.0.0.1:5432""#),
    ("listener.l.pool", r#""p""#),
    ("pool.p.backend", r#"[{ address = "127.0.0.1:6432" }]"#),
];

const CLUSTER: Around = &[
    ("listener.l.bind", r#""127.0.0.1:5432""#),
    ("listener.l.pool", r#""p""#),
    ("cluster.c.scope", r#""main""#),
    ("cluster.c.etcd.endpoints", r#""http://10.0.0.1:2379""#),
    ("pool.p.cluster", r#""c""#),
    ("pool.p.route", r#""node-local""#),
    ("pool.p.address", "6432"),
];

const CONSUL: Around = &[
    ("listener.l.bind", r#""127.0.0.1:5432""#),
    ("listener.l.pool", r#""p""#),
    ("cluster.c.scope", r#""main""#),
    ("cluster.c.consul.endpoints", r#""http://10.0.0.1:8500""#),
    ("pool.p.cluster", r#""c""#),
    ("pool.p.route", r#""fleet""#),
];

const ZOOKEEPER: Around = &[
    ("listener.l.bind", r#""127.0.0.1:5432""#),
    ("listener.l.pool", r#""p""#),
    ("cluster.c.scope", r#""main""#),
    ("cluster.c.zookeeper.hosts", r#""10.0.0.1""#),
    ("pool.p.cluster", r#""c""#),
    ("pool.p.route", r#""fleet""#),
];

const REST: Around = &[
    ("listener.l.bind", r#""127.0.0.1:5432""#),
    ("listener.l.pool", r#""p""#),
    ("cluster.c.scope", r#""main""#),
    ("cluster.c.rest.endpoints", r#""http://10.0.0.1""#),
    ("pool.p.cluster", r#""c""#),
    ("pool.p.route", r#""node-local""#),
    ("pool.p.address", "6432"),
];

const REPLICATION: Around = &[
    ("listener.l.bind", r#""127.0.0.1:5432""#),
    ("listener.l.pool", r#""p""#),
    ("cluster.c.static.user", r#""pgsplice""#),
    ("cluster.c.static.member", r#"[{ name = "pg1", address = "10.0.0.1" }]"#),
    ("pool.p.cluster", r#""c""#),
    ("pool.p.route", r#""node-local""#),
    ("pool.p.address", "6432"),
];

#[rustfmt::skip]
const CASES: &[(Around, &str, &str)] = &[
    (STATIC, r#"proxy.threads = -1"#, r#"pgsplice.toml:1: proxy.threads: -1 is too small; expected a whole number from 0 to 1024"#),
    (STATIC, r#"proxy.threads = "two""#, r#"pgsplice.toml:1: proxy.threads: "two" is text; expected a whole number from 0 to 1024"#),
    (STATIC, r#"proxy.drain_timeout = 30"#, r#"pgsplice.toml:1: proxy.drain_timeout: 30 has no unit; expected a duration such as 2s, 500ms or 1h30m, or 0 for cutting at once"#),
    (STATIC, r#"log.format = "jsn""#, r#"pgsplice.toml:1: log.format: "jsn" is not known (did you mean "json"?); expected "text" or "json""#),
    (STATIC, r#"log.level = "=,""#, r#"pgsplice.toml:1: log.level: "=," is not a log filter; expected a level (error, warn, info, debug, trace) or directives such as info,pgsplice=debug"#),
    (STATIC, r#"log.level = "verbose""#, r#"pgsplice.toml:1: log.level: "verbose" is not a log filter; expected a level (error, warn, info, debug, trace) or directives such as info,pgsplice=debug"#),
    (STATIC, r#"log.access = "yes""#, r#"pgsplice.toml:1: log.access: "yes" is text; expected true or false"#),
    (STATIC, r#"admin.socket = "admin.sock""#, r#"pgsplice.toml:1: admin.socket: "admin.sock" is not absolute; expected an absolute path of at most 107 bytes"#),
    (STATIC, r#"admin.http = "localhost:9187""#, r#"pgsplice.toml:1: admin.http: "localhost" is not an IP address; expected ip:port such as 127.0.0.1:9187"#),
    (STATIC, r#"admin.http = ":9187""#, r#"pgsplice.toml:1: admin.http: "" is not an IP address; expected ip:port such as 127.0.0.1:9187"#),
    (STATIC, r#"guard.interfaces = ["eth0", "a name too long for it"]"#, r#"pgsplice.toml:1: guard.interfaces: "a name too long for it" cannot be the name of an interface; expected the name of a network interface, such as eth0"#),
    (STATIC, r#"guard.mode = "driver""#, r#"pgsplice.toml:1: guard.mode: "driver" is not known; expected one of "auto", "native", "generic""#),
    (STATIC, r#"guard.pin_path = "bpf""#, r#"pgsplice.toml:1: guard.pin_path: "bpf" is not absolute; expected an absolute path"#),
    (STATIC, r#"guard.deny = "10.0.0.1/8""#, r#"pgsplice.toml:1: guard.deny: 10.0.0.1/8 has host bits set (the network is 10.0.0.0/8); expected an IP address or a CIDR such as 192.0.2.0/24 or 2001:db8::/32"#),
    (STATIC, r#"guard.deny = ["10.0.0.0/8", "10.0.0.0/33"]"#, r#"pgsplice.toml:1: guard.deny: 10.0.0.0/33 has a prefix longer than 32 bits; expected an IP address or a CIDR such as 192.0.2.0/24 or 2001:db8::/32"#),
    (STATIC, r#"splice.interfaces = ["eth0", "eth/1"]"#, r#"pgsplice.toml:1: splice.interfaces: "eth/1" cannot be the name of an interface; expected the name of a network interface, such as eth0"#),
    (STATIC, r#"splice.interfaces = ["eth0", "eth0"]"#, r#"pgsplice.toml:1: splice.interfaces: eth0 is there twice; expected each once"#),
    (STATIC, r#"splice.mode = "native""#, r#"pgsplice.toml:1: splice.mode: "native" is not known; expected one of "auto", "xdp", "tc""#),
    (STATIC, r#"splice.max_sessions = 0"#, r#"pgsplice.toml:1: splice.max_sessions: 0 is too small; expected a whole number from 1 to 1000000"#),
    (STATIC, r#"splice.source_ports = 12000"#, r#"pgsplice.toml:1: splice.source_ports: 12000 is a number; expected two ports from 1024 to 65535 such as "12000-32767""#),
    (STATIC, r#"splice.source_ports = "12000""#, r#"pgsplice.toml:1: splice.source_ports: "12000" is not a range; expected two ports from 1024 to 65535 such as "12000-32767""#),
    (STATIC, r#"splice.source_ports = "1000-32767""#, r#"pgsplice.toml:1: splice.source_ports: 1000 is below 1024; expected two ports from 1024 to 65535 such as "12000-32767""#),
    (STATIC, r#"splice.source_ports = "12000-65536""#, r#"pgsplice.toml:1: splice.source_ports: "65536" is not a port; expected two ports from 1024 to 65535 such as "12000-32767""#),
    (STATIC, r#"splice.source_ports = "20000-12000""#, r#"pgsplice.toml:1: splice.source_ports: 20000 is above 12000; expected two ports from 1024 to 65535 such as "12000-32767""#),
    (CLUSTER, r#"cluster.c.scope = 5"#, r#"pgsplice.toml:1: cluster.c.scope: 5 is a number; expected Patroni's scope, as in its own configuration"#),
    (CLUSTER, r#"cluster.c.scope = "a/b""#, r#"pgsplice.toml:1: cluster.c.scope: "a/b" has a slash; expected Patroni's scope, without its namespace"#),
    (CLUSTER, r#"cluster.c.namespace = """#, r#"pgsplice.toml:1: cluster.c.namespace: "" is empty; expected Patroni's namespace, such as /service"#),
    (CLUSTER, r#"cluster.c.citus_group = -1"#, r#"pgsplice.toml:1: cluster.c.citus_group: -1 is too small; expected a whole number from 0 to 2147483647"#),
    (CLUSTER, r#"cluster.c.leader_absent_debounce = "1""#, r#"pgsplice.toml:1: cluster.c.leader_absent_debounce: "1" has no unit; expected a duration such as 2s, 500ms or 1h30m, or 0 for none"#),
    (CLUSTER, r#"cluster.c.switchover_hold = 0"#, r#"pgsplice.toml:1: cluster.c.switchover_hold: zero makes no sense here; expected a duration above zero, such as 2s, 500ms or 1h30m"#),
    (CLUSTER, r#"cluster.c.proof.user = "patroni""#, r#"pgsplice.toml:1: cluster.c.proof.user: there is no password for it; expected user and password (or password_file), both or neither"#),
    (CLUSTER, r#"cluster.c.proof.password = "secret""#, r#"pgsplice.toml:1: cluster.c.proof.password: there is no user for it; expected user and password (or password_file), both or neither"#),
    (CLUSTER, r#"cluster.c.proof.password_file = "/nonexistent"
cluster.c.proof.user = "patroni""#, r#"pgsplice.toml:1: cluster.c.proof.password_file: cannot read /nonexistent: No such file or directory; expected the path of a readable file with the password in its first line"#),
    (CLUSTER, r#"cluster.c.etcd.endpoints = []"#, r#"pgsplice.toml:1: cluster.c.etcd.endpoints: the list is empty; expected a URL such as http://10.0.0.1:2379 or https://etcd1:2379"#),
    (CLUSTER, r#"cluster.c.etcd.endpoints = "10.0.0.1:2379""#, r#"pgsplice.toml:1: cluster.c.etcd.endpoints: "10.0.0.1:2379" has no http:// or https://; expected a URL such as http://10.0.0.1:2379 or https://etcd1:2379"#),
    (CLUSTER, r#"cluster.c.etcd.endpoints = "http://10.0.0.1:2379/v3""#, r#"pgsplice.toml:1: cluster.c.etcd.endpoints: "http://10.0.0.1:2379/v3" is more than scheme, host and port; expected a URL such as http://10.0.0.1:2379 or https://etcd1:2379"#),
    (CLUSTER, r#"cluster.c.etcd.endpoints = ["http://10.0.0.1", "http://10.0.0.1:2379"]"#, r#"pgsplice.toml:1: cluster.c.etcd.endpoints: http://10.0.0.1:2379 is there twice; expected each once"#),
    (CLUSTER, r#"cluster.c.etcd.endpoints = ["http://10.0.0.1", "https://10.0.0.2"]"#, r#"pgsplice.toml:1: cluster.c.etcd.endpoints: some are http and some https; expected one of the two for all"#),
    (CLUSTER, r#"cluster.c.etcd.user = "root""#, r#"pgsplice.toml:1: cluster.c.etcd.user: there is no password for it; expected user and password (or password_file), both or neither"#),
    (CLUSTER, r#"cluster.c.etcd.user = ""
cluster.c.etcd.password = "x""#, r#"pgsplice.toml:1: cluster.c.etcd.user: "" is empty; expected the name of an etcd user"#),
    (CLUSTER, r#"cluster.c.etcd.password = "secret""#, r#"pgsplice.toml:1: cluster.c.etcd.password: there is no user for it; expected user and password (or password_file), both or neither"#),
    (CLUSTER, r#"cluster.c.etcd.password = 5
cluster.c.etcd.user = "root""#, r#"pgsplice.toml:1: cluster.c.etcd.password: this is not text; expected a password in quotes"#),
    (CLUSTER, r#"cluster.c.etcd.password_file = "/nonexistent"
cluster.c.etcd.user = "root""#, r#"pgsplice.toml:1: cluster.c.etcd.password_file: cannot read /nonexistent: No such file or directory; expected the path of a readable file with the password in its first line"#),
    (CLUSTER, r#"cluster.c.etcd.password_file = "/dev/null"
cluster.c.etcd.user = "root""#, r#"pgsplice.toml:1: cluster.c.etcd.password_file: /dev/null is not a file; expected the path of a readable file with the password in its first line"#),
    (CLUSTER, r#"cluster.c.etcd.tls.ca = "/nonexistent/ca.pem""#, r#"pgsplice.toml:1: cluster.c.etcd.tls.ca: cannot read /nonexistent/ca.pem: No such file or directory; expected the path of a readable PEM file"#),
    (CLUSTER, r#"cluster.c.etcd.tls.cert = "/proc/self/status""#, r#"pgsplice.toml:1: cluster.c.etcd.tls.cert: there is no key for it; expected cert and key, both or neither"#),
    (CLUSTER, r#"cluster.c.etcd.tls.key = "/proc/self/status""#, r#"pgsplice.toml:1: cluster.c.etcd.tls.key: there is no cert for it; expected cert and key, both or neither"#),
    (CLUSTER, r#"cluster.c.etcd.tls.cert = "/"
cluster.c.etcd.tls.key = "/proc/self/status""#, r#"pgsplice.toml:1: cluster.c.etcd.tls.cert: / is not a file; expected the path of a readable PEM file"#),
    (CLUSTER, r#"cluster.c.etcd.tls.server_name = 1"#, r#"pgsplice.toml:1: cluster.c.etcd.tls.server_name: 1 is a number; expected the name in the server's certificate"#),
    (CLUSTER, r#"cluster.c.etcd.connect_timeout = "0s""#, r#"pgsplice.toml:1: cluster.c.etcd.connect_timeout: zero makes no sense here; expected a duration above zero, such as 2s, 500ms or 1h30m"#),
    (CLUSTER, r#"cluster.c.etcd.keepalive_interval = "2 s""#, r#"pgsplice.toml:1: cluster.c.etcd.keepalive_interval: "2 s": " s" is not a unit of time; expected a duration above zero, such as 2s, 500ms or 1h30m"#),
    (CLUSTER, r#"cluster.c.etcd.keepalive_timeout = 1.5"#, r#"pgsplice.toml:1: cluster.c.etcd.keepalive_timeout: 1.5 is a number with a point; expected a duration above zero, such as 2s, 500ms or 1h30m"#),
    (CONSUL, r#"cluster.c.consul.endpoints = "10.0.0.1""#, r#"pgsplice.toml:1: cluster.c.consul.endpoints: "10.0.0.1" has no http:// or https://; expected a URL such as http://10.0.0.1:8500 or https://consul1:8501"#),
    (CONSUL, r#"cluster.c.consul.endpoints = ["http://a", "http://a"]"#, r#"pgsplice.toml:1: cluster.c.consul.endpoints: http://a:8500 is there twice; expected each once"#),
    (CONSUL, r#"cluster.c.consul.endpoints = ["http://a", "https://b"]"#, r#"pgsplice.toml:1: cluster.c.consul.endpoints: some are http and some https; expected one of the two for all"#),
    (REPLICATION, r#"cluster.c.static.user = """#, r#"pgsplice.toml:1: cluster.c.static.user: "" is empty; expected the name of a PostgreSQL user"#),
    (REPLICATION, r#"cluster.c.static.password = 5"#, r#"pgsplice.toml:1: cluster.c.static.password: this is not text; expected a password in quotes"#),
    (REPLICATION, r#"cluster.c.static.password_file = "/nonexistent""#, r#"pgsplice.toml:1: cluster.c.static.password_file: cannot read /nonexistent: No such file or directory; expected the path of a readable file with the password in its first line"#),
    (REPLICATION, r#"cluster.c.static.database = """#, r#"pgsplice.toml:1: cluster.c.static.database: "" is empty; expected the name of a database"#),
    (REPLICATION, r#"cluster.c.static.primary = "a b""#, r#"pgsplice.toml:1: cluster.c.static.primary: "a b" is not a name; expected up to 63 letters, digits, dashes and underscores"#),
    (REPLICATION, r#"cluster.c.static.primary = "pg9""#, r#"pgsplice.toml:1: cluster.c.static.primary: there is no member "pg9" (did you mean "pg1"?); expected the name of a member: "pg1""#),
    (REPLICATION, r#"cluster.c.static.member = []"#, r#"pgsplice.toml:1: cluster.c.static.member: the list is empty; expected at least one [[cluster.c.static.member]] section"#),
    (REPLICATION, r#"cluster.c.static.member = [{ name = "a b", address = "10.0.0.1" }]"#, r#"pgsplice.toml:1: cluster.c.static.member[0].name: "a b" is not a name; expected up to 63 letters, digits, dashes and underscores"#),
    (REPLICATION, r#"cluster.c.static.member = [{ name = "pg1", address = "10.0.0.1:0" }]"#, r#"pgsplice.toml:1: cluster.c.static.member[0].address: "10.0.0.1:0" has port 0; expected host:port such as 10.0.0.1:5432 or pg1:5432"#),
    (REPLICATION, r#"cluster.c.static.member = [{ name = "pg1", address = "a" }, { name = "pg1", address = "b" }]"#, r#"pgsplice.toml:1: cluster.c.static.member[1].name: pg1 is also that of another member; expected a name of its own"#),
    (REPLICATION, r#"cluster.c.static.member = [{ name = "pg1", address = "10.0.0.1", tags = 5 }]"#, r#"pgsplice.toml:1: cluster.c.static.member[0].tags: 5 is a number; expected a table of tags such as { region = "eu" }"#),
    (REPLICATION, r#"cluster.c.proof.tls.server_name = "x""#, r#"pgsplice.toml:1: cluster.c.proof.tls: there is no ca; expected the ca that turns TLS on"#),
    (REST, r#"cluster.c.rest.endpoints = "10.0.0.1""#, r#"pgsplice.toml:1: cluster.c.rest.endpoints: "10.0.0.1" has no http:// or https://; expected a URL such as http://10.0.0.1:8008 or https://pg1:8008"#),
    (REST, r#"cluster.c.rest.endpoints = ["http://a", "http://a"]"#, r#"pgsplice.toml:1: cluster.c.rest.endpoints: http://a:8008 is there twice; expected each once"#),
    (REST, r#"cluster.c.rest.endpoints = ["http://a", "https://b"]"#, r#"pgsplice.toml:1: cluster.c.rest.endpoints: some are http and some https; expected one of the two for all"#),
    (ZOOKEEPER, r#"cluster.c.zookeeper.hosts = []"#, r#"pgsplice.toml:1: cluster.c.zookeeper.hosts: the list is empty; expected host:port such as 10.0.0.1:2181 or zk1:2181"#),
    (ZOOKEEPER, r#"cluster.c.zookeeper.hosts = "http://zk1""#, r#"pgsplice.toml:1: cluster.c.zookeeper.hosts: "//zk1" is not a port; expected host:port such as 10.0.0.1:2181 or zk1:2181"#),
    (ZOOKEEPER, r#"cluster.c.zookeeper.hosts = "zk1:0""#, r#"pgsplice.toml:1: cluster.c.zookeeper.hosts: "zk1:0" has port 0; expected host:port such as 10.0.0.1:2181 or zk1:2181"#),
    (ZOOKEEPER, r#"cluster.c.zookeeper.hosts = ["zk1", "zk1:2181"]"#, r#"pgsplice.toml:1: cluster.c.zookeeper.hosts: zk1:2181 is there twice; expected each once"#),
    (CONSUL, r#"cluster.c.consul.token = 5"#, r#"pgsplice.toml:1: cluster.c.consul.token: this is not text; expected a token in quotes"#),
    (CONSUL, r#"cluster.c.consul.token_file = "/nonexistent""#, r#"pgsplice.toml:1: cluster.c.consul.token_file: cannot read /nonexistent: No such file or directory; expected the path of a readable file with the token in its first line"#),
    (CONSUL, r#"cluster.c.consul.datacenter = """#, r#"pgsplice.toml:1: cluster.c.consul.datacenter: "" is empty; expected the name of a Consul datacenter"#),
    (ZOOKEEPER, r#"cluster.c.zookeeper.user = "pgsplice""#, r#"pgsplice.toml:1: cluster.c.zookeeper.user: there is no password for it; expected user and password (or password_file), both or neither"#),
    (ZOOKEEPER, r#"cluster.c.zookeeper.password = "secret""#, r#"pgsplice.toml:1: cluster.c.zookeeper.password: there is no user for it; expected user and password (or password_file), both or neither"#),
    (ZOOKEEPER, r#"cluster.c.zookeeper.password_file = "/nonexistent"
cluster.c.zookeeper.user = "a""#, r#"pgsplice.toml:1: cluster.c.zookeeper.password_file: cannot read /nonexistent: No such file or directory; expected the path of a readable file with the password in its first line"#),
    (CONSUL, r#"cluster.c.consul.connect_timeout = 0"#, r#"pgsplice.toml:1: cluster.c.consul.connect_timeout: zero makes no sense here; expected a duration above zero, such as 2s, 500ms or 1h30m"#),
    (CONSUL, r#"cluster.c.consul.keepalive_interval = 0"#, r#"pgsplice.toml:1: cluster.c.consul.keepalive_interval: zero makes no sense here; expected a duration above zero, such as 2s, 500ms or 1h30m"#),
    (CONSUL, r#"cluster.c.consul.keepalive_timeout = 0"#, r#"pgsplice.toml:1: cluster.c.consul.keepalive_timeout: zero makes no sense here; expected a duration above zero, such as 2s, 500ms or 1h30m"#),
    (CONSUL, r#"cluster.c.consul.tls.ca = "/nonexistent/ca.pem""#, r#"pgsplice.toml:1: cluster.c.consul.tls.ca: cannot read /nonexistent/ca.pem: No such file or directory; expected the path of a readable PEM file"#),
    (CONSUL, r#"cluster.c.consul.tls.server_name = 1"#, r#"pgsplice.toml:1: cluster.c.consul.tls.server_name: 1 is a number; expected the name in the server's certificate"#),
    (ZOOKEEPER, r#"cluster.c.zookeeper.connect_timeout = 0"#, r#"pgsplice.toml:1: cluster.c.zookeeper.connect_timeout: zero makes no sense here; expected a duration above zero, such as 2s, 500ms or 1h30m"#),
    (ZOOKEEPER, r#"cluster.c.zookeeper.keepalive_interval = 0"#, r#"pgsplice.toml:1: cluster.c.zookeeper.keepalive_interval: zero makes no sense here; expected a duration above zero, such as 2s, 500ms or 1h30m"#),
    (ZOOKEEPER, r#"cluster.c.zookeeper.keepalive_timeout = 0"#, r#"pgsplice.toml:1: cluster.c.zookeeper.keepalive_timeout: zero makes no sense here; expected a duration above zero, such as 2s, 500ms or 1h30m"#),
    (ZOOKEEPER, r#"cluster.c.zookeeper.tls.ca = "/nonexistent/ca.pem""#, r#"pgsplice.toml:1: cluster.c.zookeeper.tls.ca: cannot read /nonexistent/ca.pem: No such file or directory; expected the path of a readable PEM file"#),
    (ZOOKEEPER, r#"cluster.c.zookeeper.tls.server_name = 1"#, r#"pgsplice.toml:1: cluster.c.zookeeper.tls.server_name: 1 is a number; expected the name in the server's certificate"#),
    (CONSUL, r#"cluster.c.consul.tls.cert = "/proc/self/status""#, r#"pgsplice.toml:1: cluster.c.consul.tls.cert: there is no key for it; expected cert and key, both or neither"#),
    (CONSUL, r#"cluster.c.consul.tls.key = "/proc/self/status""#, r#"pgsplice.toml:1: cluster.c.consul.tls.key: there is no cert for it; expected cert and key, both or neither"#),
    (ZOOKEEPER, r#"cluster.c.zookeeper.tls.cert = 1
cluster.c.zookeeper.tls.key = "/proc/self/status"
cluster.c.zookeeper.tls.ca = "/proc/self/status""#, r#"pgsplice.toml:1: cluster.c.zookeeper.tls.cert: 1 is a number; expected the path of a readable PEM file"#),
    (ZOOKEEPER, r#"cluster.c.zookeeper.tls.key = 1
cluster.c.zookeeper.tls.cert = "/proc/self/status"
cluster.c.zookeeper.tls.ca = "/proc/self/status""#, r#"pgsplice.toml:1: cluster.c.zookeeper.tls.key: 1 is a number; expected the path of a readable PEM file"#),
    (ZOOKEEPER, r#"cluster.c.zookeeper.tls.server_name = "zk""#, r#"pgsplice.toml:1: cluster.c.zookeeper.tls: there is no ca; expected the ca that turns TLS on"#),
    (CLUSTER, r#"cluster.c.consul.endpoints = "http://10.0.0.1""#, r#"pgsplice.toml:1: cluster.c.consul: there is a section etcd as well; expected one of etcd, consul, zookeeper, rest and static"#),
    (REST, r#"pool.p.address = "proxy-url""#, r#"pgsplice.toml:1: pool.p.address: Patroni's REST API does not tell a member's proxy_url; expected a port number such as 6432, or "conn-url""#),
    (CLUSTER, r#"cluster.c.proof.interval = 0"#, r#"pgsplice.toml:1: cluster.c.proof.interval: zero makes no sense here; expected a duration above zero, such as 2s, 500ms or 1h30m"#),
    (CLUSTER, r#"cluster.c.proof.fast_interval = "1h1h""#, r#"pgsplice.toml:1: cluster.c.proof.fast_interval: "1h1h" is not in the order of days, hours, minutes, seconds; expected a duration above zero, such as 2s, 500ms or 1h30m"#),
    (CLUSTER, r#"cluster.c.proof.timeout = true"#, r#"pgsplice.toml:1: cluster.c.proof.timeout: true is a boolean; expected a duration above zero, such as 2s, 500ms or 1h30m"#),
    (CLUSTER, r#"cluster.c.proof.tls.ca = 1"#, r#"pgsplice.toml:1: cluster.c.proof.tls.ca: 1 is a number; expected the path of a readable PEM file"#),
    (CLUSTER, r#"cluster.c.proof.tls.cert = ""
cluster.c.proof.tls.key = "/proc/self/status""#, r#"pgsplice.toml:1: cluster.c.proof.tls.cert: "" is empty; expected the path of a readable PEM file"#),
    (CLUSTER, r#"cluster.c.proof.tls.key = "/nonexistent"
cluster.c.proof.tls.cert = "/proc/self/status""#, r#"pgsplice.toml:1: cluster.c.proof.tls.key: cannot read /nonexistent: No such file or directory; expected the path of a readable PEM file"#),
    (CLUSTER, r#"cluster.c.proof.tls.server_name = """#, r#"pgsplice.toml:1: cluster.c.proof.tls.server_name: "" is empty; expected the name in the server's certificate"#),
    (CLUSTER, r#"pool.p.cluster = "main""#, r#"pgsplice.toml:1: pool.p.cluster: there is no cluster "main"; expected the name of a cluster: "c""#),
    (CLUSTER, r#"pool.p.cluster = 5"#, r#"pgsplice.toml:1: pool.p.cluster: 5 is a number; expected the NAME of a [cluster.NAME] section"#),
    (CLUSTER, r#"cluster.c.namespace = ["a"]"#, r#"pgsplice.toml:1: cluster.c.namespace: this is a list; expected Patroni's namespace, such as /service"#),
    (CLUSTER, r#"pool.p.route = "flet""#, r#"pgsplice.toml:1: pool.p.route: "flet" is not known (did you mean "fleet"?); expected "fleet" or "node-local""#),
    (CLUSTER, r#"pool.p.role = "leader""#, r#"pgsplice.toml:1: pool.p.role: "leader" is not known; expected one of "primary", "replica", "sync", "async", "quorum", "any", "standby-leader""#),
    (CLUSTER, r#"pool.p.max_lag = "16 megabytes"
pool.p.role = "replica""#, r#"pgsplice.toml:1: pool.p.max_lag: "16 megabytes": "megabytes" is not a unit of size; expected a size in bytes or such as 16MiB or 16MB"#),
    (CLUSTER, r#"pool.p.max_lag = -1
pool.p.role = "replica""#, r#"pgsplice.toml:1: pool.p.max_lag: -1 is below zero; expected a size in bytes or such as 16MiB or 16MB"#),
    (CLUSTER, r#"pool.p.max_lag = "16MiB""#, r#"pgsplice.toml:1: pool.p.max_lag: a leader has no lag; expected role = "replica", "sync", "async", "quorum" or "any" beside it"#),
    (CLUSTER, r#"pool.p.fallback_to_primary = 1
pool.p.role = "replica""#, r#"pgsplice.toml:1: pool.p.fallback_to_primary: 1 is a number; expected true or false"#),
    (CLUSTER, r#"pool.p.max_lag_time = "2s""#, r#"pgsplice.toml:1: pool.p.max_lag_time: a leader has no lag; expected role = "replica", "sync", "async", "quorum" or "any" beside it"#),
    (CLUSTER, r#"pool.p.max_lag_time = 2
pool.p.role = "replica""#, r#"pgsplice.toml:1: pool.p.max_lag_time: 2 has no unit; expected a duration above zero, such as 2s, 500ms or 1h30m"#),
    (CLUSTER, r#"pool.p.cut_spread = 1"#, r#"pgsplice.toml:1: pool.p.cut_spread: 1 has no unit; expected a duration such as 2s, 500ms or 1h30m, or 0 for all at once"#),
    (CLUSTER, r#"pool.p.slow_start = "x""#, r#"pgsplice.toml:1: pool.p.slow_start: "x" is not a duration; expected a duration such as 2s, 500ms or 1h30m, or 0 for none"#),
    (CLUSTER, r#"pool.p.prefer = "a""#, r#"pgsplice.toml:1: pool.p.prefer: "a" is text; expected a table of tags such as { region = "eu" }"#),
    (CLUSTER, r#"pool.p.fallback_to_primary = true"#, r#"pgsplice.toml:1: pool.p.fallback_to_primary: the role is not that of replicas; expected role = "replica", "sync", "async" or "quorum" beside it"#),
    (CLUSTER, r#"pool.p.tags = ["a"]"#, r#"pgsplice.toml:1: pool.p.tags: this is a list; expected a table of tags such as { region = "eu" }"#),
    (CLUSTER, r#"pool.p.tags.region = 1.5"#, r#"pgsplice.toml:1: pool.p.tags.region: 1.5 is a number with a point; expected text, a whole number, true or false"#),
    (CLUSTER, r#"pool.p.address = "proxy_url""#, r#"pgsplice.toml:1: pool.p.address: "proxy_url" is not known; expected "proxy-url", "conn-url" or a port number such as 6432"#),
    (CLUSTER, r#"pool.p.address = 70000"#, r#"pgsplice.toml:1: pool.p.address: this is not a port; expected "proxy-url", "conn-url" or a port number such as 6432"#),
    (CLUSTER, r#"pool.p.address = 6432
pool.p.route = "fleet""#, r#"pgsplice.toml:1: pool.p.address: it means nothing with route = "fleet"; expected route = "node-local" beside it"#),
    (STATIC, r#"pool.p.role = "primary""#, r#"pgsplice.toml:1: pool.p.role: this pool has no cluster; expected cluster = "NAME" beside it"#),
    (STATIC, r#"pool.p.backend = "127.0.0.1:6432""#, r#"pgsplice.toml:1: pool.p.backend: "127.0.0.1:6432" is text; expected [[pool.p.backend]] sections"#),
    (STATIC, r#"pool.p.backend = []"#, r#"pgsplice.toml:1: pool.p.backend: the list is empty; expected at least one [[pool.p.backend]] section"#),
    (STATIC, r#"pool.p.backend = [{ weight = 1 }]"#, r#"pgsplice.toml:1: pool.p.backend[0].address: missing; expected ip:port or host:port such as 10.0.0.7:6432, bouncer1:6432 or [2001:db8::7]:6432"#),
    (STATIC, r#"pool.p.backend = [{ address = "10.0.0.7" }]"#, r#"pgsplice.toml:1: pool.p.backend[0].address: "10.0.0.7" has no port; expected ip:port or host:port such as 10.0.0.7:6432, bouncer1:6432 or [2001:db8::7]:6432"#),
    (STATIC, r#"pool.p.backend = [{ address = "10.0.0.7:0" }]"#, r#"pgsplice.toml:1: pool.p.backend[0].address: "10.0.0.7:0" has port 0; expected ip:port or host:port such as 10.0.0.7:6432, bouncer1:6432 or [2001:db8::7]:6432"#),
    (STATIC, r#"pool.p.backend = [{ address = "10.0.0.777:6432" }]"#, r#"pgsplice.toml:1: pool.p.backend[0].address: "10.0.0.777" is neither an IP address nor a host name; expected ip:port or host:port such as 10.0.0.7:6432, bouncer1:6432 or [2001:db8::7]:6432"#),
    (STATIC, r#"pool.p.backend = [{ address = "2001:db8::7:6432" }]"#, r#"pgsplice.toml:1: pool.p.backend[0].address: "2001:db8::7:6432" is an IPv6 address without brackets and port; expected ip:port or host:port such as 10.0.0.7:6432, bouncer1:6432 or [2001:db8::7]:6432"#),
    (STATIC, r#"pool.p.backend = [{ address = "bouncer 1:6432" }]"#, r#"pgsplice.toml:1: pool.p.backend[0].address: "bouncer 1" is neither an IP address nor a host name; expected ip:port or host:port such as 10.0.0.7:6432, bouncer1:6432 or [2001:db8::7]:6432"#),
    (STATIC, r#"pool.p.backend = [{ address = "127.0.0.1:5432" }]"#, r#"pgsplice.toml:1: pool.p.backend[0].address: 127.0.0.1:5432 is listener.l itself, so sessions would go in circles; expected the address of a PgBouncer or PostgreSQL"#),
    (STATIC, r#"pool.p.backend = [{ address = "b:1", name = "" }]"#, r#"pgsplice.toml:1: pool.p.backend[0].name: "" is empty; expected a name for the backend"#),
    (STATIC, r#"pool.p.backend = [{ address = "b:1", weight = 1001 }]"#, r#"pgsplice.toml:1: pool.p.backend[0].weight: 1001 is too large; expected a whole number from 0 to 1000"#),
    (STATIC, r#"pool.p.backend = [{ address = "b:1", weight = 0 }]"#, r#"pgsplice.toml:1: pool.p.backend: every backend has weight 0, so none gets a session; expected at least one backend with a weight above 0"#),
    (STATIC, r#"pool.p.backend = [{ address = "b:1", backup = "no" }]"#, r#"pgsplice.toml:1: pool.p.backend[0].backup: "no" is text; expected true or false"#),
    (STATIC, r#"pool.p.backend = [{ address = "b:1", peer_id = 0 }]"#, r#"pgsplice.toml:1: pool.p.backend[0].peer_id: 0 is too small; expected a whole number from 1 to 16383"#),
    (STATIC, r#"pool.p.backend = [{ address = "b:1", max_sessions = -1 }]"#, r#"pgsplice.toml:1: pool.p.backend[0].max_sessions: -1 is too small; expected a whole number from 0 to 4294967295"#),
    (STATIC, r#"pool.p.backend = [{ address = "b:1" }, { address = "B:1" }]"#, r#"pgsplice.toml:1: pool.p.backend[1].address: b:1 is also that of the backend in line 1; expected an address once"#),
    (STATIC, r#"pool.p.backend = [{ address = "b:1", name = "b" }, { address = "c:1", name = "b" }]"#, r#"pgsplice.toml:1: pool.p.backend[1].name: b is also that of the backend in line 1; expected a name of its own"#),
    (STATIC, r#"pool.p.backend = [{ address = "b:1", peer_id = 1 }, { address = "c:1", peer_id = 1 }]"#, r#"pgsplice.toml:1: pool.p.backend[1].peer_id: 1 is also that of the backend in line 1; expected the peer_id this PgBouncer has"#),
    (STATIC, r#"pool.p.balance = "least-conections""#, r#"pgsplice.toml:1: pool.p.balance: "least-conections" is not known (did you mean "least-connections"?); expected one of "round-robin", "least-connections", "two-choices", "source-hash", "first""#),
    (STATIC, r#"pool.p.max_sessions_per_backend = 5000000000"#, r#"pgsplice.toml:1: pool.p.max_sessions_per_backend: 5000000000 is too large; expected a whole number from 0 to 4294967295"#),
    (STATIC, r#"pool.p.connect_attempts = 0"#, r#"pgsplice.toml:1: pool.p.connect_attempts: 0 is too small; expected a whole number from 1 to 100"#),
    (STATIC, r#"pool.p.queue.size = -1"#, r#"pgsplice.toml:1: pool.p.queue.size: -1 is too small; expected a whole number from 0 to 10000000"#),
    (STATIC, r#"pool.p.queue.timeout = 0"#, r#"pgsplice.toml:1: pool.p.queue.timeout: zero makes no sense here; expected a duration above zero, such as 2s, 500ms or 1h30m"#),
    (STATIC, r#"pool.p.timeouts.connect = "0ms""#, r#"pgsplice.toml:1: pool.p.timeouts.connect: zero makes no sense here; expected a duration above zero, such as 2s, 500ms or 1h30m"#),
    (STATIC, r#"pool.p.timeouts.handshake = "1 minute""#, r#"pgsplice.toml:1: pool.p.timeouts.handshake: "1 minute": " minute" is not a unit of time; expected a duration above zero, such as 2s, 500ms or 1h30m"#),
    (STATIC, r#"pool.p.timeouts.idle = "11y""#, r#"pgsplice.toml:1: pool.p.timeouts.idle: "11y": "y" is not a unit of time; expected a duration such as 2s, 500ms or 1h30m, or 0 for no limit"#),
    (STATIC, r#"pool.p.timeouts.half_closed = "9999d""#, r#"pgsplice.toml:1: pool.p.timeouts.half_closed: "9999d" is longer than ten years; expected a duration such as 2s, 500ms or 1h30m, or 0 for no limit"#),
    (STATIC, r#"pool.p.tcp.keepalive_idle = "1500ms""#, r#"pgsplice.toml:1: pool.p.tcp.keepalive_idle: 1s500ms is not in whole seconds; expected whole seconds from 1s to 32767s, or 0 for no keepalive"#),
    (STATIC, r#"pool.p.tcp.keepalive_interval = "0s""#, r#"pgsplice.toml:1: pool.p.tcp.keepalive_interval: zero makes no sense here; expected whole seconds from 1s to 32767s"#),
    (STATIC, r#"pool.p.tcp.keepalive_count = 128"#, r#"pgsplice.toml:1: pool.p.tcp.keepalive_count: 128 is too large; expected a whole number from 1 to 127"#),
    (STATIC, r#"pool.p.tcp.user_timeout = "25d""#, r#"pgsplice.toml:1: pool.p.tcp.user_timeout: 25d is too long; expected a duration from 1ms to 24d, or 0 for the kernel's own"#),
    (STATIC, r#"pool.p.probe.kind = "http""#, r#"pgsplice.toml:1: pool.p.probe.kind: "http" is not known; expected one of "none", "tcp", "ssl-request", "query""#),
    (STATIC, r#"pool.p.probe.user = "x""#, r#"pgsplice.toml:1: pool.p.probe.user: this kind of probe does not log in; expected kind = "query" beside it"#),
    (STATIC, r#"pool.p.probe.kind = "query""#, r#"pgsplice.toml:1: pool.p.probe.user: missing; expected the name of a PostgreSQL user, for kind = "query""#),
    (STATIC, r#"pool.p.probe.user = "a\u0000b"
pool.p.probe.kind = "query""#, r#"pgsplice.toml:1: pool.p.probe.user: "a\0b" has a zero byte; expected the name of a PostgreSQL user"#),
    (STATIC, r#"pool.p.probe.password = 1
pool.p.probe.user = "x"
pool.p.probe.kind = "query""#, r#"pgsplice.toml:1: pool.p.probe.password: this is not text; expected a password in quotes"#),
    (STATIC, r#"pool.p.probe.password_file = "/proc/self/status"
pool.p.probe.password = "a"
pool.p.probe.user = "x"
pool.p.probe.kind = "query""#, r#"pgsplice.toml:1: pool.p.probe.password_file: there is a password as well; expected either password or password_file"#),
    (STATIC, r#"pool.p.probe.password_file = "/dev/null"
pool.p.probe.user = "x"
pool.p.probe.kind = "query""#, r#"pgsplice.toml:1: pool.p.probe.password_file: /dev/null is not a file; expected the path of a readable file with the password in its first line"#),
    (STATIC, r#"pool.p.probe.database = ""
pool.p.probe.user = "x"
pool.p.probe.kind = "query""#, r#"pgsplice.toml:1: pool.p.probe.database: "" is empty; expected the name of a database"#),
    (STATIC, r#"pool.p.probe.query = "SELECT 1""#, r#"pgsplice.toml:1: pool.p.probe.query: this kind of probe does not log in; expected kind = "query" beside it"#),
    (STATIC, r#"pool.p.probe.interval = "0s""#, r#"pgsplice.toml:1: pool.p.probe.interval: zero makes no sense here; expected a duration above zero, such as 2s, 500ms or 1h30m"#),
    (STATIC, r#"pool.p.probe.fast_interval = []"#, r#"pgsplice.toml:1: pool.p.probe.fast_interval: this is a list; expected a duration above zero, such as 2s, 500ms or 1h30m"#),
    (STATIC, r#"pool.p.probe.timeout = 2"#, r#"pgsplice.toml:1: pool.p.probe.timeout: 2 has no unit; expected a duration above zero, such as 2s, 500ms or 1h30m"#),
    (STATIC, r#"pool.p.probe.rise = 0"#, r#"pgsplice.toml:1: pool.p.probe.rise: 0 is too small; expected a whole number from 1 to 1000"#),
    (STATIC, r#"pool.p.probe.fall = 0"#, r#"pgsplice.toml:1: pool.p.probe.fall: 0 is too small; expected a whole number from 1 to 1000"#),
    (STATIC, r#"pool.p.passive.failures = -1"#, r#"pgsplice.toml:1: pool.p.passive.failures: -1 is too small; expected a whole number from 0 to 1000"#),
    (STATIC, r#"pool.p.passive.retry_after = "0s""#, r#"pgsplice.toml:1: pool.p.passive.retry_after: zero makes no sense here; expected a duration above zero, such as 2s, 500ms or 1h30m"#),
    (STATIC, r#"listener.l.bind = "10.0.0.1""#, r#"pgsplice.toml:1: listener.l.bind: "10.0.0.1" has no port; expected ip:port such as 10.0.0.1:5432 or [2001:db8::1]:5432, or *:5432 for every address"#),
    (STATIC, r#"listener.l.bind = "::1""#, r#"pgsplice.toml:1: listener.l.bind: "::1" is an IPv6 address without brackets and port; expected ip:port such as 10.0.0.1:5432 or [2001:db8::1]:5432, or *:5432 for every address"#),
    (STATIC, r#"listener.l.bind = "pg1:5432""#, r#"pgsplice.toml:1: listener.l.bind: "pg1" is not an IP address; expected ip:port such as 10.0.0.1:5432 or [2001:db8::1]:5432, or *:5432 for every address"#),
    (STATIC, r#"listener.l.bind = "10.0.0.1:65536""#, r#"pgsplice.toml:1: listener.l.bind: "65536" is not a port; expected ip:port such as 10.0.0.1:5432 or [2001:db8::1]:5432, or *:5432 for every address"#),
    (STATIC, r#"listener.l.bind = 5432"#, r#"pgsplice.toml:1: listener.l.bind: 5432 is a number; expected ip:port such as 10.0.0.1:5432 or [2001:db8::1]:5432, or *:5432 for every address"#),
    (STATIC, r#"listener.l.bind = []"#, r#"pgsplice.toml:1: listener.l.bind: the list is empty; expected ip:port such as 10.0.0.1:5432 or [2001:db8::1]:5432, or *:5432 for every address"#),
    (STATIC, r#"listener.l.bind = ["127.0.0.1:5432", "127.0.0.1:5432"]"#, r#"pgsplice.toml:1: listener.l.bind: 127.0.0.1:5432 is there twice; expected an address of its own"#),
    (STATIC, r#"listener.l.bind = "127.0.0.1:5432"
admin.http = "127.0.0.1:5432""#, r#"pgsplice.toml:1: listener.l.bind: 127.0.0.1:5432 is also admin.http (line 2); expected an address of its own"#),
    (STATIC, r#"listener.l.pool = "q""#, r#"pgsplice.toml:1: listener.l.pool: there is no pool "q"; expected the name of a pool: "p""#),
    (STATIC, r#"listener.l.pool = """#, r#"pgsplice.toml:1: listener.l.pool: "" is empty; expected the NAME of a [pool.NAME] section"#),
    (STATIC, r#"listener.l.max_sessions = -1"#, r#"pgsplice.toml:1: listener.l.max_sessions: -1 is too small; expected a whole number from 0 to 4294967295"#),
    (STATIC, r#"listener.l.startup_timeout = 0"#, r#"pgsplice.toml:1: listener.l.startup_timeout: zero makes no sense here; expected a duration above zero, such as 2s, 500ms or 1h30m"#),
    (STATIC, r#"listener.l.max_startup_size = "4MiB""#, r#"pgsplice.toml:1: listener.l.max_startup_size: 4194304 bytes is too large; expected a size from 64 to 1048576 bytes"#),
    (STATIC, r#"listener.l.max_startup_size = 8"#, r#"pgsplice.toml:1: listener.l.max_startup_size: 8 bytes is too small; expected a size from 64 to 1048576 bytes"#),
    (STATIC, r#"listener.l.backlog = 0"#, r#"pgsplice.toml:1: listener.l.backlog: 0 is too small; expected a whole number from 1 to 1048576"#),
    (STATIC, r#"listener.l.defer_accept = 1"#, r#"pgsplice.toml:1: listener.l.defer_accept: 1 is a number; expected true or false"#),
    (STATIC, r#"listener.l.splice = "tpc""#, r#"pgsplice.toml:1: listener.l.splice: "tpc" is not known (did you mean "tc"?); expected one of "auto", "xdp", "tc", "sockmap", "relay""#),
    (STATIC, r#"listener.l.splice = "xdp""#, r#"pgsplice.toml:1: listener.l.splice: "xdp" needs interfaces to run on, and splice.interfaces is empty; expected interfaces = ["eth0"] in [splice], with those of clients and backends, or splice = "auto""#),
    (STATIC, r#"listener.l.splice = "tc""#, r#"pgsplice.toml:1: listener.l.splice: "tc" needs interfaces to run on, and splice.interfaces is empty; expected interfaces = ["eth0"] in [splice], with those of clients and backends, or splice = "auto""#),
    (STATIC, r#"listener.l.splice = "tc"
splice.interfaces = "eth0"
splice.mode = "xdp""#, r#"pgsplice.toml:1: listener.l.splice: "tc" never runs with splice.mode = "xdp"; expected splice = "auto", or mode = "auto" or "tc" in [splice]"#),
    (STATIC, r#"listener.l.splice_after = -1"#, r#"pgsplice.toml:1: listener.l.splice_after: -1 is too small; expected "auto", a number of turns from 0 to 1000000, or a duration such as "50ms""#),
    (STATIC, r#"listener.l.splice_after = 1000001"#, r#"pgsplice.toml:1: listener.l.splice_after: 1000001 is too large; expected "auto", a number of turns from 0 to 1000000, or a duration such as "50ms""#),
    (STATIC, r#"listener.l.splice_after = "50""#, r#"pgsplice.toml:1: listener.l.splice_after: "50" has no unit; expected "auto", a number of turns from 0 to 1000000, or a duration such as "50ms""#),
    (STATIC, r#"listener.l.tcp.keepalive_idle = "12h""#, r#"pgsplice.toml:1: listener.l.tcp.keepalive_idle: 12h is too long; expected whole seconds from 1s to 32767s, or 0 for no keepalive"#),
    (STATIC, r#"listener.l.tcp.keepalive_interval = "soon""#, r#"pgsplice.toml:1: listener.l.tcp.keepalive_interval: "soon" is not a duration; expected whole seconds from 1s to 32767s"#),
    (STATIC, r#"listener.l.tcp.keepalive_count = 0"#, r#"pgsplice.toml:1: listener.l.tcp.keepalive_count: 0 is too small; expected a whole number from 1 to 127"#),
    (STATIC, r#"listener.l.tcp.user_timeout = "1us""#, r#"pgsplice.toml:1: listener.l.tcp.user_timeout: 1us is too short; expected a duration from 1ms to 24d, or 0 for the kernel's own"#),
    (STATIC, r#"proxy = 5"#, r#"pgsplice.toml:1: proxy: 5 is a number; expected a section [proxy]"#),
    (STATIC, r#"pool.p.queue = 5"#, r#"pgsplice.toml:1: pool.p.queue: 5 is a number; expected a section [pool.p.queue]"#),
    (STATIC, r#""a b" = 5"#, r#"pgsplice.toml:1: "a b": unknown key; expected one of admin, cluster, guard, listener, log, pool, proxy, splice"#),
    (STATIC, r#"pool."a b".balance = "first""#, r#"pgsplice.toml:1: pool."a b": "a b" is not a name; expected up to 63 letters, digits, dashes and underscores"#),
    (STATIC, r#"pool.p.timeout = "3s""#, r#"pgsplice.toml:1: pool.p.timeout: unknown key (did you mean "timeouts"?); expected one of address, backend, balance, cluster, connect_attempts, cut_spread, fallback_to_primary, max_lag, max_lag_time, max_sessions_per_backend, passive, prefer, probe, queue, role, route, slow_start, tags, tcp, timeouts"#),
    (STATIC, r#"pool.p.idle = "3s""#, r#"pgsplice.toml:1: pool.p.idle: unknown key here (it belongs in [pool.NAME.timeouts]); expected one of address, backend, balance, cluster, connect_attempts, cut_spread, fallback_to_primary, max_lag, max_lag_time, max_sessions_per_backend, passive, prefer, probe, queue, role, route, slow_start, tags, tcp, timeouts"#),
    (STATIC, r#"pool.p.queue.max = 1"#, r#"pgsplice.toml:1: pool.p.queue.max: unknown key; expected one of size, timeout"#),
    (STATIC, r#"listener.l.max-sessions = 5"#, r#"pgsplice.toml:1: listener.l.max-sessions: unknown key (did you mean "max_sessions"?); expected one of backlog, bind, defer_accept, max_sessions, max_startup_size, pool, splice, splice_after, startup_timeout, tcp"#),
];

fn errors_of(around: Around, lines: &str) -> ConfigErrors {
    let set_by_case = |key: &str| lines.lines().any(|line| line.starts_with(&format!("{key} = ")));
    let around = around.iter().filter(|(key, _)| !set_by_case(key)).map(|(key, value)| format!("{key} = {value}\n"));
    let text = format!("{lines}\n{}", around.collect::<String>());
    Config::from_str_named(&text, "pgsplice.toml").expect_err(lines)
}

#[test]
fn each_wrong_field_has_its_message() {
    for (around, lines, message) in CASES {
        assert_eq!(errors_of(around, lines).to_string(), *message, "{lines}");
    }
}

#[test]
fn what_is_around_them_is_right() {
    for around in [STATIC, CLUSTER, CONSUL, ZOOKEEPER, REST, REPLICATION] {
        let text: String = around.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
        Config::from_str_named(&text, "pgsplice.toml").unwrap();
    }
}

#[test]
fn no_field_is_left_out() {
    let covered: BTreeSet<String> = CASES
        .iter()
        .flat_map(|(around, lines, _)| errors_of(around, lines).errors)
        .map(|error| schema_of(&error.key))
        .collect();
    let missing: Vec<String> = schema_keys().into_iter().filter(|key| !covered.contains(key)).collect();
    assert!(missing.is_empty(), "no case has these wrong: {missing:#?}");
}
