//! HTTP to members and stores: a client with our TLS, and answers of bounded length.

use std::sync::Arc;
use std::time::Duration;

use reqwest::{Client, Response};

use super::names::Names;
use super::tls::{self, TlsError};
use crate::config::TlsFiles;

/// Reads after the name of a section: `proof.tls: …`.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(".tls: {0}")]
    Tls(#[from] TlsError),
    #[error(": {0}")]
    Build(#[from] reqwest::Error),
}

/// Reads the TLS files. Only connecting has a time limit: the answer is up to the caller.
pub(crate) fn client(tls: &TlsFiles, connect_timeout: Duration, names: &Names) -> Result<Client, ClientError> {
    super::install_crypto();
    // Proxy settings of the environment must not stand between us and a member.
    let mut builder = Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(connect_timeout)
        .dns_resolver(Arc::new(names.clone()))
        .pool_max_idle_per_host(1);
    if let Some(tls) = tls::client_config(tls)? {
        builder = builder.tls_backend_preconfigured(tls);
    }
    Ok(builder.build()?)
}

/// The whole body, unless it is longer than this many bytes.
pub(crate) async fn body(mut response: Response, most: usize) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| cause(&error))? {
        if body.len() + chunk.len() > most {
            return Err(format!("its answer is longer than {most} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The innermost cause: "Connection refused" rather than "error sending request for url".
pub(crate) fn cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
