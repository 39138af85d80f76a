//! The first packet a client sends: what it is, or why it is none of PostgreSQL's.

use thiserror::Error;

/// Length word and request code.
pub const HEADER: usize = 8;

/// A whole SSLRequest: length 8, then the request code 1234.5679 (`NEGOTIATE_SSL_CODE`).
pub const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

const CANCEL: u32 = 80_877_102;
const SSL: u32 = 80_877_103;
const GSSENC: u32 = 80_877_104;

/// First byte of a TLS record that carries a handshake (RFC 8446, section 5.1).
const TLS_HANDSHAKE: u8 = 0x16;

/// Shortest and longest CancelRequest: a key of 4 bytes (protocol 3.0), of at most 256 (3.2).
const CANCEL_LENGTH: std::ops::RangeInclusive<usize> = 16..=12 + 256;

/// What the first packet is. Nothing here borrows: the bytes themselves are forwarded untouched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FirstPacket {
    Startup(Startup),
    /// `SSLRequest` (8 bytes), answered by one byte.
    Ssl,
    /// `GSSENCRequest` (8 bytes), answered by one byte.
    GssEnc,
    /// The whole packet: it is forwarded as it came.
    Cancel(Vec<u8>),
    /// A ClientHello without SSLRequest (`sslnegotiation=direct`). Its length is TLS's business.
    DirectTls,
}

/// A StartupMessage. Protocol major 3, any minor: a server answers one it does not know with NegotiateProtocolVersion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Startup {
    pub minor: u16,
    pub user: Option<String>,
    pub database: Option<String>,
    pub application_name: Option<String>,
}

/// How far the parser got with the bytes so far.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// At least this many bytes in all are needed.
    Need(usize),
    /// The packet and its length; bytes after it belong to what follows.
    Packet(FirstPacket, usize),
}

/// Why a first packet is refused. Each is counted under its name.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Refused {
    #[error("the first bytes are not a PostgreSQL startup packet")]
    NotPostgres,
    #[error("protocol version {0}.{1} is not supported")]
    Version(u16, u16),
    #[error("a startup packet of {length} bytes is longer than the limit of {limit}")]
    Oversized { length: usize, limit: usize },
    #[error("the startup packet's parameters are not zero-terminated pairs")]
    Parameters,
    #[error("a CancelRequest of {0} bytes")]
    CancelLength(usize),
}

/// Reads the first packet from `bytes`, everything received so far. `limit` is the largest StartupMessage in bytes.
pub fn parse(bytes: &[u8], limit: usize) -> Result<Parsed, Refused> {
    match bytes.first() {
        None => return Ok(Parsed::Need(1)),
        Some(&TLS_HANDSHAKE) => return parse_direct_tls(bytes),
        // A length below 16 MiB has a zero here; anything else is not ours, and no more bytes are waited for.
        Some(0) => {}
        Some(_) => return Err(Refused::NotPostgres),
    }
    let Some(length) = word(bytes, 0) else { return Ok(Parsed::Need(HEADER)) };
    let length = length as usize;
    if length < HEADER {
        return Err(Refused::NotPostgres);
    }
    let Some(code) = word(bytes, 4) else { return Ok(Parsed::Need(HEADER)) };
    match code {
        SSL | GSSENC if length != HEADER => Err(Refused::NotPostgres),
        SSL => Ok(Parsed::Packet(FirstPacket::Ssl, HEADER)),
        GSSENC => Ok(Parsed::Packet(FirstPacket::GssEnc, HEADER)),
        CANCEL if !CANCEL_LENGTH.contains(&length) => Err(Refused::CancelLength(length)),
        CANCEL => Ok(match bytes.get(..length) {
            Some(packet) => Parsed::Packet(FirstPacket::Cancel(packet.to_vec()), length),
            None => Parsed::Need(length),
        }),
        _ => {
            let (major, minor) = ((code >> 16) as u16, code as u16);
            match major {
                3 => {}
                // What another protocol's bytes look like; 2.0 was dropped by PostgreSQL 14.
                1 | 2 | 4..=9 => return Err(Refused::Version(major, minor)),
                _ => return Err(Refused::NotPostgres),
            }
            if length > limit {
                return Err(Refused::Oversized { length, limit });
            }
            let Some(packet) = bytes.get(..length) else { return Ok(Parsed::Need(length)) };
            Ok(Parsed::Packet(FirstPacket::Startup(parse_parameters(minor, &packet[HEADER..])?), length))
        }
    }
}

/// A TLS record header: type, version (3, x), length; then handshake type 1 (client_hello).
fn parse_direct_tls(bytes: &[u8]) -> Result<Parsed, Refused> {
    match bytes {
        [_, 3, _, _, _, 1, ..] => Ok(Parsed::Packet(FirstPacket::DirectTls, 0)),
        [_, 3, _, _, _, _, ..] => Err(Refused::NotPostgres),
        [_] | [_, 3, ..] => Ok(Parsed::Need(6)),
        _ => Err(Refused::NotPostgres),
    }
}

/// Pairs of zero-terminated strings, then one zero. PostgreSQL itself refuses a packet that does not end so.
fn parse_parameters(minor: u16, bytes: &[u8]) -> Result<Startup, Refused> {
    let mut startup = Startup { minor, ..Startup::default() };
    let mut rest = bytes;
    loop {
        match rest {
            [0] => return Ok(startup),
            [] | [0, ..] => return Err(Refused::Parameters),
            _ => {}
        }
        let name = take_string(&mut rest)?;
        let value = take_string(&mut rest)?;
        let text = || Some(String::from_utf8_lossy(value).into_owned());
        match name {
            b"user" => startup.user = text(),
            b"database" => startup.database = text(),
            b"application_name" => startup.application_name = text(),
            _ => {}
        }
    }
}

