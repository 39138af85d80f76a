//! Who is primary, as the views tell it while a real Patroni cluster moves: from each store, and from the members alone.

// A test stops at the first thing that goes wrong.
#![allow(clippy::unwrap_used)]

mod proxied;

use std::time::{Duration, Instant};

use pgsplice::cluster::{self, Bouncer, BouncerState, ClusterView, Proof, StoreHealth};
use pgsplice::config;
use pgsplice_tests::callbacks;
use pgsplice_tests::view::until;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use xtask::lab::{Lab, LabSpec, Proxy, Store};

fn lab() -> Lab {
    let id = format!("t{:x}", std::process::id());
    let spec = LabSpec { bouncers: 0, agents: false, proxy: Proxy::None, ..LabSpec::full(id) };
    Lab::up(&spec, |_, _| ()).unwrap()
}

/// As pgsplice is configured for the lab.
fn config_of(store: config::StoreConfig) -> config::Cluster {
    config::Cluster { store, scope: "main".into(), ..Default::default() }
}

fn config(store: Store) -> config::Cluster {
    let hosts = |port: u16| (11..=13).map(move |n| format!("10.0.0.{n}:{port}"));
    let urls = |port| hosts(port).map(|host| format!("http://{host}")).collect();
    config_of(match store {
        Store::Etcd => config::StoreConfig::Etcd(config::EtcdConfig { endpoints: urls(2379), ..Default::default() }),
        Store::Consul => {
            config::StoreConfig::Consul(config::ConsulConfig { endpoints: urls(8500), ..Default::default() })
        }
        Store::Zookeeper => config::StoreConfig::Zookeeper(config::ZookeeperConfig {
            hosts: hosts(2181).collect(),
            ..Default::default()
        }),
    })
}

/// No store: the members alone.
fn rest() -> config::Cluster {
    let endpoints = (31..=33).map(|n| format!("http://10.0.0.{n}:8008")).collect();
    config_of(config::StoreConfig::Rest(config::RestConfig { endpoints }))
}

/// No store, and of the members' REST API what a load balancer's check is told.
async fn checks() -> config::Cluster {
    let mut endpoints = Vec::new();
    for n in 31..=33 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        endpoints.push(format!("http://{}", listener.local_addr().unwrap()));
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                tokio::spawn(async move { drop(checks_only(client, &format!("10.0.0.{n}:8008")).await) });
            }
        });
    }
    config_of(config::StoreConfig::Rest(config::RestConfig { endpoints }))
}

async fn checks_only(mut client: TcpStream, member: &str) -> std::io::Result<()> {
    let mut request = [0; 4096];
    let length = client.read(&mut request).await?;
    if !request.starts_with(b"GET /primary ") {
        return client.write_all(b"HTTP/1.0 403 Forbidden\r\nContent-Length: 0\r\n\r\n").await;
    }
    let mut patroni = TcpStream::connect(member).await?;
    patroni.write_all(&request[..length]).await?;
    tokio::io::copy(&mut patroni, &mut client).await.map(drop)
}

fn primary(view: &ClusterView) -> Option<&str> {
    view.primary.as_ref().map(|primary| &*primary.member)
}

/// Runs the test on the lab's client host: its network is where the members and etcd are.
fn on_client<T: Send>(lab: &Lab, test: impl AsyncFnOnce() -> T + Send) -> T {
    let work = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test());
    lab.client().on_thread(work).unwrap()
}

#[test]
fn the_open_primary_follows_switchover_partition_and_death() {
    let lab = lab();
    proxied::start_standby_cluster(&lab);
    let [leader, dead] = on_client(&lab, async || {
        let handle = cluster::watch("main", &config(Store::Etcd));
        let (view, _) = until(&handle, "open", |view| view.primary.is_some() && view.members.len() == 3).await;
        let first = primary(&view).unwrap().to_string();
        assert_eq!(lab.leader().unwrap().name(), first);
        assert!(view.system_id.is_some());
        for member in view.members.values() {
            assert!(member.is_running() && member.conn_addr.is_some(), "{member:#?}");
        }
        until(&handle, "lag of all", |view| view.members.values().all(|member| member.lag.is_some())).await;

        // A switchover: the old one is cut, the new one opens on the next timeline.
        let second = view.members.keys().find(|name| **name != first).unwrap().clone();
        callbacks::install(&lab).unwrap();
        lab.switchover(&second).unwrap();
        let (view, _) = until(&handle, "the new one open", |view| primary(view) == Some(&second)).await;
        assert!(view.cut.contains_key(&first) && !view.cut.contains_key(&second), "{:?}", view.cut);
        assert_eq!(view.primary.as_ref().unwrap().timeline, 2);
        // Patroni calls on every member: the third one's role is what it was, its primary is another.
        for member in view.members.keys() {
            callbacks::until_leads(&lab, member, &second).unwrap();
        }

        // etcd out of reach of this host: frozen, and open as long as the primary proves itself.
        for etcd in ["etcd1", "etcd2", "etcd3"] {
            lab.net.partition("client", etcd).unwrap();
        }
        let (view, took) =
            until(&handle, "unreachable", |view| matches!(view.store, StoreHealth::Unreachable { .. })).await;
        assert!(took < Duration::from_secs(15), "{took:?}");
        assert_eq!(primary(&view), Some(&*second));
        tokio::time::sleep(Duration::from_secs(8)).await;
        assert_eq!(primary(&handle.view.borrow()), Some(&*second));
        lab.net.heal("client").unwrap();
        until(&handle, "connected", |view| matches!(view.store, StoreHealth::Connected { .. })).await;

        // Only Patroni dies: its PostgreSQL goes on taking writes, and is cut once the key names another.
        let old = lab.net.find(&second).unwrap();
        old.service("patroni").unwrap().kill(9).unwrap();
        let (view, _) = until(&handle, "another open", |view| primary(view).is_some_and(|now| now != second)).await;
        assert_eq!(view.primary.as_ref().unwrap().timeline, 3);
        assert!(view.cut.contains_key(&second), "{:?}", view.cut);
        let writable = lab.superuser_sql(old, "SELECT pg_is_in_recovery()").unwrap();
        assert_eq!(writable, "f", "two writable primaries: the cut is what protects the data");
        let proofs = view.members.values().filter(|member| matches!(member.proof, Proof::Primary { .. }));
        assert_eq!(proofs.count(), 1);
        [primary(&view).unwrap(), &*second].map(str::to_owned)
    });
    let other = lab.postgres().into_iter().find(|host| host.name() != leader && host.name() != dead).unwrap();
    proxied::members_with_certificates_and_a_standby_cluster(&lab, [lab.host(&leader), other]);
}

