//! How sessions leave a node that is primary no more, and come to the next: a real etcd, members that say what the test
//! wants, backends that the test plays.

// A test stops at the first thing that goes wrong.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use etcd_client::Client;
use pgsplice_tests::local::{Backend, Proxy, echo, log_in, login_reply, startup};
use pgsplice_tests::member::Member;
use pgsplice_tests::stores::Etcd;

const SESSIONS: u64 = 20;

struct World {
    store: Client,
    members: [Member; 2],
    backends: [Backend; 2],
    proxy: Proxy,
    _etcd: Etcd,
}

impl World {
    /// pg1 leads.
    async fn new(pool: &str) -> Self {
        let etcd = Etcd::start_many(1);
        let mut store = etcd.client().await;
        let members = [Member::start("pg1").await, Member::start("pg2").await];
        let backends = [Backend::logged_in(echo), Backend::logged_in(echo)];
        for (member, backend) in members.iter().zip(&backends) {
            let key = format!("/service/lab/members/{}", member.name);
            store.put(key, member.key(&backend.address.to_string()), None).await.unwrap();
        }
        members[0].is_primary(1);
        store.put("/service/lab/leader", "pg1", None).await.unwrap();
        let cluster = format!(
            "[cluster.main]\nscope = \"lab\"\n[cluster.main.etcd]\nendpoints = [\"{}\"]\n[cluster.main.proof]\ninterval = \"100ms\"",
            etcd.endpoint(0)
        );
        let pool = format!(
            "cluster = \"main\"\nroute = \"node-local\"\nrole = \"primary\"\naddress = \"conn-url\"\nprobe.kind = \"none\"\n{pool}"
        );
        let proxy = Proxy::start(&format!("{cluster}\n{}", Proxy::config(&[], &pool, "")));
        proxy.wait_candidates(1);
        Self { store, members, backends, proxy, _etcd: etcd }
    }

    async fn lead(&mut self, member: &str) {
        self.store.put("/service/lab/leader", member, None).await.unwrap();
    }

    fn clients(&self) -> Vec<TcpStream> {
        let client = |_| {
            let mut client = self.proxy.connect();
            log_in(&mut client);
            client
        };
        (0..SESSIONS).map(client).collect()
    }

    /// From now until so many sessions are left.
    fn until_left(&self, sessions: u64) -> Duration {
        let begun = Instant::now();
        self.proxy.wait("sessions to be cut", |proxy| proxy.sessions() <= sessions);
        begun.elapsed()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_leave_a_node_that_denies_over_the_spread_and_one_that_may_still_write_at_once() {
    let mut world = World::new("cut_spread = \"2s\"").await;
    let _clients = world.clients();
    assert_eq!(world.backends[0].served(), SESSIONS as usize);
    // It says itself that it takes no writes.
    world.members[0].is_replica();
    world.until_left(SESSIONS - 1);
    let half = world.until_left(SESSIONS / 2);
    let all = half + world.until_left(0);
    assert!(half > Duration::from_millis(500), "half of them were cut within {half:?}: the next primary is stormed");
    assert!((Duration::from_millis(1200)..Duration::from_secs(3)).contains(&all), "all were cut after {all:?}");
    assert_eq!(world.proxy.ended("demoted"), SESSIONS);

    // Deposed: the key names another, and it goes on claiming.
    world.members[0].is_primary(1);
    world.proxy.wait_candidates(1);
    let _clients = world.clients();
    world.lead("pg2").await;
    let all = world.until_left(0);
    assert!(all < Duration::from_millis(500), "what it writes meanwhile is lost: {all:?}");
    assert_eq!(world.proxy.ended("demoted"), 2 * SESSIONS);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_primary_is_given_its_sessions_slowly() {
    let mut world = World::new("slow_start = \"2s\"\nmax_sessions_per_backend = 20\nqueue.timeout = \"20s\"").await;
    world.members[0].is_replica();
    world.members[1].is_primary(2);
    world.lead("pg2").await;
    let begin = |_| {
        let mut client = world.proxy.connect();
        client.write_all(&startup("alice")).unwrap();
        client
    };
    world.proxy.wait("pg2 to be open", |proxy| proxy.log().contains("new sessions go to pg2"));
    let begun = Instant::now();
    let mut clients: Vec<_> = (0..SESSIONS).map(begin).collect();
    std::thread::sleep(Duration::from_millis(300));
    let early = world.backends[1].served();
    assert!((1..=8).contains(&early), "{early} of {SESSIONS} after 0.3 s of 2 s");
    for client in &mut clients {
        client.read_exact(&mut vec![0; login_reply().len()]).unwrap();
    }
    let all = begun.elapsed();
    assert!((Duration::from_millis(1200)..Duration::from_secs(4)).contains(&all), "all were in after {all:?}");
}
