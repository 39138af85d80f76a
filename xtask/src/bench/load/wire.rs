//! The bytes on the wire: a PostgreSQL 3.0 startup in plaintext, then Query messages of 100 bytes and replies of the
//! length they ask for, or a COPY.
//!
//! Message layouts are from the PostgreSQL documentation, "Message Formats".

/// Length of [`query`] in bytes, type byte and length word included.
pub const QUERY_LEN: usize = 100;
/// Length of a usual reply in bytes.
pub const REPLY_LEN: usize = 200;
/// The shortest reply there can be.
pub const MIN_REPLY: usize = READY_FOR_QUERY.len() + COMPLETE.len() + TAG_AT + TAG_LEN;

const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;
const CANCEL_REQUEST: u32 = 80_877_102;
const PROTOCOL_3_0: u32 = 3 << 16;

/// PostgreSQL's own limit (`MAX_STARTUP_PACKET_LENGTH`).
const MAX_STARTUP: usize = 10_000;
/// Far more than any message of this conversation.
const MAX_MESSAGE: usize = 1 << 20;

/// The last six bytes of a reply and of the handshake: ReadyForQuery, idle.
pub const READY_FOR_QUERY: [u8; 6] = *b"Z\0\0\0\x05I";
/// Terminate.
pub const TERMINATE: [u8; 5] = *b"X\0\0\0\x04";
/// CopyDone.
pub const COPY_DONE: [u8; 5] = *b"c\0\0\0\x04";
/// CommandComplete of a [`query`].
const COMPLETE: [u8; 14] = *b"C\0\0\0\x0dSELECT 1\0";

/// What tells a request and its reply from all others: the session's number and the request's.
pub type Tag = u64;
/// It is written in hexadecimal digits.
const TAG_LEN: usize = 16;
/// Where it stands in a reply: behind the head of a DataRow with one column.
const TAG_AT: usize = 5 + 2 + 4;
/// Where the reply's wanted length stands in a query, in five digits; the tag follows after a space.
const LENGTH_AT: usize = 5 + 7;
const LENGTH_LEN: usize = 5;
const QUERY_TAG_AT: usize = LENGTH_AT + LENGTH_LEN + 1;

/// Head of the application_name that asks for a long welcome.
const WELCOME: &[u8] = b"application_name\0welcome ";

/// What a client sends first. It asks for a welcome of at least `welcome` bytes.
pub fn startup(welcome: usize) -> Vec<u8> {
    let mut packet = vec![0; 4];
    packet.extend(PROTOCOL_3_0.to_be_bytes());
    packet.extend(b"user\0bench\0database\0bench\0");
    packet.extend(WELCOME);
    packet.extend(format!("{welcome}\0\0").as_bytes());
    let length = packet.len() as u32;
    packet[..4].copy_from_slice(&length.to_be_bytes());
    packet
}

/// How long a welcome a startup packet asks for.
pub fn wanted_welcome(startup: &[u8]) -> usize {
    let Some(at) = startup.windows(WELCOME.len()).position(|window| window == WELCOME) else { return 0 };
    number(&startup[at + WELCOME.len()..]).min(MAX_MESSAGE)
}

/// What the server says to a startup: AuthenticationOk, ParameterStatus, BackendKeyData, ReadyForQuery; at least
/// `length` bytes.
pub fn welcome(session: u32, length: usize) -> Vec<u8> {
    let mut key = session.to_be_bytes().to_vec();
    key.extend(session.wrapping_mul(0x9E37_79B9).to_be_bytes());
    let mut out = message(b'R', &[0, 0, 0, 0]);
    out.extend(message(b'S', b"server_version\x0017.0\0"));
    let end = [message(b'K', &key), READY_FOR_QUERY.to_vec()].concat();
    while out.len() + end.len() < length {
        let mut padding = b"padding\0".to_vec();
        // Messages of a size that servers really send.
        padding.resize(padding.len() + (length - out.len() - end.len()).min(1000), b'.');
        padding.push(0);
        out.extend(message(b'S', &padding));
    }
    out.extend(end);
    out
}

