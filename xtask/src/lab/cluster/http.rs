//! One HTTP request to a server of the lab, from a host of the lab: enough for Patroni's REST API, etcd's health and
//! pgsplice's metrics.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::lab::Host;

const LIMIT: Duration = Duration::from_secs(5);

/// The status and the body of an answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

/// `GET path`.
pub fn get(from: &Host, server: SocketAddr, path: &str) -> Result<Answer> {
    request(from, server, &format!("GET {path} HTTP/1.0\r\nHost: {server}\r\n\r\n"))
}

/// `PATCH path` with a JSON body.
pub fn patch(from: &Host, server: SocketAddr, path: &str, body: &str) -> Result<Answer> {
    let length = body.len();
    let head = format!("PATCH {path} HTTP/1.0\r\nHost: {server}\r\nContent-Type: application/json\r\n");
    request(from, server, &format!("{head}Content-Length: {length}\r\n\r\n{body}"))
}

fn request(from: &Host, server: SocketAddr, request: &str) -> Result<Answer> {
    let exchange = || -> Result<Answer> {
        let mut stream = TcpStream::connect_timeout(&server, LIMIT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").context("an answer without a body")?;
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).context("an answer without a status")?;
        Ok(Answer { status, body: body.to_owned() })
    };
    let what = request.lines().next().unwrap_or_default().trim_end_matches(" HTTP/1.0");
    from.on_thread(exchange)?.with_context(|| format!("{what} from {server}"))
}
