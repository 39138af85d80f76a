//! Host names in `conn_url` and `proxy_url`, resolved beside the view: a resolver that is slow or gone leaves the
//! last known address in place.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use reqwest::Url;
use tokio::task::JoinSet;

/// How long an answer is believed; there is no TTL in what the C library returns.
const TTL: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(5);
/// PostgreSQL's, for a `conn_url` without a port.
const DEFAULT_PORT: u16 = 5432;

/// A host, by name or number, and a port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    pub host: String,
    pub port: u16,
}

impl HostPort {
    /// Of a `postgres://` URL.
    pub fn of_url(url: &str) -> Option<Self> {
        let url = Url::parse(url).ok()?;
        let host = url.host_str()?.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return None;
        }
        Some(Self { host: host.into(), port: url.port().unwrap_or(DEFAULT_PORT) })
    }

    /// The address, where the host is one already.
    pub fn literal(&self) -> Option<SocketAddr> {
        self.host.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, self.port))
    }
}

/// Looks names up in the background, each once at a time.
#[derive(Debug, Default)]
pub struct Resolver {
    names: BTreeMap<HostPort, Name>,
    running: JoinSet<(HostPort, Result<Vec<SocketAddr>, String>)>,
}

#[derive(Debug, Default)]
struct Name {
    address: Option<SocketAddr>,
    /// `None` while a lookup runs.
    next: Option<Instant>,
}

impl Resolver {
    /// Starts what is due of `wanted`, forgets the rest, and says when to come again.
    pub fn poll(&mut self, wanted: impl IntoIterator<Item = HostPort>, now: Instant) -> Option<Instant> {
        let mut before = std::mem::take(&mut self.names);
        for host in wanted.into_iter().filter(|host| host.literal().is_none()) {
            let fresh = Name { address: None, next: Some(now) };
            let mut name = before.remove(&host).unwrap_or(fresh);
            if name.next.is_some_and(|next| next <= now) {
                name.next = None;
                self.running.spawn(look_up(host.clone()));
            }
            self.names.insert(host, name);
        }
        self.names.values().filter_map(|name| name.next).min()
    }

    /// The next address that is new; pends while no lookup runs.
    pub async fn changed(&mut self) -> (HostPort, SocketAddr) {
        loop {
            match self.running.join_next().await {
                Some(Ok((host, found))) => {
                    if let Some(address) = self.note(&host, found, Instant::now()) {
                        return (host, address);
                    }
                }
                Some(Err(_)) => {}
                None => std::future::pending().await,
            }
        }
    }

    fn note(&mut self, host: &HostPort, found: Result<Vec<SocketAddr>, String>, now: Instant) -> Option<SocketAddr> {
        let name = self.names.get_mut(host)?;
        match found {
            Ok(addresses) => {
                name.next = Some(now + TTL);
                // Round-robin DNS must not make the address jump.
                if name.address.is_some_and(|address| addresses.contains(&address)) {
                    return None;
                }
                name.address = addresses.first().copied();
                name.address
            }
            Err(why) => {
                tracing::warn!(host = host.host, kept = ?name.address, why, "cannot resolve a member's host");
                name.next = Some(now + RETRY);
                None
            }
        }
    }
}

async fn look_up(host: HostPort) -> (HostPort, Result<Vec<SocketAddr>, String>) {
    let lookup = tokio::net::lookup_host((host.host.clone(), host.port));
    let found = match tokio::time::timeout(TIMEOUT, lookup).await {
        Ok(Ok(addresses)) => Ok(addresses.collect()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {TIMEOUT:?}")),
    };
    (host, found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(url: &str) -> Option<(String, u16)> {
        HostPort::of_url(url).map(|host| (host.host, host.port))
    }

    #[test]
    fn hosts_and_ports_are_found_in_postgres_urls() {
        assert_eq!(host("postgres://10.0.0.2:5433/postgres"), Some(("10.0.0.2".into(), 5433)));
        assert_eq!(host("postgres://u:p%40@db1.example/postgres?a=b"), Some(("db1.example".into(), 5432)));
        assert_eq!(host("postgres://[fd00::1]:6432/"), Some(("fd00::1".into(), 6432)));
        for bad in ["", "postgres", "postgres:///x", "postgres://:5432/", "postgres://h:99999/", "\u{0}"] {
            assert_eq!(host(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_failed_lookup_keeps_the_address_and_a_rotated_answer_too() {
        let name = HostPort { host: "db".into(), port: 1 };
        let address = |last| SocketAddr::from(([10, 0, 0, last], 1));
        let now = Instant::now();
        let mut resolver = Resolver::default();
        resolver.names.insert(name.clone(), Name::default());
        assert_eq!(resolver.note(&name, Ok(vec![address(1), address(2)]), now), Some(address(1)));
        assert_eq!(resolver.note(&name, Ok(vec![address(2), address(1)]), now), None);
        assert_eq!(resolver.note(&name, Err("gone".into()), now), None);
        assert_eq!(resolver.names[&name].address, Some(address(1)));
        assert_eq!(resolver.note(&name, Ok(vec![address(3)]), now), Some(address(3)));
    }

    #[tokio::test]
    async fn localhost_resolves() {
        let mut resolver = Resolver::default();
        let name = HostPort { host: "localhost".into(), port: 7 };
        resolver.poll([name.clone()], Instant::now());
        let (found, address) = resolver.changed().await;
        assert!(found == name && address.ip().is_loopback() && address.port() == 7);
    }
}
