//! The TLS of members and stores: our CA, our certificate, and the name to verify where the address is not in the
//! certificate.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use crate::config::TlsFiles;

/// Tells files that were renewed from what they were, also where a link leads elsewhere now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Version([Option<Stamp>; 3]);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
}

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{path}: {why}")]
    File { path: String, why: String },
    #[error("cert and server_name need a ca: name the CA that signed the server's certificate")]
    NoCa,
    #[error("server_name {0:?} is neither a host name nor an IP address")]
    Name(String),
    #[error(transparent)]
    Rustls(#[from] Error),
    #[error(transparent)]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

// === impl Version ===

impl Version {
    /// To be taken before the files are read.
    pub(super) fn of(files: &TlsFiles) -> Self {
        let stamp = |path: &Option<PathBuf>| {
            let about = std::fs::metadata(path.as_ref()?).ok()?;
            Some(Stamp {
                device: about.dev(),
                inode: about.ino(),
                size: about.size(),
                modified: (about.mtime(), about.mtime_nsec()),
            })
        };
        Self([&files.ca, &files.cert, &files.key].map(stamp))
    }
}

/// `None` where no file is named: then the host's own CAs verify the server.
pub(super) fn client_config(files: &TlsFiles) -> Result<Option<ClientConfig>, TlsError> {
    let Some(ca) = &files.ca else {
        let needs_ca = files.cert.is_some() || files.server_name.is_some();
        return if needs_ca { Err(TlsError::NoCa) } else { Ok(None) };
    };
    let mut roots = RootCertStore::empty();
    for cert in certificates(ca)? {
        roots.add(cert).map_err(|error| TlsError::File { path: ca.display().to_string(), why: error.to_string() })?;
    }
    let inner = WebPkiServerVerifier::builder(Arc::new(roots)).build()?;
    let name = match &files.server_name {
        Some(name) => Some(ServerName::try_from(name.clone()).map_err(|_| TlsError::Name(name.clone()))?),
        None => None,
    };
    // `dangerous` is rustls's word for any verifier but its own; ours changes the name and nothing else.
    let builder = ClientConfig::builder().dangerous().with_custom_certificate_verifier(Arc::new(Named { inner, name }));
    let config = match (&files.cert, &files.key) {
        (Some(cert), Some(key)) => {
            let key = PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable(key, &error))?;
            builder.with_client_auth_cert(certificates(cert)?, key)?
        }
        _ => builder.with_no_client_auth(),
    };
    Ok(Some(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certs = CertificateDer::pem_file_iter(path).map_err(|error| unreadable(path, &error))?;
    certs.collect::<Result<_, _>>().map_err(|error| unreadable(path, &error))
}

fn unreadable(path: &Path, error: &rustls::pki_types::pem::Error) -> TlsError {
    TlsError::File { path: path.display().to_string(), why: error.to_string() }
}

/// Verifies against `name` instead of the host of the URL.
#[derive(Debug)]
struct Named {
    inner: Arc<WebPkiServerVerifier>,
    name: Option<ServerName<'static>>,
}

impl ServerCertVerifier for Named {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let name = self.name.as_ref().unwrap_or(server_name);
        self.inner.verify_server_cert(end_entity, intermediates, name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
