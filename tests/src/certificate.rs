//! A server certificate and the authority that vouches for it, made anew for each lab.

use anyhow::Result;
use xtask::lab::Host;

/// All of it PEM.
#[derive(Debug, Clone)]
pub struct Certificate {
    pub authority: String,
    pub certificate: String,
    pub key: String,
}

impl Certificate {
    /// For a server that clients reach at any of `at`, with the openssl of one of the lab's hosts.
    pub fn make(maker: &Host, at: &[&Host]) -> Result<Self> {
        let names = at.iter().map(|host| format!("DNS:{},IP:{},IP:{}", host.name(), host.v4(), host.v6()));
        let name = format!("subjectAltName={}", names.collect::<Vec<_>>().join(","));
        let script = "set -e
            cd \"$(mktemp -d)\"
            new() { openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \"$@\" 2>&1; }
            new -subj '/CN=authority of the lab' -addext keyUsage=critical,keyCertSign -keyout ca.key -out ca.crt >&2
            new -subj /CN=server -CA ca.crt -CAkey ca.key -addext \"$1\" \
                -addext basicConstraints=critical,CA:false -keyout server.key -out server.crt >&2
            for file in ca.crt server.crt server.key; do cat $file; echo @; done";
        let said = maker.output(["sh", "-c", script, "sh", &name])?;
        let mut files = said.split("@\n").map(str::to_owned);
        let mut next = || files.next().unwrap_or_default();
        Ok(Self { authority: next(), certificate: next(), key: next() })
    }
}
