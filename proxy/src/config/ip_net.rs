//! [`IpNet`] as text: `192.0.2.0/24`, `2001:db8::/32`, or one address.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::model::IpNet;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IpNetError {
    #[error("{0:?} is not an IP address or a CIDR")]
    Syntax(String),
    #[error("{found} has a prefix longer than {max} bits")]
    PrefixTooLong { found: String, max: u8 },
    #[error("{found} has host bits set (the network is {network})")]
    HostBits { found: String, network: IpNet },
}

impl IpNet {
    /// `prefix` may be at most the address's length; host bits are cleared.
    pub fn containing(addr: IpAddr, prefix: u8) -> Self {
        let addr = match addr {
            IpAddr::V4(v4) => {
                let mask = u32::MAX.checked_shl(32u32.saturating_sub(prefix.into())).unwrap_or(0);
                IpAddr::V4((v4.to_bits() & mask).into())
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(128u32.saturating_sub(prefix.into())).unwrap_or(0);
                IpAddr::V6((v6.to_bits() & mask).into())
            }
        };
        Self { addr, prefix }
    }
}

impl FromStr for IpNet {
    type Err = IpNetError;

    fn from_str(text: &str) -> Result<Self, IpNetError> {
        let syntax = || IpNetError::Syntax(text.into());
        let (addr, prefix) = match text.split_once('/') {
            Some((addr, prefix)) => (addr, Some(prefix)),
            None => (text, None),
        };
        let addr: IpAddr = addr.parse().map_err(|_| syntax())?;
        let max = if addr.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => max,
            Some(digits) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
                let prefix: u32 = digits.parse().map_err(|_| syntax())?;
                u8::try_from(prefix)
                    .ok()
                    .filter(|prefix| *prefix <= max)
                    .ok_or_else(|| IpNetError::PrefixTooLong { found: text.into(), max })?
            }
            Some(_) => return Err(syntax()),
        };
        let network = Self::containing(addr, prefix);
        if network.addr != addr {
            return Err(IpNetError::HostBits { found: text.into(), network });
        }
        Ok(network)
    }
}

impl fmt::Display for IpNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        for (text, shown) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("192.0.2.7", "192.0.2.7/32"),
            ("::/0", "::/0"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("2001:db8::1", "2001:db8::1/128"),
        ] {
            assert_eq!(text.parse::<IpNet>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn what_is_wrong() {
        for (text, message) in [
            ("10.0.0.1/8", "10.0.0.1/8 has host bits set (the network is 10.0.0.0/8)"),
            ("10.0.0.0/33", "10.0.0.0/33 has a prefix longer than 32 bits"),
            ("::/129", "::/129 has a prefix longer than 128 bits"),
            ("10.0.0.0/", "\"10.0.0.0/\" is not an IP address or a CIDR"),
            ("10.0.0.0/+8", "\"10.0.0.0/+8\" is not an IP address or a CIDR"),
            ("pg1/8", "\"pg1/8\" is not an IP address or a CIDR"),
        ] {
            assert_eq!(text.parse::<IpNet>().unwrap_err().to_string(), message);
        }
    }
}
