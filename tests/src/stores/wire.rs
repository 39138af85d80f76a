//! A TCP road to a server that can be cut without a word, or slowed.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// It ends when this is dropped.
#[derive(Debug)]
pub struct Wire {
    pub port: u16,
    state: Arc<watch::Sender<State>>,
    task: JoinHandle<()>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct State {
    is_cut: bool,
    delay: Duration,
}

impl Wire {
    pub async fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (state, _) = watch::channel(State::default());
        let state = Arc::new(state);
        let watched = state.clone();
        let task = tokio::spawn(async move {
            let mut roads = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let (down, up) = (watched.subscribe(), watched.subscribe());
                roads.spawn(async move {
                    let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else { return };
                    let ((from_client, to_client), (from_server, to_server)) =
                        (client.into_split(), server.into_split());
                    // Either end takes the other with it.
                    tokio::select! {
                        () = carry(from_client, to_server, up) => {}
                        () = carry(from_server, to_client, down) => {}
                    }
                });
            }
        });
        Self { port, state, task }
    }

    /// Nothing arrives any more, and no end is told.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.is_cut = true);
    }

    pub fn heal(&self) {
        self.state.send_modify(|state| state.is_cut = false);
    }

    /// Each way.
    pub fn slow(&self, delay: Duration) {
        self.state.send_modify(|state| state.delay = delay);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut state: watch::Receiver<State>) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = from.read(&mut buffer).await.unwrap_or(0);
        let Ok(now) = state.wait_for(|state| !state.is_cut).await.map(|now| *now) else { return };
        tokio::time::sleep(now.delay).await;
        if read == 0 || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
