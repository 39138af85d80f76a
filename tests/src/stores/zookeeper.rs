//! ZooKeeper, one server, in the Debian root that has a Java for it; and kazoo, the client that Patroni uses, to write
//! into it.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use pgsplice::config::{StoreConfig, TlsFiles, ZookeeperConfig};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Owner, Process, Server, free_port, until_ok};

pub struct Zookeeper {
    port: u16,
    /// With [`Self::start_with`]'s settings for TLS.
    pub tls_port: u16,
    process: Process,
    kazoo: Option<Kazoo>,
    /// `user:password` of what is written.
    login: Option<String>,
    folder: TempDir,
}

/// A process that does what it is told, one JSON line for another.
struct Kazoo {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

const KAZOO: &str = include_str!("kazoo.py");

impl Zookeeper {
    /// More lines of its configuration, where `@FOLDER@` is the folder `files` were copied to and `@TLS_PORT@` a port.
    pub async fn start_with(more: &str, files: &[PathBuf], login: Option<&str>) -> Self {
        let folder = TempDir::new().unwrap();
        let (port, tls_port) = (free_port(), free_port());
        for file in files {
            std::fs::copy(file, folder.path().join(file.file_name().unwrap())).unwrap();
        }
        let more = more.replace("@FOLDER@", "/mnt").replace("@TLS_PORT@", &tls_port.to_string());
        let config = format!(
            "tickTime=200\ndataDir=/mnt/data\nclientPort={port}\nclientPortAddress=127.0.0.1\nminSessionTimeout=500\n\
             maxSessionTimeout=60000\nadmin.enableServer=false\n{more}\n"
        );
        std::fs::write(folder.path().join("zoo.cfg"), config).unwrap();
        let java = "java -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xmx64m -cp '/opt/java/*' \
            org.apache.zookeeper.server.quorum.QuorumPeerMain /mnt/zoo.cfg";
        let mut process = Process::new(in_root(&folder, java), &folder.path().join("log"));
        process.start();
        let login = login.map(Into::into);
        let mut zookeeper = Self { port, tls_port, process, kazoo: None, login, folder };
        zookeeper.ready().await;
        zookeeper
    }

    /// As pgsplice is configured for it.
    pub fn zookeeper_config(&self) -> ZookeeperConfig {
        ZookeeperConfig { hosts: vec![format!("127.0.0.1:{}", self.port)], ..ZookeeperConfig::default() }
    }

    /// The same over TLS.
    pub fn tls_config(&self, tls: TlsFiles) -> ZookeeperConfig {
        ZookeeperConfig { hosts: vec![format!("127.0.0.1:{}", self.tls_port)], tls, ..ZookeeperConfig::default() }
    }

    fn tell(&mut self, command: Value) -> String {
        let said = self.kazoo.as_mut().unwrap().tell(&command);
        let log = || std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        said.unwrap_or_else(|error| panic!("{command}: {error}\n{}", log()))
    }
}

/// A shell command in the root, with the stores at /opt and the folder at /mnt, in a mount namespace of its own.
fn in_root(folder: &TempDir, command: &str) -> Command {
    let (root, stores) = (xtask::setup::root(), xtask::setup::stores());
    let (root, stores, folder) = (root.display(), stores.display(), folder.path().display());
    let script = format!(
        "mount -t proc proc {root}/proc && mount --bind {stores} {root}/opt && mount --bind {folder} {root}/mnt && \
         exec chroot {root} {command}"
    );
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
    unshare
}

impl Server for Zookeeper {
    async fn start() -> Self {
        Self::start_with("", &[], None).await
    }

    fn at(&self, port: u16, look: Duration) -> StoreConfig {
        let hosts = vec![format!("127.0.0.1:{port}")];
        StoreConfig::Zookeeper(ZookeeperConfig { hosts, keepalive_interval: look, ..ZookeeperConfig::default() })
    }

    fn port(&self) -> u16 {
        self.port
    }

    async fn put(&mut self, key: &str, value: &[u8]) {
        self.tell(json!({ "do": "put", "path": key, "value": value }));
    }

    async fn delete(&mut self, key: &str) {
        self.tell(json!({ "do": "delete", "path": key }));
    }

    async fn put_owned(&mut self, key: &str, value: &[u8]) -> Owner {
        Owner(self.tell(json!({ "do": "put_owned", "path": key, "value": value })))
    }

    async fn end(&mut self, owner: Owner) {
        self.tell(json!({ "do": "end", "owner": owner.0 }));
    }

    /// Nobody can end another's session: the node goes, as it would.
    async fn expire(&mut self, key: &str) {
        self.delete(key).await;
    }

    fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    async fn ready(&mut self) {
        let log = self.folder.path().join("log");
        let port = self.port;
        until_ok(&log, async || std::net::TcpStream::connect(("127.0.0.1", port))).await;
        self.kazoo = Some(Kazoo::start(&self.folder, self.port, self.login.as_deref()));
        // It waits until the server serves.
        self.put("/ready", b"").await;
    }

    fn data_folder(&self) -> PathBuf {
        self.folder.path().join("data")
    }
}

impl Kazoo {
    fn start(folder: &TempDir, port: u16, login: Option<&str>) -> Self {
        std::fs::write(folder.path().join("kazoo.py"), KAZOO).unwrap();
        let log = std::fs::File::options().append(true).open(folder.path().join("log")).unwrap();
        let command = format!("python3 -u /mnt/kazoo.py 127.0.0.1:{port} {}", login.unwrap_or_default());
        let mut process =
            in_root(folder, &command).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let (input, output) = (process.stdin.take().unwrap(), BufReader::new(process.stdout.take().unwrap()));
        Self { process, input, output }
    }

    fn tell(&mut self, command: &Value) -> Result<String, String> {
        writeln!(self.input, "{command}").map_err(|error| error.to_string())?;
        let mut line = String::new();
        self.output.read_line(&mut line).map_err(|error| error.to_string())?;
        let said: Value = serde_json::from_str(&line).map_err(|error| format!("{error}: {line:?}"))?;
        match said["error"].as_str() {
            Some(error) => Err(error.into()),
            None => Ok(said["ok"].as_str().unwrap_or_default().into()),
        }
    }
}

/// It also ends by itself when its input does.
impl Drop for Kazoo {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
