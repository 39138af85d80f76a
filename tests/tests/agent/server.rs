//! A PostgreSQL that says who it is, whatever it is asked: what PgBouncer needs to have a server connection.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

pub struct Server {
    pub port: u16,
    task: JoinHandle<()>,
}

impl Server {
    pub async fn start(name: &'static str, host: &str) -> Self {
        let listener = TcpListener::bind((host, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move { drop(serve(stream, name).await) });
            }
        });
        Self { port, task }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: TcpStream, name: &str) -> std::io::Result<()> {
    loop {
        let length = stream.read_u32().await?;
        let mut startup = vec![0; length as usize - 4];
        stream.read_exact(&mut startup).await?;
        if startup.len() != 4 {
            break;
        }
        // An SSLRequest.
        stream.write_all(b"N").await?;
    }
    let parameter = |name: &str, value: &str| message(b'S', format!("{name}\0{value}\0").as_bytes());
    let greeting = [
        message(b'R', &[0; 4]),
        parameter("server_version", "17.0"),
        parameter("client_encoding", "UTF8"),
        parameter("standard_conforming_strings", "on"),
        message(b'K', &[0, 0, 0, 7, 1, 2, 3, 4]),
        message(b'Z', b"I"),
    ];
    stream.write_all(&greeting.concat()).await?;
    let mut status = b'I';
    loop {
        let kind = stream.read_u8().await?;
        let length = stream.read_u32().await?;
        let mut body = vec![0; length as usize - 4];
        stream.read_exact(&mut body).await?;
        if kind != b'Q' {
            return Ok(());
        }
        let sql = String::from_utf8_lossy(&body).to_uppercase();
        match &sql {
            sql if sql.starts_with("BEGIN") => status = b'T',
            sql if sql.starts_with("COMMIT") => status = b'I',
            _ => {}
        }
        stream.write_all(&answer(name, status)).await?;
    }
}

/// One row with one column.
fn answer(name: &str, status: u8) -> Vec<u8> {
    let mut column = b"\0\x01who\0".to_vec();
    column.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 25, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]);
    let mut row = vec![0, 1];
    row.extend((name.len() as u32).to_be_bytes());
    row.extend(name.bytes());
    [message(b'T', &column), message(b'D', &row), message(b'C', b"SELECT 1\0"), message(b'Z', &[status])].concat()
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![kind];
    packet.extend((body.len() as u32 + 4).to_be_bytes());
    packet.extend(body);
    packet
}