/// A request for a reply of `reply` bytes, which carries the same tag.
pub fn query(tag: Tag, reply: usize) -> [u8; QUERY_LEN] {
    let mut text = [b' '; QUERY_LEN - 5];
    let said = format!("SELECT {reply:0LENGTH_LEN$}");
    text[..said.len()].copy_from_slice(said.as_bytes());
    text[QUERY_LEN - 6] = 0;
    let mut out = [0; QUERY_LEN];
    out.copy_from_slice(&message(b'Q', &text));
    retag_query(&mut out, tag);
    out
}

/// The same request with another tag.
pub fn retag_query(query: &mut [u8; QUERY_LEN], tag: Tag) {
    query[QUERY_TAG_AT..QUERY_TAG_AT + TAG_LEN].copy_from_slice(&hexadecimal(tag));
}

/// The answer to a query: DataRow with one column, CommandComplete, ReadyForQuery; `length` bytes, at least [`MIN_REPLY`].
pub fn reply(tag: Tag, length: usize) -> Vec<u8> {
    let column = length.max(MIN_REPLY) - (MIN_REPLY - TAG_LEN);
    let mut row = 1u16.to_be_bytes().to_vec();
    row.extend((column as u32).to_be_bytes());
    row.extend((0..column).map(|place| b'a' + (place % 23) as u8));
    let mut all = message(b'D', &row);
    all.extend(COMPLETE);
    all.extend(READY_FOR_QUERY);
    retag_reply(&mut all, tag);
    all
}

/// The same reply with another tag.
pub fn retag_reply(reply: &mut [u8], tag: Tag) {
    reply[TAG_AT..TAG_AT + TAG_LEN].copy_from_slice(&hexadecimal(tag));
}

/// What the body of a Query message asks the server for.
#[derive(Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// A reply of this length with this tag, still in digits.
    Reply { length: usize, tag: &'a [u8] },
    /// CopyData without end.
    StreamOut,
    /// To take CopyData until CopyDone.
    StreamIn,
}

/// [`Request::StreamOut`] and [`Request::StreamIn`] as a client sends them.
pub fn stream_query(out: bool) -> Vec<u8> {
    message(b'Q', if out { b"COPY noise TO STDOUT\0" } else { b"COPY noise FROM STDIN\0" })
}

/// Reads a whole Query message; `None` if it is none of ours.
pub fn request(message: &[u8]) -> Option<Request<'_>> {
    match message.get(5..)? {
        text if text.starts_with(b"SELECT ") => {
            let tag = message.get(QUERY_TAG_AT..QUERY_TAG_AT + TAG_LEN)?;
            Some(Request::Reply { length: number(&message[LENGTH_AT..LENGTH_AT + LENGTH_LEN]), tag })
        }
        b"COPY noise TO STDOUT\0" => Some(Request::StreamOut),
        b"COPY noise FROM STDIN\0" => Some(Request::StreamIn),
        _ => None,
    }
}

/// Puts the digits of a tag, as [`request`] found them, into a reply.
pub fn echo_tag(reply: &mut [u8], tag: &[u8]) {
    reply[TAG_AT..TAG_AT + TAG_LEN].copy_from_slice(tag);
}

/// CopyOutResponse (`H`) or CopyInResponse (`G`): binary, no columns.
pub fn copy_response(kind: u8) -> Vec<u8> {
    message(kind, &[1, 0, 0])
}

/// What the server says when a stream of `bytes` has arrived whole.
pub fn copy_complete(bytes: u64) -> Vec<u8> {
    let mut out = message(b'C', format!("COPY {bytes}\0").as_bytes());
    out.extend(READY_FOR_QUERY);
    out
}

/// An ErrorResponse.
pub fn error(said: &str) -> Vec<u8> {
    message(b'E', format!("SFATAL\0VFATAL\0CXX000\0M{said}\0\0").as_bytes())
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![kind];
    out.extend((body.len() as u32 + 4).to_be_bytes());
    out.extend(body);
    out
}

fn hexadecimal(tag: Tag) -> [u8; TAG_LEN] {
    let mut digits = [0; TAG_LEN];
    for (place, digit) in digits.iter_mut().enumerate() {
        let value = (tag >> (60 - 4 * place)) & 15;
        *digit = b"0123456789abcdef"[value as usize];
    }
    digits
}

/// The decimal number at the head of `text`.
fn number(text: &[u8]) -> usize {
    text.iter().map_while(|digit| char::from(*digit).to_digit(10)).fold(0, |all, digit| all * 10 + digit as usize)
}

