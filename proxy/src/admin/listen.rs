//! The two sockets of the admin interface: a Unix socket for those who may steer, TCP for those who may look.

use std::fs::{self, File, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

use super::routes;
use crate::config;
use crate::handover::{AdminSockets, Inherited};
use crate::proxy::Proxy;

/// Connections at a time on each of the two; more wait in the kernel's queue.
const MOST_CONNECTIONS: usize = 128;
/// From an open connection, or the answer before, to a whole request head.
const HEAD_TIME_LIMIT: Duration = Duration::from_secs(30);
/// Longest request head in bytes.
const LONGEST_HEAD: usize = 16 * 1024;
const MOST_HEADERS: usize = 64;

/// The admin interface while it is served. Dropping it closes both sockets and removes the Unix socket's file.
#[derive(Debug)]
pub struct Admin {
    pub socket: PathBuf,
    /// The address really bound (a configured port 0 is resolved here).
    pub http: Option<SocketAddr>,
    /// Device and inode of the socket's file: a later process may have put its own there.
    file: (u64, u64),
    tasks: Vec<AbortHandle>,
}

#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error("admin.socket: {}: pgsplice is already running ({})", socket.display(), pid.map_or("pid unknown".into(), |pid| format!("pid {pid}")))]
    AlreadyRunning { socket: PathBuf, pid: Option<i32> },
    #[error("admin.socket: {}: there is a file that is no socket; move it away or choose another path", .0.display())]
    NotASocket(PathBuf),
    #[error("admin.socket: {}: {source}", socket.display())]
    Socket { socket: PathBuf, source: io::Error },
    #[error("admin.http: {address}: {source}")]
    Http { address: SocketAddr, source: io::Error },
}

/// Both sockets, bound and not served yet.
#[derive(Debug)]
pub struct Sockets {
    path: PathBuf,
    unix: UnixListener,
    http: Option<(SocketAddr, TcpListener)>,
    file: (u64, u64),
    /// Whether the Unix socket is the one of the process that is taken over from.
    pub inherited: bool,
}

/// Binds both sockets, or takes those that fit out of what was inherited. `AlreadyRunning` is how a second pgsplice with
/// the same configuration finds out, before it shares the first one's listeners by SO_REUSEPORT.
pub async fn bind(config: &config::Admin, inherited: &mut Inherited) -> Result<Sockets, AdminError> {
    let on_socket = |source| AdminError::Socket { socket: config.socket.clone(), source };
    let taken = inherited.take_admin(&config.socket);
    let is_inherited = taken.is_some();
    let unix = match taken {
        Some(socket) => UnixListener::from_std(socket.into()).map_err(on_socket)?,
        None => bind_unix(&config.socket).await?,
    };
    let http = match config.http {
        None => None,
        Some(address) => {
            let bound = match inherited.take_http(address) {
                Some(socket) => TcpListener::from_std(socket.into()),
                None => TcpListener::bind(address).await,
            };
            let bound = bound.and_then(|tcp| Ok((tcp.local_addr()?, tcp)));
            Some(bound.map_err(|source| AdminError::Http { address, source })?)
        }
    };
    let file = fs::metadata(&config.socket).map_err(on_socket)?;
    let file = (file.dev(), file.ino());
    Ok(Sockets { path: config.socket.clone(), unix, http, file, inherited: is_inherited })
}

/// Serves both sockets on the current tokio runtime.
pub fn serve(proxy: Arc<Proxy>, sockets: Sockets) -> Admin {
    proxy.handover.set_admin(copies(&sockets));
    let Sockets { path, unix, http, file, .. } = sockets;
    let mut admin = Admin { socket: path, http: http.as_ref().map(|(address, _)| *address), file, tasks: Vec::new() };
    let router = routes::all(proxy.clone());
    admin.tasks.push(tokio::spawn(accept(router, async move || Ok(unix.accept().await?.0))).abort_handle());
    if let Some((address, tcp)) = http {
        let router = routes::read_only(proxy);
        admin.tasks.push(tokio::spawn(accept(router, async move || Ok(tcp.accept().await?.0))).abort_handle());
        tracing::info!(%address, "admin HTTP is served");
    }
    admin
}

/// For a process that takes over. What cannot be copied is not handed over.
fn copies(sockets: &Sockets) -> Option<AdminSockets> {
    let copy = |socket: BorrowedFd<'_>| {
        socket.try_clone_to_owned().inspect_err(|error| tracing::warn!("admin: no copy of a socket: {error}")).ok()
    };
    let http = sockets.http.as_ref().and_then(|(address, tcp)| Some((*address, copy(tcp.as_fd())?)));
    Some(AdminSockets { unix: (sockets.path.clone(), copy(sockets.unix.as_fd())?), http })
}

impl Admin {
    /// Serves no more, and leaves the Unix socket's file to the process that does.
    pub fn hand_over(mut self) {
        self.file = (0, 0);
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
        let ours = fs::metadata(&self.socket).is_ok_and(|now| (now.dev(), now.ino()) == self.file);
        if ours {
            // Nothing to do about a failure: the next start removes it as stale.
            let _ = fs::remove_file(&self.socket);
        }
    }
}

// === Binding ===

async fn bind_unix(path: &Path) -> Result<UnixListener, AdminError> {
    let failed = |source| AdminError::Socket { socket: path.into(), source };
    if let Some(parent) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(parent).map_err(failed)?;
    }
    remove_stale(path).await?;
    private_listener(path).map_err(failed)
}

/// Nobody must be able to connect between bind and chmod: the file takes its mode from the socket (unix_bind_bsd in
/// net/unix/af_unix.c), so that is set first.
fn private_listener(path: &Path) -> io::Result<UnixListener> {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
    let file = File::from(OwnedFd::from(socket));
    file.set_permissions(Permissions::from_mode(0o600))?;
    let socket = socket2::Socket::from(OwnedFd::from(file));
    socket.bind(&socket2::SockAddr::unix(path)?)?;
    socket.listen(MOST_CONNECTIONS as i32)?;
    socket.set_nonblocking(true)?;
    UnixListener::from_std(OwnedFd::from(socket).into())
}

/// A socket file that nobody answers on is what a killed pgsplice leaves behind.
async fn remove_stale(path: &Path) -> Result<(), AdminError> {
    let failed = |source| AdminError::Socket { socket: path.into(), source };
    let file = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.map_err(failed)?,
    };
    if !file.file_type().is_socket() {
        return Err(AdminError::NotASocket(path.into()));
    }
    match UnixStream::connect(path).await {
        Ok(stream) => {
            // The kernel's word on who listens there (SO_PEERCRED).
            let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
            Err(AdminError::AlreadyRunning { socket: path.into(), pid })
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!(socket = %path.display(), "removing the socket a former process left behind");
            fs::remove_file(path).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

// === Serving ===

/// `next` accepts one connection; runs until aborted.
async fn accept<S>(router: Router, mut next: impl AsyncFnMut() -> io::Result<S>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    // Connections end with this task.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
        while connections.try_join_next().is_some() {}
        let stream = match next().await {
            Ok(stream) => stream,
            Err(error) => {
                // Out of descriptors, most likely: accepting again at once would only spin.
                tracing::warn!("admin: accept: {error}");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone());
        connections.spawn(async move {
            let _place = place;
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIME_LIMIT)
                .max_buf_size(LONGEST_HEAD)
                .max_headers(MOST_HEADERS)
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            if let Err(error) = connection.await {
                tracing::debug!("admin: a connection ended: {error}");
            }
        });
    }
}
