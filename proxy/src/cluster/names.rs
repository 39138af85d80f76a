//! Names of hosts that are asked again and again. DNS that is slow or gone must not make a member silent whose address
//! has not changed, or an outage of the resolver would close every primary.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// How long an answer is used without a question; a proof stands for longer.
const FRESH: Duration = Duration::from_secs(5);
/// Between two questions while there is no answer.
const RETRY: Duration = Duration::from_secs(2);
/// How long an answer is waited for where there is an older one. Well within what a member has for its own answer.
const PATIENCE: Duration = Duration::from_millis(500);
/// Names come from the store: more are not remembered.
const MOST: usize = 1024;

/// The last addresses of each name. A clone has the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names(Arc<Mutex<BTreeMap<String, Known>>>);

#[derive(Debug)]
struct Known {
    /// Never none.
    addresses: Vec<IpAddr>,
    /// Not to be asked for before.
    next: Instant,
    /// The last question had no answer.
    stale: bool,
}

// === impl Names ===

impl Names {
    /// The addresses of a host, by name or number: those of now, or else those it had last.
    pub(super) async fn look_up(&self, host: &str) -> Result<Vec<IpAddr>, String> {
        if let Ok(ip) = host.parse() {
            return Ok(vec![ip]);
        }
        let asking = async {
            let found = tokio::net::lookup_host((host, 0)).await.map_err(|error| error.to_string())?;
            Ok(found.map(|address| address.ip()).collect())
        };
        let found = match self.begin(host, Instant::now()) {
            Begun::Known(addresses) => return Ok(addresses),
            Begun::Again => {
                let answer = tokio::time::timeout(PATIENCE, asking).await;
                answer.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")))
            }
            // The one who asks has a limit of its own.
            Begun::Anew => asking.await,
        };
        self.note(host, found, Instant::now())
    }

    fn begin(&self, host: &str, now: Instant) -> Begun {
        match self.0.lock().get_mut(host) {
            Some(known) if now < known.next => Begun::Known(known.addresses.clone()),
            Some(known) => {
                // Whoever comes meanwhile need not ask as well.
                known.next = now + RETRY;
                Begun::Again
            }
            None => Begun::Anew,
        }
    }

    fn note(&self, host: &str, found: Result<Vec<IpAddr>, String>, now: Instant) -> Result<Vec<IpAddr>, String> {
        let found = found.and_then(|found| if found.is_empty() { Err("it has no address".into()) } else { Ok(found) });
        let mut all = self.0.lock();
        let room = all.len() < MOST;
        match (all.get_mut(host), found) {
            (Some(known), Ok(addresses)) => {
                *known = Known { addresses: addresses.clone(), next: now + FRESH, stale: false };
                Ok(addresses)
            }
            (None, Ok(addresses)) => {
                if room {
                    let known = Known { addresses: addresses.clone(), next: now + FRESH, stale: false };
                    all.insert(host.into(), known);
                }
                Ok(addresses)
            }
            (Some(known), Err(why)) => {
                if !std::mem::replace(&mut known.stale, true) {
                    tracing::warn!(host, kept = ?known.addresses, why, "cannot resolve a host: its last addresses are used");
                }
                known.next = now + RETRY;
                Ok(known.addresses.clone())
            }
            (None, Err(why)) => Err(format!("cannot resolve {host}: {why}")),
        }
    }
}

/// What a question begins with.
enum Begun {
    Known(Vec<IpAddr>),
    Again,
    Anew,
}

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        let names = self.clone();
        Box::pin(async move {
            let addresses = names.look_up(name.as_str()).await?;
            // Port 0 is that of the URL.
            let addresses: Addrs = Box::new(addresses.into_iter().map(|ip| SocketAddr::new(ip, 0)));
            Ok(addresses)
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::cluster::http;
    use crate::config::TlsFiles;

    fn ips(last: &[u8]) -> Vec<IpAddr> {
        last.iter().map(|last| [127, 0, 0, *last].into()).collect()
    }

    #[test]
    fn the_last_addresses_are_used_while_nobody_answers_and_not_for_longer() {
        let (names, now) = (Names::default(), Instant::now());
        let gone = || Err("gone".to_owned());
        let known = |at| match names.begin("db1", at) {
            Begun::Known(addresses) => Some(addresses),
            Begun::Again | Begun::Anew => None,
        };
        assert_eq!(names.note("db1", gone(), now).unwrap_err(), "cannot resolve db1: gone");
        assert_eq!(names.note("db1", Ok(ips(&[1, 2])), now), Ok(ips(&[1, 2])));
        assert_eq!(known(now + FRESH / 2), Some(ips(&[1, 2])));
        assert_eq!(known(now + FRESH), None, "asked again");
        assert_eq!(known(now + FRESH), Some(ips(&[1, 2])), "by one at a time");
        assert_eq!(names.note("db1", gone(), now + FRESH), Ok(ips(&[1, 2])));
        assert_eq!(names.note("db1", Ok(vec![]), now + FRESH), Ok(ips(&[1, 2])));
        assert_eq!(known(now + FRESH + RETRY), None);
        assert_eq!(names.note("db1", Ok(ips(&[3])), now), Ok(ips(&[3])), "it has moved");
        for number in 0..2 * MOST {
            let name = number.to_string();
            assert_eq!(names.note(&name, Ok(ips(&[1])), now), Ok(ips(&[1])));
        }
        assert_eq!(names.0.lock().len(), MOST);
    }

    /// RFC 6761: no resolver knows a name that ends so.
    #[tokio::test]
    async fn a_client_reaches_a_host_that_cannot_be_resolved_any_more() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.read(&mut [0; 1024]).await;
                let _ = stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi").await;
            }
        });
        let names = Names::default();
        let client = http::client(&TlsFiles::default(), Duration::from_secs(2), &names).unwrap();
        let get = async || client.get(format!("http://db1.invalid:{port}/")).send().await.map(|said| said.status());
        get().await.unwrap_err();
        let long_ago = Instant::now().checked_sub(FRESH).unwrap();
        names.note("db1.invalid", Ok(ips(&[1])), long_ago).unwrap();
        assert_eq!(get().await.unwrap(), 200);
        assert!(names.0.lock()["db1.invalid"].stale, "it was asked for");
        assert_eq!(names.look_up("10.0.0.7").await, Ok(vec![[10, 0, 0, 7].into()]));
        assert!(names.look_up("localhost").await.unwrap().iter().all(IpAddr::is_loopback));
    }
}
