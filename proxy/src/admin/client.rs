//! The other end of the Unix socket, for the command line.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::api;

/// Longer than the server's own limit, so that its words arrive.
const TIME_LIMIT: Duration = Duration::from_secs(40);

/// Asks one running pgsplice.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no pgsplice answers on {} ({why}); is it running? name another with --socket", socket.display())]
    NoAnswer { socket: PathBuf, why: String },
    #[error("may not connect to {}; run this as root or as the user pgsplice runs as", .0.display())]
    Denied(PathBuf),
    /// pgsplice answered and refused.
    #[error("{message}")]
    Refused { status: StatusCode, message: String },
    #[error("{path}: pgsplice gave an answer this version cannot read: {source}")]
    Unreadable { path: String, source: serde_json::Error },
    #[error("{path}: {why}")]
    Broken { path: String, why: String },
}

// === impl Client ===

impl Client {
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.into() }
    }

    /// `query` becomes the part behind `?`.
    pub async fn get<T: DeserializeOwned>(&self, path: &str, query: &impl Serialize) -> Result<T, ClientError> {
        let query = query_string(query).map_err(|source| ClientError::Unreadable { path: path.into(), source })?;
        self.ask(Method::GET, &format!("{path}{query}"), Bytes::new()).await
    }

    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        self.send(Method::POST, path, body).await
    }

    /// Any other method with a JSON body.
    pub async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|source| ClientError::Unreadable { path: path.into(), source })?;
        self.ask(method, path, body.into()).await
    }

    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> Result<T, ClientError> {
        let exchange = self.exchange(method, path, body);
        let late = |_| {
            let why = format!("no answer within {} s", TIME_LIMIT.as_secs());
            Err(ClientError::Broken { path: path.into(), why })
        };
        let (status, answer) = tokio::time::timeout(TIME_LIMIT, exchange).await.unwrap_or_else(late)?;
        if !status.is_success() {
            let message = match serde_json::from_slice::<api::Error>(&answer) {
                Ok(api::Error { error }) => error,
                Err(_) => format!("{path}: {status}"),
            };
            return Err(ClientError::Refused { status, message });
        }
        serde_json::from_slice(&answer).map_err(|source| ClientError::Unreadable { path: path.into(), source })
    }

    async fn exchange(&self, method: Method, path: &str, body: Bytes) -> Result<(StatusCode, Bytes), ClientError> {
        let broken = |error: &dyn std::fmt::Display| ClientError::Broken { path: path.into(), why: error.to_string() };
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.unreachable(&error))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "pgsplice")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| broken(&error))?;
        // The connection is what moves the bytes; it ends once the sender is gone.
        tokio::spawn(connection);
        let answer = sender.send_request(request).await.map_err(|error| broken(&error))?;
        let status = answer.status();
        let body = answer.into_body().collect().await.map_err(|error| broken(&error))?;
        Ok((status, body.to_bytes()))
    }

    fn unreachable(&self, error: &io::Error) -> ClientError {
        let why = match error.kind() {
            io::ErrorKind::PermissionDenied => return ClientError::Denied(self.socket.clone()),
            io::ErrorKind::NotFound => "No such file".into(),
            io::ErrorKind::ConnectionRefused => "Connection refused".into(),
            _ => error.to_string(),
        };
        ClientError::NoAnswer { socket: self.socket.clone(), why }
    }
}

/// `?a=1&b=two` of a flat struct; fields that are null are left out.
fn query_string(query: &impl Serialize) -> Result<String, serde_json::Error> {
    let mut text = String::new();
    if let serde_json::Value::Object(fields) = serde_json::to_value(query)? {
        for (name, value) in fields {
            let value = match value {
                serde_json::Value::Null => continue,
                serde_json::Value::String(value) => value,
                other => other.to_string(),
            };
            text.push(if text.is_empty() { '?' } else { '&' });
            text.push_str(&name);
            text.push('=');
            escape(&value, &mut text);
        }
    }
    Ok(text)
}

/// Percent-encodes all but RFC 3986's unreserved characters.
fn escape(value: &str, into: &mut String) {
    for byte in value.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => into.push(byte.into()),
            _ => into.push_str(&format!("%{byte:02X}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_escaped() {
        let query = api::SessionsQuery { user: Some("a b&c=ü".into()), limit: Some(5), ..Default::default() };
        assert_eq!(query_string(&query).unwrap(), "?limit=5&user=a%20b%26c%3D%C3%BC");
        assert_eq!(query_string(&()).unwrap(), "");
    }

    #[tokio::test]
    async fn nobody_there_says_where_it_looked_and_what_to_do() {
        let client = Client::new(Path::new("/nonexistent/admin.sock"));
        let error = client.get::<api::Status>("/v1/status", &()).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "no pgsplice answers on /nonexistent/admin.sock (No such file); is it running? name another with --socket"
        );
    }
}
