//! One Consul endpoint and the few requests that are made of it.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::{Client, Method, RequestBuilder, Response, Url};
use serde::Deserialize;

use super::ConsulError;
use crate::cluster::http;
use crate::cluster::names::Names;
use crate::cluster::store::contents::Folder;
use crate::config::ConsulConfig;

/// How long a blocking query may stand. Consul adds up to a sixteenth.
const WAIT: Duration = Duration::from_secs(60);
/// A folder with its values in base64 and all that Consul says about each key.
const MAX_LIST: usize = 32 * 1024 * 1024;
/// Consul's own limit of a value is 512 kB, more than half as much again in base64.
const MAX_KEY: usize = 1024 * 1024;

#[derive(Clone, Debug)]
pub(super) struct Link {
    client: Client,
    pub(super) endpoint: String,
    base: Url,
    token: Option<String>,
    datacenter: Option<String>,
    grace: Duration,
}

/// A folder at one index.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    pub(super) index: u64,
    pub(super) folder: Folder,
    /// Index of the last change of the key `leader`, 0 where it is absent.
    pub(super) leader: u64,
    /// Index of the whole table, asked for afterwards, where that of the folder went back.
    pub(super) table: Option<u64>,
}

/// A single key, there or not.
#[derive(Debug, Default)]
pub(super) struct Single {
    /// Of the key, or of the whole table where it is absent.
    pub(super) index: u64,
    /// 0 where it is absent.
    pub(super) modified: u64,
    pub(super) session: Option<String>,
}

/// Whether a key is ours now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Acquired {
    Yes,
    No,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    key: String,
    /// base64; null where it is empty.
    value: Option<String>,
    modify_index: u64,
    session: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Created {
    #[serde(rename = "ID")]
    id: String,
}

// === impl Link ===

impl Link {
    /// TLS files are read each time: they may have been renewed.
    pub(super) fn new(config: &ConsulConfig, endpoint: usize, names: &Names) -> Result<Self, ConsulError> {
        let endpoint = config.endpoints.get(endpoint).cloned().unwrap_or_default();
        let base = Url::parse(&endpoint).map_err(|error| ConsulError::Call {
            endpoint: endpoint.clone(),
            what: "connect",
            why: error.to_string(),
        })?;
        Ok(Self {
            client: http::client(&config.tls, config.connect_timeout, names)?,
            endpoint,
            base,
            token: config.token.clone(),
            datacenter: config.datacenter.clone(),
            grace: config.keepalive_timeout,
        })
    }

    /// Everything below a folder; with an index other than 0, once it is above that or after [`WAIT`].
    pub(super) async fn list(&self, folder: &str, index: u64) -> Result<Listed, ConsulError> {
        let (index, wait) = (index.to_string(), format!("{}s", WAIT.as_secs()));
        let query = [("recurse", ""), ("consistent", ""), ("index", &*index), ("wait", &*wait)];
        // With index 0 Consul does not wait.
        let request = self.key(Method::GET, folder, &query);
        let answer = async {
            let response = self.send("list", request).await?;
            let (index, found) = (self.index(&response)?, response.status() != 404);
            let body = http::body(response, MAX_LIST).await.map_err(|why| self.call("list", why))?;
            // An empty folder is not found, and Consul says so in words.
            Ok((index, if found { self.entries("list", &body)? } else { Vec::new() }))
        };
        let (index, entries) = self.bounded("list", WAIT + WAIT / 16 + self.grace, answer).await?;
        Ok(Listed::of(folder, index, &entries))
    }

    pub(super) async fn read(&self, key: &str) -> Result<Single, ConsulError> {
        let response = self.send("read", self.key(Method::GET, key, &[("consistent", "")])).await?;
        let index = self.index(&response)?;
        if response.status() == 404 {
            return Ok(Single { index, ..Single::default() });
        }
        let body = http::body(response, MAX_KEY).await.map_err(|why| self.call("read", why))?;
        let entry = self.entries("read", &body)?.pop();
        Ok(entry.map_or_else(Single::default, |entry| Single {
            index,
            modified: entry.modify_index,
            session: entry.session,
        }))
    }

    /// Takes the key for the session and writes it.
    pub(super) async fn acquire(&self, key: &str, session: &str, value: Vec<u8>) -> Result<Acquired, ConsulError> {
        let request = self.key(Method::PUT, key, &[("acquire", session)]).body(value);
        let response = self.send("put", request).await?;
        let body = http::body(response, MAX_KEY).await.map_err(|why| self.call("put", why))?;
        Ok(if body.starts_with(b"true") { Acquired::Yes } else { Acquired::No })
    }

