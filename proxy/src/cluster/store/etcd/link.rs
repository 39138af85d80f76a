//! One connection to one etcd endpoint, with its TLS and time limits, and the check that its history never goes back.

use std::path::Path;
use std::time::Duration;

use etcd_client::{
    Certificate, Client, ConnectOptions, GetOptions, Identity, KeyValue, TlsOptions, Txn, TxnOp, TxnOpResponse,
};

use super::EtcdError;
use crate::cluster::store::life::any_of;
use crate::config::EtcdConfig;

/// Which endpoint is in use, and what was seen through all of them.
#[derive(Debug)]
pub(super) struct Link {
    endpoints: Vec<String>,
    current: usize,
    seen: Option<Header>,
}

/// The part of etcd's response header that tells histories apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub cluster_id: u64,
    pub revision: i64,
}

/// An error of the client library, cut down to what an operator can use.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Cause(String);

// === impl Link ===

impl Link {
    pub(super) fn new(config: &EtcdConfig) -> Self {
        let current = any_of(config.endpoints.len());
        Self { endpoints: config.endpoints.clone(), current, seen: None }
    }

    pub(super) fn endpoint(&self) -> &str {
        self.endpoints.get(self.current).map_or("etcd.endpoints is empty", |endpoint| endpoint)
    }

    pub(super) fn next_endpoint(&mut self) {
        self.current = (self.current + 1) % self.endpoints.len().max(1);
    }

    /// Connects, and logs in where a user is configured. TLS files are read each time: they may have been renewed.
    pub(super) async fn connect(&self, config: &EtcdConfig) -> Result<Client, EtcdError> {
        crate::cluster::install_crypto();
        let endpoint = self.endpoint();
        let mut options = ConnectOptions::new()
            .with_connect_timeout(config.connect_timeout)
            .with_tcp_keepalive(Duration::from_secs(10))
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if let Some(user) = &config.user {
            options = options.with_user(user, config.password.as_deref().unwrap_or_default());
        }
        if endpoint.starts_with("https://") {
            options = options.with_tls(tls(endpoint, config)?);
        }
        bounded(endpoint, "connect", config.connect_timeout, Client::connect([endpoint], Some(options))).await
    }

    /// What was seen so far.
    pub(super) fn seen(&self) -> Option<Header> {
        self.seen
    }

    /// Refuses an answer that is older than what was seen of the same cluster when the question was put: a watch may have
    /// brought something newer meanwhile.
    pub(super) fn accept(&mut self, asked: Option<Header>, answer: Header) -> Result<(), EtcdError> {
        let Header { cluster_id, revision } = answer;
        let is_same = |seen: &Header| seen.cluster_id == cluster_id;
        if let Some(seen) = asked.filter(|seen| is_same(seen) && seen.revision > revision) {
            let endpoint = self.endpoint().into();
            return Err(EtcdError::OlderRevision { endpoint, revision, seen: seen.revision });
        }
        let newest = self.seen.filter(is_same).map_or(revision, |seen| seen.revision.max(revision));
        self.seen = Some(Header { cluster_id, revision: newest });
        Ok(())
    }

    /// A watch brought this revision of the cluster last accepted.
    pub(super) fn accept_event(&mut self, revision: i64) {
        if let Some(seen) = &mut self.seen {
            seen.revision = seen.revision.max(revision);
        }
    }
}

fn tls(endpoint: &str, config: &EtcdConfig) -> Result<TlsOptions, EtcdError> {
    let files = &config.tls;
    let ca = files.ca.as_deref().ok_or_else(|| EtcdError::NoCa { endpoint: endpoint.into() })?;
    let mut options = TlsOptions::new().ca_certificate(Certificate::from_pem(read(ca)?));
    if let (Some(cert), Some(key)) = (&files.cert, &files.key) {
        options = options.identity(Identity::from_pem(read(cert)?, read(key)?));
    }
    if let Some(name) = &files.server_name {
        options = options.domain_name(name);
    }
    Ok(options)
}

fn read(path: &Path) -> Result<Vec<u8>, EtcdError> {
    std::fs::read(path).map_err(|source| EtcdError::TlsFile { path: path.display().to_string(), source })
}

// === calls ===

/// All keys of both folders, at one revision, as a majority has them.
pub(super) async fn list(
    client: &mut Client,
    folders: [&String; 2],
) -> Result<(Header, Vec<KeyValue>), etcd_client::Error> {
    let range = |folder: &String| TxnOp::get(&**folder, Some(GetOptions::new().with_prefix()));
    let answer = client.txn(Txn::new().and_then(folders.map(range))).await?;
    let header = answer.header().ok_or_else(headless)?;
    let header = Header { cluster_id: header.cluster_id(), revision: header.revision() };
    let mut kvs = Vec::new();
    for response in answer.op_responses() {
        if let TxnOpResponse::Get(mut range) = response {
            kvs.extend(range.take_kvs());
        }
    }
    Ok((header, kvs))
}

/// The revision of the leader key's last change, 0 if it is absent, as a majority has it.
pub(super) async fn read_leader(client: &mut Client, key: &str) -> Result<(Header, i64), etcd_client::Error> {
    let answer = client.get(key, Some(GetOptions::new().with_keys_only())).await?;
    let header = answer.header().ok_or_else(headless)?;
    let header = Header { cluster_id: header.cluster_id(), revision: header.revision() };
    Ok((header, answer.kvs().first().map_or(0, KeyValue::mod_revision)))
}

fn headless() -> etcd_client::Error {
    etcd_client::Error::Internal("the answer has no header".into())
}

/// Runs a call under a time limit, with the endpoint's name on what goes wrong.
pub(super) async fn bounded<T>(
    endpoint: &str,
    what: &'static str,
    limit: Duration,
    work: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, EtcdError> {
    match tokio::time::timeout(limit, work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(call(endpoint, what, source)),
        Err(_) => Err(EtcdError::Timeout { endpoint: endpoint.into(), what, limit }),
    }
}

pub(super) fn call(endpoint: &str, what: &'static str, error: etcd_client::Error) -> EtcdError {
    EtcdError::Call { endpoint: endpoint.into(), what, source: Cause(cause(error)) }
}

/// The server's own words, or the innermost cause of a broken connection.
fn cause(error: etcd_client::Error) -> String {
    use std::error::Error;
    match error {
        etcd_client::Error::GRpcStatus(status) => {
            let mut inner = status.source();
            while let Some(deeper) = inner.and_then(Error::source) {
                inner = Some(deeper);
            }
            inner.map_or_else(|| status.message().to_string(), ToString::to_string)
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_revision_of_the_same_cluster_is_refused() {
        let mut link = Link::new(&EtcdConfig { endpoints: vec!["http://a:1".into()], ..EtcdConfig::default() });
        let at = |cluster_id, revision| Header { cluster_id, revision };
        link.accept(link.seen(), at(1, 10)).unwrap();
        let asked = link.seen();
        link.accept_event(12);
        link.accept(asked, at(1, 11)).expect("the watch was faster than the read");
        link.accept(link.seen(), at(1, 12)).unwrap();
        let error = link.accept(link.seen(), at(1, 11)).unwrap_err().to_string();
        assert!(error.starts_with("http://a:1 is at revision 11, older than 12 seen before"), "{error}");
        link.accept(link.seen(), at(2, 3)).expect("another cluster has a history of its own");
    }
}