/// A whole packet a client may send before its startup is through.
#[derive(Debug, PartialEq, Eq)]
pub enum First {
    Startup,
    /// SSLRequest or GSSENCRequest: answered with `N`.
    Encryption,
    Cancel,
}

/// Reads the first packet at the head of `input`; `Ok(None)` means more bytes are needed.
/// On success the `usize` is the packet's length in bytes.
pub fn first(input: &[u8]) -> Result<Option<(First, usize)>, &'static str> {
    let (Some(length), Some(code)) = (word(input, 0), word(input, 4)) else { return Ok(None) };
    let length = length as usize;
    if !(8..=MAX_STARTUP).contains(&length) {
        return Err("first packet of impossible length");
    }
    if input.len() < length {
        return Ok(None);
    }
    match code {
        SSL_REQUEST | GSSENC_REQUEST => Ok(Some((First::Encryption, length))),
        CANCEL_REQUEST => Ok(Some((First::Cancel, length))),
        _ if code >> 16 == 3 => Ok(Some((First::Startup, length))),
        _ => Err("first packet is not PostgreSQL's"),
    }
}

/// Type and length in bytes of the message at the head of `input`; `Ok(None)` means more bytes are needed.
pub fn frame(input: &[u8]) -> Result<Option<(u8, usize)>, &'static str> {
    let (Some(&kind), Some(length)) = (input.first(), word(input, 1)) else { return Ok(None) };
    let length = length as usize + 1;
    if !(5..=MAX_MESSAGE).contains(&length) {
        return Err("message of impossible length");
    }
    Ok((input.len() >= length).then_some((kind, length)))
}

fn word(input: &[u8], at: usize) -> Option<u32> {
    let bytes = input.get(at..at + 4)?;
    Some(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(bytes: &[u8]) -> (Vec<u8>, usize) {
        let (mut kinds, mut at) = (Vec::new(), 0);
        while let Ok(Some((kind, length))) = frame(&bytes[at..]) {
            kinds.push(kind);
            at += length;
        }
        (kinds, at)
    }

    #[test]
    fn requests_and_replies_have_the_size_they_claim() {
        assert_eq!(frame(&query(7, REPLY_LEN)), Ok(Some((b'Q', QUERY_LEN))));
        for length in [MIN_REPLY, REPLY_LEN, 20_000] {
            let reply = reply(7, length);
            assert_eq!(kinds(&reply), (b"DCZ".to_vec(), length));
            assert!(reply.ends_with(&READY_FOR_QUERY));
        }
        assert_eq!(kinds(&welcome(1, 0)).0, b"RSKZ");
        let long = welcome(1, 20_000);
        assert_eq!(kinds(&long).1, long.len());
        assert!((20_000..20_100).contains(&long.len()), "{}", long.len());
    }

    #[test]
    fn a_reply_carries_the_tag_and_the_length_of_its_request() {
        let mut query = query(0, 1234);
        retag_query(&mut query, 0xFEDC_BA98_7654_3210);
        let Some(Request::Reply { length, tag }) = request(&query) else { panic!("no request: {query:?}") };
        assert_eq!((length, tag), (1234, b"fedcba9876543210".as_slice()));
        let mut answer = reply(0, length);
        echo_tag(&mut answer, tag);
        assert_eq!(answer, reply(0xFEDC_BA98_7654_3210, 1234));
        assert_ne!(answer, reply(0xFEDC_BA98_7654_3211, 1234));
        assert_eq!(request(&stream_query(true)), Some(Request::StreamOut));
        assert_eq!(request(&stream_query(false)), Some(Request::StreamIn));
    }

    #[test]
    fn first_packets_are_told_apart_and_half_ones_wait() {
        let startup = startup(20_000);
        assert_eq!(wanted_welcome(&startup), 20_000);
        assert_eq!(first(&startup), Ok(Some((First::Startup, startup.len()))));
        assert_eq!(first(&startup[..20]), Ok(None));
        let ssl = [8u32.to_be_bytes(), SSL_REQUEST.to_be_bytes()].concat();
        assert_eq!(first(&ssl), Ok(Some((First::Encryption, 8))));
        assert!(first(b"GET / HTTP/1.1\r\n").is_err());
    }
}
