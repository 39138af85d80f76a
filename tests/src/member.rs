//! A member's REST API that answers `GET /patroni` with what the test wants it to say.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

#[derive(Debug)]
pub struct Member {
    pub name: &'static str,
    port: u16,
    says: Arc<Mutex<Says>>,
    asked: Arc<AtomicUsize>,
    server: JoinHandle<()>,
}

#[derive(Clone, Debug)]
enum Says {
    Primary {
        timeline: u32,
    },
    Other {
        role: &'static str,
    },
    /// It takes connections and never answers.
    Nothing,
}

impl Member {
    pub async fn start(name: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let says = Arc::new(Mutex::new(Says::Other { role: "replica" }));
        let asked = Arc::new(AtomicUsize::new(0));
        let server = tokio::spawn(serve(listener, name, says.clone(), asked.clone()));
        Self { name, port, says, asked, server }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/patroni", self.port)
    }

    /// Its key in the store, with where its PostgreSQL is.
    pub fn key(&self, conn: &str) -> String {
        let url = self.url();
        format!(r#"{{"conn_url":"postgres://{conn}/postgres","api_url":"{url}","state":"running","role":"replica"}}"#)
    }

    pub fn is_primary(&self, timeline: u32) {
        *self.says.lock() = Says::Primary { timeline };
    }

    pub fn is_replica(&self) {
        self.is("replica");
    }

    pub fn is(&self, role: &'static str) {
        *self.says.lock() = Says::Other { role };
    }

    /// How often it was.
    pub fn asked(&self) -> usize {
        self.asked.load(Relaxed)
    }

    pub fn hangs(&self) {
        *self.says.lock() = Says::Nothing;
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(listener: TcpListener, name: &'static str, says: Arc<Mutex<Says>>, asked: Arc<AtomicUsize>) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        asked.fetch_add(1, Relaxed);
        let about = match says.lock().clone() {
            Says::Primary { timeline } => format!(r#""role":"primary","timeline":{timeline}"#),
            Says::Other { role } => format!(r#""role":"{role}""#),
            Says::Nothing => {
                // Until the one who asks gives up.
                tokio::spawn(async move { while stream.read(&mut [0; 4096]).await.is_ok_and(|read| read > 0) {} });
                continue;
            }
        };
        let who = format!(r#""database_system_identifier":"77","patroni":{{"scope":"lab","name":"{name}"}}"#);
        let body = format!(r#"{{"state":"running",{about},{who}}}"#);
        let mut request = [0; 4096];
        let _ = stream.read(&mut request).await;
        let answer = format!(
            "HTTP/1.0 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let _ = stream.write_all(answer.as_bytes()).await;
    }
}
