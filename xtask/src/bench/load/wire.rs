//! The bytes on the wire: a PostgreSQL 3.0 startup in plaintext, then Query messages of 100 bytes and replies of 200.
//!
//! Message layouts are from the PostgreSQL documentation, "Message Formats".

/// Length of [`query`] in bytes, type byte and length word included.
pub const QUERY_LEN: usize = 100;
/// Length of [`reply`] in bytes.
pub const REPLY_LEN: usize = 200;

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

/// What a client sends first.
pub fn startup() -> Vec<u8> {
    let mut packet = vec![0; 4];
    packet.extend(PROTOCOL_3_0.to_be_bytes());
    packet.extend(b"user\0bench\0database\0bench\0application_name\0xtask bench\0\0");
    let length = packet.len() as u32;
    packet[..4].copy_from_slice(&length.to_be_bytes());
    packet
}

/// What the server says to a startup: AuthenticationOk, one ParameterStatus, BackendKeyData, ReadyForQuery.
pub fn welcome(session: u32) -> Vec<u8> {
    let mut key = session.to_be_bytes().to_vec();
    key.extend(session.wrapping_mul(0x9E37_79B9).to_be_bytes());
    let mut out = message(b'R', &[0, 0, 0, 0]);
    out.extend(message(b'S', b"server_version\x0017.0\0"));
    out.extend(message(b'K', &key));
    out.extend(READY_FOR_QUERY);
    out
}

/// One request.
pub fn query() -> [u8; QUERY_LEN] {
    let mut text = [b' '; QUERY_LEN - 5];
    text[..8].copy_from_slice(b"SELECT 1");
    text[QUERY_LEN - 6] = 0;
    let mut out = [0; QUERY_LEN];
    out.copy_from_slice(&message(b'Q', &text));
    out
}

/// The answer to it: DataRow with one column, CommandComplete, ReadyForQuery.
pub fn reply() -> [u8; REPLY_LEN] {
    let complete = message(b'C', b"SELECT 1\0");
    let column = REPLY_LEN - READY_FOR_QUERY.len() - complete.len() - 5 - 2 - 4;
    let mut row = 1u16.to_be_bytes().to_vec();
    row.extend((column as u32).to_be_bytes());
    row.extend(std::iter::repeat_n(b'x', column));
    let mut all = message(b'D', &row);
    all.extend(complete);
    all.extend(READY_FOR_QUERY);
    let mut out = [0; REPLY_LEN];
    out.copy_from_slice(&all);
    out
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![kind];
    out.extend((body.len() as u32 + 4).to_be_bytes());
    out.extend(body);
    out
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

    #[test]
    fn requests_and_replies_have_the_size_they_claim() {
        assert_eq!(frame(&query()), Ok(Some((b'Q', QUERY_LEN))));
        let reply = reply();
        let mut at = 0;
        let mut kinds = Vec::new();
        while let Ok(Some((kind, length))) = frame(&reply[at..]) {
            kinds.push(kind);
            at += length;
        }
        assert_eq!((at, kinds.as_slice()), (REPLY_LEN, b"DCZ".as_slice()));
        assert!(reply.ends_with(&READY_FOR_QUERY));
    }

    #[test]
    fn first_packets_are_told_apart_and_half_ones_wait() {
        let startup = startup();
        assert_eq!(first(&startup), Ok(Some((First::Startup, startup.len()))));
        assert_eq!(first(&startup[..20]), Ok(None));
        let ssl = [8u32.to_be_bytes(), SSL_REQUEST.to_be_bytes()].concat();
        assert_eq!(first(&ssl), Ok(Some((First::Encryption, 8))));
        assert!(first(b"GET / HTTP/1.1\r\n").is_err());
    }
}
