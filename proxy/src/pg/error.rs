//! ErrorResponse: how the proxy says no so that a person at psql can read it.

/// SQLSTATEs the proxy itself sends (PostgreSQL documentation, appendix A).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SqlState {
    /// 53300
    TooManyConnections,
    /// 57P03
    CannotConnectNow,
    /// 08P01
    ProtocolViolation,
}

impl SqlState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TooManyConnections => "53300",
            Self::CannotConnectNow => "57P03",
            Self::ProtocolViolation => "08P01",
        }
    }
}

/// A whole `ErrorResponse` with severity FATAL.
pub fn fatal(state: SqlState, message: &str) -> Vec<u8> {
    let mut fields = Vec::with_capacity(64 + message.len());
    for (code, value) in [(b'S', "FATAL"), (b'V', "FATAL"), (b'C', state.as_str()), (b'M', message)] {
        fields.push(code);
        fields.extend(value.bytes().filter(|&byte| byte != 0));
        fields.push(0);
    }
    fields.push(0);
    let mut packet = vec![b'E'];
    packet.extend(((fields.len() + 4) as u32).to_be_bytes());
    packet.extend(fields);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_response_is_framed_and_terminated() {
        let packet = fatal(SqlState::CannotConnectNow, "no primary\0");
        assert_eq!(packet[0], b'E');
        let length = u32::from_be_bytes(packet[1..5].try_into().expect("four bytes")) as usize;
        assert_eq!(length + 1, packet.len());
        assert_eq!(&packet[5..], b"SFATAL\0VFATAL\0C57P03\0Mno primary\0\0");
    }
}
