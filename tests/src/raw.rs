//! PostgreSQL's protocol by hand, for what no driver does: a startup of any version, and what comes back.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// A connection that has sent its StartupMessage.
#[derive(Debug)]
pub struct Raw(TcpStream);

/// A message of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub kind: char,
    pub body: Vec<u8>,
}

impl Raw {
    /// Protocol 3.`minor` with these parameters.
    pub fn startup(at: SocketAddr, minor: u16, parameters: &[(&str, &str)]) -> Result<Self> {
        let mut stream = TcpStream::connect(at)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut body = vec![0, 3];
        body.extend(minor.to_be_bytes());
        for (name, value) in parameters {
            body.extend([name.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat());
        }
        body.push(0);
        stream.write_all(&[&(body.len() as u32 + 4).to_be_bytes(), &body[..]].concat())?;
        Ok(Self(stream))
    }

    pub fn send(&mut self, kind: char, body: &[u8]) -> Result<()> {
        let length = (body.len() as u32 + 4).to_be_bytes();
        Ok(self.0.write_all(&[&[kind as u8], &length[..], body].concat())?)
    }

    /// The messages up to and with the first of this kind.
    pub fn until(&mut self, last: char) -> Result<Vec<Message>> {
        let mut messages = Vec::new();
        loop {
            let mut head = [0; 5];
            self.0.read_exact(&mut head).with_context(|| format!("after {messages:?}"))?;
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
            ensure!((4..1 << 20).contains(&length), "a message of {length} bytes after {messages:?}");
            let mut body = vec![0; length - 4];
            self.0.read_exact(&mut body)?;
            let kind = head[0] as char;
            messages.push(Message { kind, body });
            if kind == last {
                return Ok(messages);
            }
        }
    }
}
