//! Consul 1.8, one server that is its own agent.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use pgsplice::config::{ConsulConfig, StoreConfig, TlsFiles};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Owner, Process, Server, free_port, until_ok};

pub struct Consul {
    pub http: u16,
    /// With [`Self::start_with`]'s settings for TLS.
    pub https: u16,
    /// What writes are made with.
    pub token: Option<String>,
    process: Process,
    folder: TempDir,
}

impl Consul {
    /// More settings, as in its configuration file.
    pub async fn start_with(more: Value) -> Self {
        let folder = TempDir::new().unwrap();
        let (http, https) = (free_port(), free_port());
        let mut config = json!({
            "server": true,
            "bootstrap": true,
            "node_name": "test",
            "data_dir": folder.path().join("data"),
            "bind_addr": "127.0.0.1",
            "client_addr": "127.0.0.1",
            "disable_update_check": true,
            "log_level": "warn",
            "performance": { "raft_multiplier": 1 },
            "ports": {
                "http": http, "https": -1, "dns": -1, "grpc": -1, "serf_wan": -1,
                "server": free_port(), "serf_lan": free_port(),
            },
        });
        if more.get("cert_file").is_some() {
            config["ports"]["https"] = https.into();
        }
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let file = folder.path().join("consul.json");
        std::fs::write(&file, config.to_string()).unwrap();
        let mut command = Command::new(xtask::setup::stores().join("bin/consul"));
        command.args(["agent", "-config-file"]).arg(file);
        let mut process = Process::new(command, &folder.path().join("log"));
        process.start();
        let token = more.pointer("/acl/tokens/master").and_then(Value::as_str).map(Into::into);
        let mut consul = Self { http, https, token, process, folder };
        consul.ready().await;
        consul
    }

    /// As pgsplice is configured for it.
    pub fn consul_config(&self) -> ConsulConfig {
        ConsulConfig { endpoints: vec![format!("http://127.0.0.1:{}", self.http)], ..ConsulConfig::default() }
    }

    /// The same over TLS.
    pub fn tls_config(&self, tls: TlsFiles) -> ConsulConfig {
        ConsulConfig { endpoints: vec![format!("https://127.0.0.1:{}", self.https)], tls, ..ConsulConfig::default() }
    }

    /// The body of an answer with 200, as text.
    pub async fn call(&self, method: &str, path: &str, body: &[u8]) -> Result<String, String> {
        self.call_bytes(method, path, body).await.map(|body| String::from_utf8_lossy(&body).into_owned())
    }

    /// The same as it came.
    pub async fn call_bytes(&self, method: &str, path: &str, body: &[u8]) -> Result<Vec<u8>, String> {
        let wrong = |error: std::io::Error| error.to_string();
        let exchange = async {
            let mut stream = TcpStream::connect(("127.0.0.1", self.http)).await.map_err(wrong)?;
            let token = self.token.as_ref().map(|token| format!("X-Consul-Token: {token}\r\n")).unwrap_or_default();
            let length = body.len();
            let head = format!("{method} /v1/{path} HTTP/1.0\r\nContent-Length: {length}\r\n{token}\r\n");
            stream.write_all(&[head.as_bytes(), body].concat()).await.map_err(wrong)?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.map_err(wrong)?;
            let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
            match end {
                Some(end) if answer.split(|byte| *byte == b' ').nth(1) == Some(b"200") => Ok(answer.split_off(end + 4)),
                _ => Err(String::from_utf8_lossy(&answer).into_owned()),
            }
        };
        let limit = Duration::from_secs(5);
        tokio::time::timeout(limit, exchange).await.map_err(|_| String::from("no answer"))?
    }

    async fn write(&self, path: &str, body: &[u8]) -> String {
        self.call("PUT", path, body).await.unwrap_or_else(|error| panic!("PUT {path}: {error}"))
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }
}

impl Server for Consul {
    async fn start() -> Self {
        Self::start_with(json!({})).await
    }

    fn at(&self, port: u16, look: Duration) -> StoreConfig {
        StoreConfig::Consul(ConsulConfig {
            endpoints: vec![format!("http://127.0.0.1:{port}")],
            keepalive_interval: look,
            ..self.consul_config()
        })
    }

    fn port(&self) -> u16 {
        self.http
    }

    async fn put(&mut self, key: &str, value: &[u8]) {
        self.write(&format!("kv{key}"), value).await;
    }

    async fn delete(&mut self, key: &str) {
        self.call("DELETE", &format!("kv{key}"), b"").await.unwrap();
    }

    async fn put_owned(&mut self, key: &str, value: &[u8]) -> Owner {
        let session = json!({ "Behavior": "delete", "TTL": "10s", "LockDelay": "1ms" }).to_string();
        let created: Value = serde_json::from_str(&self.write("session/create", session.as_bytes()).await).unwrap();
        let id = created["ID"].as_str().unwrap();
        let acquired = self.write(&format!("kv{key}?acquire={id}"), value).await;
        assert!(acquired.starts_with("true"), "{key}: {acquired}");
        Owner(id.into())
    }

    async fn end(&mut self, owner: Owner) {
        self.write(&format!("session/destroy/{}", owner.0), b"").await;
    }

    async fn expire(&mut self, key: &str) {
        let entry = self.call("GET", &format!("kv{key}"), b"").await.unwrap();
        let entry: Value = serde_json::from_str(&entry).unwrap();
        self.end(Owner(entry[0]["Session"].as_str().expect("a session holds it").into())).await;
    }

    fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Until it has elected itself.
    async fn ready(&mut self) {
        until_ok(&self.log(), async || self.call("PUT", "kv/ready", b"").await).await;
    }

    fn data_folder(&self) -> PathBuf {
        self.folder.path().join("data")
    }
}
