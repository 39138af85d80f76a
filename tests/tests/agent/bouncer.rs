//! A real PgBouncer on loopback, from the lab's root, started for one test and gone with it.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio_postgres::{Client, Config, Error, NoTls, SimpleQueryMessage};

/// PgBouncer refuses to run as root.
const NOBODY: u32 = 65534;

/// A line that no configuration may have.
const FAULT: &str = "[broken\n";

pub struct PgBouncer {
    pub port: u16,
    folder: TempDir,
    process: Option<Child>,
}

impl PgBouncer {
    pub fn start() -> Self {
        let folder = TempDir::new().unwrap();
        let port = pgsplice_tests::stores::free_port();
        let mut bouncer = Self { port, folder, process: None };
        let ini = format!(
            "%include {databases}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir = {dir}\n\
             auth_type = scram-sha-256\nauth_file = {dir}/users.txt\nadmin_users = pgbouncer\npool_mode = transaction\nlogfile = {dir}/log\n",
            databases = bouncer.databases_file().display(),
            dir = bouncer.folder.path().display(),
        );
        std::fs::write(bouncer.main_file(), ini).unwrap();
        std::fs::write(bouncer.databases_file(), "[databases]\napp = host=127.9.9.9\n").unwrap();
        std::fs::write(bouncer.folder.path().join("users.txt"), "\"pgbouncer\" \"secret\"\n").unwrap();
        std::fs::set_permissions(bouncer.folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        bouncer.restart();
        bouncer
    }

    fn main_file(&self) -> PathBuf {
        self.folder.path().join("pgbouncer.ini")
    }

    pub fn databases_file(&self) -> PathBuf {
        self.folder.path().join("databases.ini")
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join(format!(".s.PGSQL.{}", self.port))
    }

    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
        let _ = std::fs::remove_file(self.socket());
    }

    pub fn restart(&mut self) {
        self.kill();
        let root = xtask::setup::root();
        // The root's own loader and libraries: its PgBouncer is newer than this machine's C library may be.
        let mut command = Command::new(root.join("lib64/ld-linux-x86-64.so.2"));
        command
            .arg("--library-path")
            .arg(root.join("usr/lib/x86_64-linux-gnu"))
            .arg(root.join("usr/sbin/pgbouncer"))
            .arg(self.main_file())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // SAFETY: geteuid and prctl take no pointers here and are async-signal-safe.
        unsafe {
            if libc::geteuid() == 0 {
                command.uid(NOBODY).gid(NOBODY);
            }
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        self.process = Some(command.spawn().expect("pgbouncer from `cargo xtask setup`"));
        let deadline = Instant::now() + Duration::from_secs(10);
        while std::os::unix::net::UnixStream::connect(self.socket()).is_err() {
            let log = || std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "pgbouncer does not start: {}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// From now on it refuses what RELOAD reads. What stands before a fault is loaded all the same: the fault comes first.
    pub fn break_config(&self) {
        let good = std::fs::read_to_string(self.main_file()).unwrap();
        std::fs::write(self.main_file(), format!("{FAULT}{good}")).unwrap();
    }

    pub fn mend_config(&self) {
        let broken = std::fs::read_to_string(self.main_file()).unwrap();
        std::fs::write(self.main_file(), broken.replace(FAULT, "")).unwrap();
    }

    pub fn freeze(&self) {
        self.signal(libc::SIGSTOP);
    }

    pub fn thaw(&self) {
        self.signal(libc::SIGCONT);
    }

    fn signal(&self, signal: i32) {
        let pid = self.process.as_ref().unwrap().id();
        // SAFETY: kill takes no pointers, and the child is not reaped while we hold it.
        assert_eq!(unsafe { libc::kill(pid as i32, signal) }, 0);
    }

    /// A client of database `app`.
    pub async fn client(&self) -> Client {
        self.try_client().await.unwrap()
    }

    pub async fn try_client(&self) -> Result<Client, Error> {
        let mut login = Config::new();
        login.host("127.0.0.1").port(self.port).user("pgbouncer").password("secret").dbname("app");
        let (client, connection) = login.connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// The databases that are paused.
    pub async fn paused(&self) -> Vec<String> {
        self.those("paused").await
    }

    /// The databases that are disabled.
    pub async fn disabled(&self) -> Vec<String> {
        self.those("disabled").await
    }

    async fn those(&self, column: &str) -> Vec<String> {
        let rows = self.console("SHOW DATABASES").await;
        let those = rows.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) if row.get(column) == Some("1") => row.get("name"),
            _ => None,
        });
        those.map(Into::into).collect()
    }

    pub async fn console(&self, command: &str) -> Vec<SimpleQueryMessage> {
        let mut login = Config::new();
        login.host_path(self.folder.path()).port(self.port).user("pgbouncer").password("secret").dbname("pgbouncer");
        let (client, connection) = login.connect(NoTls).await.unwrap();
        let pump = tokio::spawn(connection);
        let answer = client.simple_query(command).await.unwrap();
        pump.abort();
        answer
    }

    /// Where PgBouncer sends the sessions of this database.
    pub async fn host_of(&self, database: &str) -> String {
        let rows = self.console("SHOW DATABASES").await;
        let found = rows.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) if row.get("name") == Some(database) => row.get("host"),
            _ => None,
        });
        found.unwrap_or_default().to_string()
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        self.kill();
    }
}
