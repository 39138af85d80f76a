//! A psql on the lab's client that a test talks to.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError};
use std::thread;
use std::time::Duration;

use xtask::lab::{Host, Lab};

/// What is held up for longer than any failover takes is held up for ever.
const ANSWER: Duration = Duration::from_secs(60);

/// A psql that stays connected.
pub struct Psql {
    child: Child,
    stdin: ChildStdin,
    /// Its output, until it ends.
    lines: Receiver<String>,
}

impl Psql {
    pub fn connect(lab: &Lab, port: u16) -> Self {
        let mut psql = Self::start(lab, port);
        assert_eq!(psql.ask("SELECT 'connected'").as_deref(), Some("connected"));
        psql
    }

    /// Connected or not.
    pub fn start(lab: &Lab, port: u16) -> Self {
        Self::at(lab, lab.proxy(), port)
    }

    /// The same past pgsplice.
    pub fn at(lab: &Lab, host: &Host, port: u16) -> Self {
        let conninfo = format!("{} connect_timeout=60", lab.conninfo(host, port));
        let mut command = lab.client().command(["psql", "-XAtq", &conninfo]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let (said, lines) = mpsc::channel();
        thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| said.send(line)));
        Self { child, stdin, lines }
    }

    /// The first line of the answer; `None` when the statement failed or the session is gone.
    pub fn ask(&mut self, sql: &str) -> Option<String> {
        self.tell(sql)?;
        self.answer()
    }

    /// The first half of [`Self::ask`].
    pub fn tell(&mut self, sql: &str) -> Option<()> {
        writeln!(self.stdin, "{sql};\n\\echo done").ok()
    }

    /// Whether nothing was heard of what it was told.
    pub fn waits(&self) -> bool {
        matches!(self.lines.try_recv(), Err(TryRecvError::Empty))
    }

    /// The second half of [`Self::ask`].
    pub fn answer(&mut self) -> Option<String> {
        let mut answer = None;
        loop {
            match self.lines.recv_timeout(ANSWER) {
                Ok(line) if line == "done" => return answer,
                Ok(line) => answer = answer.or(Some(line)),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => panic!("no answer within {ANSWER:?}"),
            }
        }
    }
}

impl Drop for Psql {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