fn take_string<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], Refused> {
    let end = rest.iter().position(|&byte| byte == 0).ok_or(Refused::Parameters)?;
    let (text, after) = rest.split_at(end);
    *rest = &after[1..];
    Ok(text)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: usize = 10_000;

    fn startup(minor: u16, body: &[u8]) -> Vec<u8> {
        let mut packet = ((HEADER + body.len()) as u32).to_be_bytes().to_vec();
        packet.extend(3u16.to_be_bytes());
        packet.extend(minor.to_be_bytes());
        packet.extend(body);
        packet
    }

    fn request(length: u32, code: u32) -> Vec<u8> {
        [length.to_be_bytes(), code.to_be_bytes()].concat()
    }

    #[test]
    fn a_startup_message_names_user_and_database() {
        for minor in [0, 2, 9999] {
            let packet = startup(minor, b"user\0alice\0database\0shop\0application_name\0psql\0\0");
            let Ok(Parsed::Packet(FirstPacket::Startup(found), length)) = parse(&packet, LIMIT) else {
                panic!("not a startup");
            };
            assert_eq!(length, packet.len());
            assert_eq!(found.minor, minor);
            assert_eq!(found.user.as_deref(), Some("alice"));
            assert_eq!(found.database.as_deref(), Some("shop"));
            assert_eq!(found.application_name.as_deref(), Some("psql"));
        }
    }

    #[test]
    fn requests_are_told_apart() {
        assert_eq!(parse(&request(8, SSL), LIMIT), Ok(Parsed::Packet(FirstPacket::Ssl, 8)));
        assert_eq!(parse(&request(8, GSSENC), LIMIT), Ok(Parsed::Packet(FirstPacket::GssEnc, 8)));
        let cancel = [request(16, CANCEL), vec![1, 2, 3, 4, 5, 6, 7, 8]].concat();
        assert_eq!(parse(&cancel, LIMIT), Ok(Parsed::Packet(FirstPacket::Cancel(cancel.clone()), 16)));
        assert_eq!(parse(&[0x16, 3, 1, 2, 0, 1], LIMIT), Ok(Parsed::Packet(FirstPacket::DirectTls, 0)));
    }

    #[test]
    fn what_is_not_postgres_is_refused_at_its_first_wrong_byte() {
        assert_eq!(parse(b"G", LIMIT), Err(Refused::NotPostgres));
        assert_eq!(parse(b"\x00\x00\x00\x07", LIMIT), Err(Refused::NotPostgres));
        assert_eq!(parse(&request(9, SSL), LIMIT), Err(Refused::NotPostgres));
        assert_eq!(parse(&request(8, 0xdead_beef), LIMIT), Err(Refused::NotPostgres));
        assert_eq!(parse(&request(20, 2 << 16), LIMIT), Err(Refused::Version(2, 0)));
        assert_eq!(parse(&request(12, CANCEL), LIMIT), Err(Refused::CancelLength(12)));
        assert_eq!(parse(&request(4096, CANCEL), LIMIT), Err(Refused::CancelLength(4096)));
        assert_eq!(parse(&[0x16, 9], LIMIT), Err(Refused::NotPostgres));
        assert_eq!(parse(&[0x16, 3, 1, 0, 0, 2], LIMIT), Err(Refused::NotPostgres));
    }

    #[test]
    fn an_oversized_startup_is_refused_by_its_header_alone() {
        let header = request(10_001, 3 << 16);
        assert_eq!(parse(&header, LIMIT), Err(Refused::Oversized { length: 10_001, limit: LIMIT }));
        assert_eq!(parse(&request(10_000, 3 << 16), LIMIT), Ok(Parsed::Need(10_000)));
    }

    #[test]
    fn parameters_must_be_terminated_pairs() {
        for body in [&b""[..], b"user\0alice\0", b"user\0\0alice", b"user", b"user\0alice", b"\0\0"] {
            assert_eq!(parse(&startup(0, body), LIMIT), Err(Refused::Parameters), "{body:?}");
        }
        assert!(parse(&startup(0, b"\0"), LIMIT).is_ok());
    }

    proptest! {
        #[test]
        fn any_bytes_give_an_answer_and_never_a_longer_packet(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            match parse(&bytes, LIMIT) {
                Ok(Parsed::Packet(_, length)) => prop_assert!(length <= bytes.len()),
                Ok(Parsed::Need(length)) => prop_assert!(length > bytes.len() && length <= LIMIT),
                Err(_) => {}
            }
        }

        #[test]
        fn a_prefix_never_changes_the_verdict(user in "[a-z]{1,20}", cut in 0usize..200) {
            let packet = startup(0, format!("user\0{user}\0database\0d\0\0").as_bytes());
            let prefix = &packet[..cut.min(packet.len())];
            match parse(prefix, LIMIT) {
                Ok(Parsed::Need(length)) => prop_assert!(length > prefix.len()),
                Ok(Parsed::Packet(_, length)) => prop_assert_eq!(length, packet.len()),
                Err(refused) => prop_assert!(false, "{refused}"),
            }
        }
    }
}