    pub(super) async fn delete(&self, key: &str) -> Result<(), ConsulError> {
        self.send("delete", self.key(Method::DELETE, key, &[])).await.map(drop)
    }

    /// A session whose keys go with it.
    pub(super) async fn create_session(&self, ttl: Duration) -> Result<String, ConsulError> {
        // Without a lock-delay another agent of the same name could not register for 15 s.
        let session = serde_json::json!({
            "Name": "pgsplice agent",
            "Behavior": "delete",
            "TTL": format!("{}s", ttl.as_secs()),
            "LockDelay": "1ms",
        });
        let response =
            self.send("create a session", self.at(Method::PUT, &["session", "create"], &[]).json(&session)).await?;
        let body = http::body(response, MAX_KEY).await.map_err(|why| self.call("create a session", why))?;
        let created: Result<Created, _> = serde_json::from_slice(&body);
        created.map(|created| created.id).map_err(|error| self.call("create a session", error.to_string()))
    }

    pub(super) async fn renew_session(&self, session: &str) -> Result<(), ConsulError> {
        let response =
            self.send("renew the session", self.at(Method::PUT, &["session", "renew", session], &[])).await?;
        match response.status().as_u16() {
            404 => Err(ConsulError::SessionGone { endpoint: self.endpoint.clone() }),
            _ => Ok(()),
        }
    }

    pub(super) async fn destroy_session(&self, session: &str) -> Result<(), ConsulError> {
        self.send("destroy the session", self.at(Method::PUT, &["session", "destroy", session], &[])).await.map(drop)
    }

    /// Runs a call under a time limit.
    pub(super) async fn bounded<T>(
        &self,
        what: &'static str,
        limit: Duration,
        work: impl Future<Output = Result<T, ConsulError>>,
    ) -> Result<T, ConsulError> {
        match tokio::time::timeout(limit, work).await {
            Ok(done) => done,
            Err(_) => Err(ConsulError::Timeout { endpoint: self.endpoint.clone(), what, limit }),
        }
    }

    fn key(&self, method: Method, key: &str, query: &[(&str, &str)]) -> RequestBuilder {
        let path: Vec<&str> = ["kv"].into_iter().chain(key.split('/')).collect();
        self.at(method, &path, query)
    }

    fn at(&self, method: Method, path: &[&str], query: &[(&str, &str)]) -> RequestBuilder {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.clear().push("v1").extend(path);
        }
        let datacenter = self.datacenter.iter().map(|datacenter| ("dc", datacenter.as_str()));
        url.query_pairs_mut().extend_pairs(query.iter().copied().chain(datacenter));
        let request = self.client.request(method, url);
        match &self.token {
            Some(token) => request.header("X-Consul-Token", token),
            None => request,
        }
    }

    /// An answer with 200 or 404; any other is an error in Consul's own words.
    async fn send(&self, what: &'static str, request: RequestBuilder) -> Result<Response, ConsulError> {
        let response = request.send().await.map_err(|error| self.call(what, http::cause(&error)))?;
        let status = response.status().as_u16();
        if status == 200 || status == 404 {
            return Ok(response);
        }
        let said = http::body(response, 4096).await.unwrap_or_default();
        let said: String = String::from_utf8_lossy(&said).trim().chars().take(200).collect();
        Err(self.call(what, format!("HTTP {status}: {said}")))
    }

    /// Never 0: with that the next query would not block.
    fn index(&self, response: &Response) -> Result<u64, ConsulError> {
        let index = response.headers().get("X-Consul-Index").and_then(|value| value.to_str().ok()?.parse().ok());
        index.map(|index: u64| index.max(1)).ok_or_else(|| self.call("read", "the answer has no X-Consul-Index".into()))
    }

    fn entries(&self, what: &'static str, body: &[u8]) -> Result<Vec<Entry>, ConsulError> {
        serde_json::from_slice(body).map_err(|error| self.call(what, format!("the answer cannot be read: {error}")))
    }

    fn call(&self, what: &'static str, why: String) -> ConsulError {
        ConsulError::Call { endpoint: self.endpoint.clone(), what, why }
    }
}

// === impl Listed ===

impl Listed {
    fn of(folder: &str, index: u64, entries: &[Entry]) -> Self {
        let mut listed = Self { index, folder: Folder::default(), leader: 0, table: None };
        for entry in entries {
            let Some(name) = entry.key.strip_prefix(folder).filter(|name| !name.is_empty()) else { continue };
            let value = entry.value.as_deref().and_then(|value| STANDARD.decode(value).ok());
            listed.folder.put(name, &value.unwrap_or_default());
            if name == "leader" {
                listed.leader = entry.modify_index;
            }
        }
        listed
    }
}
