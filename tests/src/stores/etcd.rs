//! An etcd of one or three members.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use etcd_client::{Client, ConnectOptions, PutOptions, TlsOptions};
use pgsplice::config::{EtcdConfig, StoreConfig};
use tempfile::TempDir;

use super::{Owner, Process, Server, free_port};

pub struct Etcd {
    members: Vec<Member>,
    tls: Option<(TlsOptions, Vec<String>)>,
    folder: TempDir,
}

struct Member {
    client_port: u16,
    process: Process,
}

impl Etcd {
    pub fn start_many(members: usize) -> Self {
        Self::start_with(members, &[], None)
    }

    /// `tls`: what a client needs, and the server's own flags.
    pub fn start_with(members: usize, extra: &[&str], tls: Option<(TlsOptions, Vec<String>)>) -> Self {
        let folder = TempDir::new().unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let ports: Vec<(u16, u16)> = (0..members).map(|_| (free_port(), free_port())).collect();
        let named = |(index, (_, peer)): (usize, &(u16, u16))| format!("m{index}=http://127.0.0.1:{peer}");
        let initial: Vec<String> = ports.iter().enumerate().map(named).collect();
        let log = folder.path().join("log");
        let member = |(index, &(client_port, peer_port)): (usize, &(u16, u16))| {
            let (client, peer) =
                (format!("{scheme}://127.0.0.1:{client_port}"), format!("http://127.0.0.1:{peer_port}"));
            let mut command = Command::new(xtask::setup::root().join("usr/bin/etcd"));
            command
                .args(["--name", &format!("m{index}"), "--data-dir"])
                .arg(folder.path().join(format!("m{index}")))
                .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
                .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
                .args(["--initial-cluster", &initial.join(","), "--initial-cluster-token", "test"])
                .args(["--unsafe-no-fsync", "--heartbeat-interval", "50", "--election-timeout", "500"])
                .args(extra)
                .args(tls.iter().flat_map(|(_, flags)| flags));
            Member { client_port, process: Process::new(command, &log) }
        };
        let members = ports.iter().enumerate().map(member).collect();
        let mut etcd = Self { members, tls, folder };
        for member in &mut etcd.members {
            member.process.start();
        }
        for index in 0..etcd.members.len() {
            etcd.wait_for(index);
        }
        etcd
    }

    pub fn endpoint(&self, index: usize) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.members[index].client_port)
    }

    pub fn endpoints(&self) -> Vec<String> {
        (0..self.members.len()).map(|index| self.endpoint(index)).collect()
    }

    pub async fn client(&self) -> Client {
        self.client_as(None).await
    }

    pub async fn client_as(&self, user: Option<(&str, &str)>) -> Client {
        let mut options = ConnectOptions::new().with_timeout(Duration::from_secs(10));
        if let Some((tls, _)) = &self.tls {
            options = options.with_tls(tls.clone());
        }
        if let Some((name, password)) = user {
            options = options.with_user(name, password);
        }
        Client::connect(self.endpoints(), Some(options)).await.unwrap()
    }

    pub fn kill(&mut self, index: usize) {
        self.members[index].process.kill();
    }

    pub fn restart(&mut self, index: usize) {
        self.members[index].process.restart();
        self.wait_for(index);
    }

    fn data(&self, index: usize) -> PathBuf {
        self.folder.path().join(format!("m{index}"))
    }

    /// Until the port accepts: calls wait for an election.
    fn wait_for(&self, index: usize) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(("127.0.0.1", self.members[index].client_port)).is_err() {
            let log = || std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "etcd does not start: {}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Of the first member.
impl Server for Etcd {
    async fn start() -> Self {
        Self::start_many(1)
    }

    fn at(&self, port: u16, look: Duration) -> StoreConfig {
        let endpoints = vec![format!("http://127.0.0.1:{port}")];
        StoreConfig::Etcd(EtcdConfig { endpoints, keepalive_interval: look, ..EtcdConfig::default() })
    }

    fn port(&self) -> u16 {
        self.members[0].client_port
    }

    async fn put(&mut self, key: &str, value: &[u8]) {
        self.client().await.put(key, value, None).await.unwrap();
    }

    async fn delete(&mut self, key: &str) {
        self.client().await.delete(key, None).await.unwrap();
    }

    async fn put_owned(&mut self, key: &str, value: &[u8]) -> Owner {
        let mut client = self.client().await;
        let lease = client.lease_grant(60, None).await.unwrap().id();
        client.put(key, value, Some(PutOptions::new().with_lease(lease))).await.unwrap();
        Owner(lease.to_string())
    }

    async fn end(&mut self, owner: Owner) {
        self.client().await.lease_revoke(owner.0.parse().unwrap()).await.unwrap();
    }

    async fn expire(&mut self, key: &str) {
        let lease = self.client().await.get(key, None).await.unwrap().kvs()[0].lease();
        self.end(Owner(lease.to_string())).await;
    }

    fn process(&mut self) -> &mut Process {
        &mut self.members[0].process
    }

    async fn ready(&mut self) {
        self.wait_for(0);
    }

    fn data_folder(&self) -> PathBuf {
        self.data(0)
    }
}
