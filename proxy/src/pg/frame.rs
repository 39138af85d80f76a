//! Follows messages through a byte stream without keeping them: a type byte, a length word, a body.

/// Longest body of interest that is kept: BackendKeyData of protocol 3.2 is 4 + 256 bytes.
const KEEP: usize = 4 + 256;

/// What a message means to the handshake, and to whoever looks for the end of a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// `R` that asks the client for an answer (password, SASL, GSS).
    AuthenticationAsks,
    /// `K`: process id and secret key as sent.
    BackendKeyData(Vec<u8>),
    /// `Z`: the server waits for the client.
    ReadyForQuery,
    /// `E`: in a handshake always the end.
    ErrorResponse,
    /// The client's `Q`, `S` or `F`: the server will answer with one ReadyForQuery. (During a COPY it ignores `S`.)
    ReplyDue,
    /// Not a message of the protocol: the stream cannot be followed any further.
    Lost,
}

/// Feed it every byte of one direction, in order; it calls back at the end of each message of interest. The default
/// follows a server.
#[derive(Debug)]
pub struct Framer {
    state: State,
    meaning: fn(u8, Vec<u8>) -> Option<Event>,
    /// Type of the last message that ended.
    last: u8,
}

#[derive(Debug)]
enum State {
    /// Type byte and length word, so far.
    Header {
        bytes: [u8; 5],
        have: usize,
    },
    /// `left` bytes of the body to come; the first [`KEEP`] are kept for the types that need them.
    Body {
        kind: u8,
        left: usize,
        kept: Vec<u8>,
    },
    Lost,
}

const START: State = State::Header { bytes: [0; 5], have: 0 };

impl Default for Framer {
    fn default() -> Self {
        Self { state: START, meaning: of_server, last: 0 }
    }
}

impl Framer {
    /// Follows a client, from behind its StartupMessage or from behind any request that was answered.
    pub fn of_client() -> Self {
        // Nothing is under way, as behind a Sync.
        Self { meaning: of_client, last: b'S', ..Self::default() }
    }

    /// Whether the bytes so far end exactly at the end of a ReadyForQuery.
    pub fn is_ready(&self) -> bool {
        self.at_boundary() && self.last == b'Z'
    }

    /// Whether the client's bytes so far end in a whole request: Query, Sync, FunctionCall, or the end of a COPY.
    pub fn is_whole_request(&self) -> bool {
        self.at_boundary() && matches!(self.last, b'Q' | b'S' | b'F' | b'c' | b'f')
    }

    /// Whether the bytes so far end exactly at the end of a message.
    pub fn at_boundary(&self) -> bool {
        matches!(self.state, State::Header { have: 0, .. })
    }

    pub fn feed(&mut self, mut bytes: &[u8], mut event: impl FnMut(Event)) {
        loop {
            match &mut self.state {
                State::Lost => return,
                State::Header { bytes: header, have } => {
                    let take = bytes.len().min(5 - *have);
                    header[*have..*have + take].copy_from_slice(&bytes[..take]);
                    *have += take;
                    bytes = &bytes[take..];
                    if *have < 5 {
                        return;
                    }
                    let [kind, length @ ..] = *header;
                    let length = u32::from_be_bytes(length) as usize;
                    // PostgreSQL's own bound on a message is 1 GiB.
                    if !(4..=1 << 30).contains(&length) || !kind.is_ascii_alphanumeric() {
                        self.state = State::Lost;
                        event(Event::Lost);
                        return;
                    }
                    self.state = State::Body { kind, left: length - 4, kept: Vec::new() };
                }
                State::Body { kind, left, kept } => {
                    let take = bytes.len().min(*left);
                    if matches!(kind, b'R' | b'K') {
                        let keep = take.min(KEEP - kept.len());
                        kept.extend_from_slice(&bytes[..keep]);
                    }
                    *left -= take;
                    bytes = &bytes[take..];
                    if *left > 0 {
                        return;
                    }
                    self.last = *kind;
                    if let Some(found) = (self.meaning)(*kind, std::mem::take(kept)) {
                        event(found);
                    }
                    self.state = START;
                    if bytes.is_empty() {
                        return;
                    }
                }
            }
        }
    }
}

