//! A member's REST API that answers `GET /patroni` with what the test wants it to say.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

pub struct Member {
    pub name: &'static str,
    port: u16,
    /// 0 for a replica.
    timeline: Arc<AtomicU32>,
    server: JoinHandle<()>,
}

impl Member {
    pub async fn start(name: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let timeline = Arc::new(AtomicU32::new(0));
        let server = tokio::spawn(serve(listener, name, timeline.clone()));
        Self { name, port, timeline, server }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/patroni", self.port)
    }

    pub fn is_primary(&self, timeline: u32) {
        self.timeline.store(timeline, Ordering::Relaxed);
    }

    pub fn is_replica(&self) {
        self.timeline.store(0, Ordering::Relaxed);
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(listener: TcpListener, name: &'static str, timeline: Arc<AtomicU32>) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let body = match timeline.load(Ordering::Relaxed) {
            0 => format!(r#"{{"state":"running","role":"replica","patroni":{{"scope":"lab","name":"{name}"}}}}"#),
            timeline => format!(
                r#"{{"state":"running","role":"primary","timeline":{timeline},"patroni":{{"scope":"lab","name":"{name}"}}}}"#
            ),
        };
        let mut request = [0; 4096];
        let _ = stream.read(&mut request).await;
        let answer = format!(
            "HTTP/1.0 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let _ = stream.write_all(answer.as_bytes()).await;
    }
}