#[test]
fn over_etcd_the_fleet_follows_a_switchover_and_the_death_of_the_primary() {
    the_fleet_follows(Store::Etcd);
}

#[test]
fn over_consul_the_fleet_follows_a_switchover_and_the_death_of_the_primary() {
    the_fleet_follows(Store::Consul);
}

#[test]
fn over_zookeeper_the_fleet_follows_a_switchover_and_the_death_of_the_primary() {
    the_fleet_follows(Store::Zookeeper);
}

/// And so does a view from the members alone.
fn the_fleet_follows(store: Store) {
    let id = format!("{}{:x}", &format!("{store:?}")[..1].to_lowercase(), std::process::id());
    let lab = Lab::up(&LabSpec { store, proxy: Proxy::None, ..LabSpec::full(id) }, |_, _| ()).unwrap();
    on_client(&lab, async || {
        let handle = cluster::watch("main", &config(store));
        let by_rest = cluster::watch("main", &rest());
        let by_checks = cluster::watch("main", &checks().await);
        let follow = |leader: &str| {
            let leader = leader.to_string();
            move |view: &ClusterView| {
                let ready = |bouncer: &&Bouncer| {
                    bouncer.state == BouncerState::Ready && bouncer.leader.as_ref() == Some(&leader)
                };
                view.bouncers.values().filter(ready).count() == 3
            }
        };
        let open_to = |leader: &str| {
            let leader = leader.to_string();
            move |view: &ClusterView| primary(view) == Some(&leader)
        };
        let first = lab.leader().unwrap().name().to_string();
        until(&handle, "three bouncers on the leader", follow(&first)).await;
        let (view, _) = until(&by_rest, "the same by REST", open_to(&first)).await;
        assert_eq!((view.members.len(), &view.system_id), (3, &handle.view.borrow().system_id));
        let (view, _) = until(&by_checks, "the same by health checks", open_to(&first)).await;
        assert_eq!((view.members.len(), &view.system_id), (3, &handle.view.borrow().system_id));
        for members in [&by_rest, &by_checks] {
            until(members, "lag of all", |view| view.members.values().all(|member| member.lag.is_some())).await;
        }

        let second = if first == "pg1" { "pg2" } else { "pg1" };
        lab.switchover(second).unwrap();
        until(&handle, "three bouncers on the new leader", follow(second)).await;
        for members in [&by_rest, &by_checks] {
            let (view, _) = until(members, "the new one by REST", open_to(second)).await;
            assert!(view.cut.contains_key(&first), "{:?}", view.cut);
        }
        for bouncer in lab.bouncers() {
            assert_eq!(lab.sql(bouncer, 6432, "SELECT pg_is_in_recovery()").unwrap(), "f", "{}", bouncer.name());
        }

        // Each server of the store dies once, among them the one in use and the store's own leader: no news, and the
        // bouncers stay registered.
        for n in 1..=3 {
            let name = format!("{store:?}").to_lowercase();
            let server = lab.host(&format!("{name}{n}")).service(&name).unwrap();
            server.kill(libc::SIGKILL).unwrap();
            let end = Instant::now() + Duration::from_secs(5);
            let mut views = handle.view.clone();
            while let Ok(changed) = tokio::time::timeout_at(end.into(), views.changed()).await {
                changed.unwrap();
                let view = views.borrow_and_update().clone();
                assert!(view.cut.contains_key(&first) && !view.cut.contains_key(second), "{name}{n}: {view:#?}");
            }
            server.restart().unwrap();
            let whole = |view: &ClusterView| {
                matches!(view.store, StoreHealth::Connected { .. }) && open_to(second)(view) && follow(second)(view)
            };
            let (_, took) = until(&handle, &format!("whole again without {name}{n}"), whole).await;
            assert!(took < Duration::from_secs(30), "{took:?}");
        }

        lab.kill_postgres(lab.net.find(second).unwrap(), true).unwrap();
        let died = Instant::now();
        let (view, _) = until(&handle, "another open", |view| primary(view).is_some_and(|now| now != second)).await;
        let (third, opened) = (primary(&view).unwrap().to_string(), Instant::now());
        until(&by_rest, "the third by REST", open_to(&third)).await;
        let rest_behind = opened.elapsed();
        until(&handle, "three bouncers on the third leader", follow(&third)).await;
        println!(
            "{store:?}: {third} opened {:?} after {second} died, by REST {rest_behind:?} later; three bouncers repointed \
             and registered {:?} after it opened",
            opened - died,
            opened.elapsed()
        );
        for bouncer in lab.bouncers() {
            assert_eq!(lab.sql(bouncer, 6432, "SELECT pg_is_in_recovery()").unwrap(), "f", "{}", bouncer.name());
        }
        println!("{}", lab.bouncers()[0].service("agent").unwrap().log_tail(40));
    });
}