fn of_server(kind: u8, body: Vec<u8>) -> Option<Event> {
    match kind {
        b'K' => Some(Event::BackendKeyData(body)),
        b'Z' => Some(Event::ReadyForQuery),
        b'E' => Some(Event::ErrorResponse),
        // AuthenticationOk is 0 and SASLFinal 12; every other code waits for the client.
        b'R' => match body.get(..4) {
            Some([0, 0, 0, 0 | 12]) => None,
            _ => Some(Event::AuthenticationAsks),
        },
        _ => None,
    }
}

fn of_client(kind: u8, _: Vec<u8>) -> Option<Event> {
    matches!(kind, b'Q' | b'S' | b'F').then_some(Event::ReplyDue)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let mut out = vec![kind];
        out.extend((body.len() as u32 + 4).to_be_bytes());
        out.extend(body);
        out
    }

    fn login() -> Vec<u8> {
        [
            message(b'R', &[0, 0, 0, 10, b'x', 0, 0]),
            message(b'R', &[0, 0, 0, 12, 1, 2]),
            message(b'R', &[0, 0, 0, 0]),
            message(b'S', b"server_version\x0017.2\0"),
            message(b'K', &[0, 0, 0, 7, 9, 8, 7, 6]),
            message(b'Z', b"I"),
        ]
        .concat()
    }

    fn events(chunks: &[&[u8]]) -> Vec<Event> {
        let mut framer = Framer::default();
        let mut found = Vec::new();
        chunks.iter().for_each(|chunk| framer.feed(chunk, |event| found.push(event)));
        found
    }

    #[test]
    fn a_login_is_followed_to_its_end() {
        let expected =
            [Event::AuthenticationAsks, Event::BackendKeyData(vec![0, 0, 0, 7, 9, 8, 7, 6]), Event::ReadyForQuery];
        assert_eq!(events(&[&login()]), expected);
    }

    #[test]
    fn the_end_of_a_reply_is_known_to_the_byte() {
        let mut framer = Framer::default();
        let mut ready = |bytes: &[u8]| {
            framer.feed(bytes, |_| {});
            framer.is_ready()
        };
        let reply = [message(b'C', b"SELECT 1\0"), message(b'Z', b"I")].concat();
        assert!(!ready(&[]));
        assert!(!ready(&reply[..reply.len() - 1]));
        assert!(ready(&reply[reply.len() - 1..]));
        assert!(!ready(&message(b'A', b"\0\0\0\x07jobs\0\0")));
        assert!(!ready(&reply[..5]) && ready(&reply[5..]));
    }

    #[test]
    fn each_request_of_a_client_is_due_one_reply() {
        let mut framer = Framer::of_client();
        let mut due = 0;
        let batch = [message(b'P', b"\0\0\0\0"), message(b'E', b"\0\0\0\0\0"), message(b'S', b"")].concat();
        for bytes in [message(b'Q', b"SELECT 1\0"), batch, message(b'd', b"1\n"), message(b'X', b"")] {
            framer.feed(&bytes, |event| due += u32::from(event == Event::ReplyDue));
        }
        assert_eq!(due, 2);
    }

    #[test]
    fn a_request_under_way_is_not_whole() {
        let mut framer = Framer::of_client();
        assert!(framer.is_whole_request());
        let steps: [(Vec<u8>, bool); 6] = [
            (message(b'Q', b"COPY t FROM STDIN\0"), true),
            (message(b'd', b"1\n"), false),
            (message(b'c', b""), true),
            (message(b'P', b"\0\0\0\0"), false),
            (message(b'S', b""), true),
            (vec![b'Q'], false),
        ];
        for (bytes, whole) in steps {
            framer.feed(&bytes, |_| {});
            assert_eq!(framer.is_whole_request(), whole, "{bytes:?}");
        }
    }

    #[test]
    fn a_stream_that_is_not_postgres_is_lost_once() {
        assert_eq!(events(&[b"HTTP/1.1 400 Bad Request\r\n\r\n", b"more"]), [Event::Lost]);
        assert_eq!(events(&[&[b'Z', 0, 0, 0, 3]]), [Event::Lost]);
    }

    proptest! {
        #[test]
        fn where_the_stream_is_cut_does_not_matter(cuts in proptest::collection::vec(0usize..60, 0..8)) {
            let bytes = login();
            let mut cuts = cuts;
            cuts.push(0);
            cuts.push(bytes.len());
            cuts.iter_mut().for_each(|cut| *cut = (*cut).min(bytes.len()));
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            prop_assert_eq!(events(&chunks), events(&[&bytes]));
        }

        #[test]
        fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            events(&[&bytes]);
        }
    }
}
