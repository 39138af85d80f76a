//! A REST API behind TLS, as Patroni's `restapi.certfile`, `cafile` and `verify_client` have it: files that OpenSSL serves.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pgsplice::config::TlsFiles;
use xtask::lab::until;

/// `openssl s_server -HTTP` answers with the file named in the request, to those whose certificate the CA of
/// [`crate::stores::certificates`] signed. Killed when dropped.
pub struct TlsServer(Child);

impl TlsServer {
    /// On 127.0.0.1; returns when it takes connections.
    pub fn start(folder: &Path, port: u16) -> Self {
        let server = Command::new("openssl")
            .args(["s_server", "-quiet", "-HTTP", "-accept", &format!("127.0.0.1:{port}")])
            .args(["-cert", "server.crt", "-key", "server.key", "-CAfile", "ca.crt", "-Verify", "1"])
            .args(["-verify_return_error"])
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let server = Self(server.unwrap());
        let is_there = || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
        until("openssl s_server", Duration::from_secs(10), is_there).unwrap();
        server
    }

    /// What `GET /file` is answered with.
    pub fn serve(folder: &Path, file: &str, body: &str) {
        let answer = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        std::fs::write(folder.join(file), answer).unwrap();
    }

    /// Those of a client that it answers.
    pub fn files(folder: &Path) -> TlsFiles {
        let file = |name: &str| Some(folder.join(name));
        TlsFiles { ca: file("ca.crt"), cert: file("client.crt"), key: file("client.key"), server_name: None }
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
