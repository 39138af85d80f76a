//! Server connections that PgBouncer still has to an old primary. They are ended in the kernel (sock_diag): KILL would
//! end the clients with them, and RECONNECT waits for transactions that may never end there.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use super::console::{Console, ConsoleError};
use super::databases::Target;
use crate::sock_diag::destroy;

/// One row of SHOW SERVERS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Server {
    pub database: String,
    pub remote: SocketAddr,
    pub local: SocketAddr,
}

/// Which connections lead to a place where the databases do not point any more.
#[derive(Debug, Default)]
pub(super) struct OldPrimaries {
    /// Where the databases ever pointed, and every member seen.
    seen: BTreeSet<SocketAddr>,
}

/// What became of the connections to old primaries.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Swept {
    pub ended: usize,
    /// How many are left, and why.
    pub left: Option<(usize, String)>,
}

// === impl OldPrimaries ===

impl OldPrimaries {
    pub(super) fn saw(&mut self, addresses: impl IntoIterator<Item = SocketAddr>) {
        self.seen.extend(addresses);
    }

    /// `now` is where the target is reached.
    fn is_old(&self, server: &Server, target: &Target, now: Option<SocketAddr>) -> bool {
        match target.host.parse::<IpAddr>() {
            Ok(ip) => server.remote != SocketAddr::new(ip, target.port),
            // A name may have several addresses: only another member's is surely not the target's.
            Err(_) => now.is_some_and(|now| server.remote != now) && self.seen.contains(&server.remote),
        }
    }

    /// Ends every connection of the databases `of` that leads elsewhere, and looks again.
    pub(super) async fn sweep(
        &self,
        console: &mut Console,
        of: &BTreeSet<String>,
        target: &Target,
        now: Option<SocketAddr>,
    ) -> Result<Swept, ConsoleError> {
        let mut swept = Swept::default();
        let old = |servers: Vec<Server>| -> Vec<Server> {
            servers.into_iter().filter(|one| of.contains(&one.database) && self.is_old(one, target, now)).collect()
        };
        let there = old(console.servers().await?);
        if there.is_empty() {
            return Ok(swept);
        }
        let mut why = "PgBouncer has not noticed yet".to_owned();
        for server in &there {
            match destroy(server.local, server.remote) {
                Ok(()) => swept.ended += 1,
                Err(error) => why = format!("the kernel refused to end them: {error}"),
            }
        }
        let left = old(console.servers().await?).len();
        swept.left = (left > 0).then_some((left, why));
        Ok(swept)
    }
}

/// Ends every connection of these databases. How many; what the kernel does not let us end is in the log.
pub(super) async fn end(console: &mut Console, databases: &BTreeSet<String>) -> Result<usize, ConsoleError> {
    let servers = console.servers().await?;
    let mut ended = 0;
    for server in servers.iter().filter(|server| databases.contains(&server.database)) {
        match destroy(server.local, server.remote) {
            Ok(()) => ended += 1,
            Err(error) => tracing::warn!(%error, to = %server.remote, "a connection to a deposed primary goes on"),
        }
    }
    Ok(ended)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn server(remote: &str) -> Server {
        Server { database: "app".into(), remote: address(remote), local: address("10.0.0.9:40000") }
    }

    #[test]
    fn what_leads_elsewhere_is_old_and_with_a_name_only_what_was_seen() {
        let mut old = OldPrimaries::default();
        old.saw([address("10.0.0.1:5432"), address("10.0.0.2:5432")]);
        let target = |host: &str| Target { leader: "pg2".into(), timeline: Some(2), host: host.into(), port: 5432 };
        let now = Some(address("10.0.0.2:5432"));
        assert!(old.is_old(&server("10.0.0.1:5432"), &target("10.0.0.2"), now));
        assert!(old.is_old(&server("10.0.0.7:5432"), &target("10.0.0.2"), now), "a member whose key is gone");
        assert!(!old.is_old(&server("10.0.0.2:5432"), &target("10.0.0.2"), now));
        assert!(old.is_old(&server("10.0.0.1:5432"), &target("pg2.lan"), now));
        assert!(!old.is_old(&server("10.0.0.7:5432"), &target("pg2.lan"), now));
        assert!(!old.is_old(&server("10.0.0.1:5432"), &target("pg2.lan"), None), "not resolved yet");
    }
}
