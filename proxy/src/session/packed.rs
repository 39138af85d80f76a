//! What is known about a session that is being forwarded, in little memory: it hardly changes any more, and there may
//! be 100,000 of them.

use std::net::{SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::time::Duration;

use super::names::Name;
use super::{Details, Phase, Times};
use crate::pool::Backend;
use crate::splice::Why;

#[derive(Debug)]
pub(super) struct Packed {
    /// In the order of [`Times`].
    times: [Took; 4],
    backend: Option<Arc<Backend>>,
    backend_local: Option<Address>,
    /// User, database and application name, those that are known, each but the last with a zero byte behind it: the
    /// protocol's strings have none inside.
    texts: Box<str>,
    knows: [bool; 3],
    tls: bool,
    phase: Phase,
    why: Option<Why>,
    road: Option<Name>,
}

/// A time: microseconds below 2³¹, else milliseconds with the top bit set (up to 24 days); all bits set is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Took(u32);

/// A socket address without IPv6's flow label, which accept(2) and getsockname(2) leave at zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address {
    /// IPv4 in the last four bytes.
    ip: [u8; 16],
    scope: u32,
    port: u16,
    is_v6: bool,
}

impl From<Details> for Packed {
    fn from(details: Details) -> Self {
        // Taken apart by name, so that a new field cannot be forgotten.
        let Details { phase, user, database, application_name, tls, backend, backend_local, road, why, times } =
            details;
        let Times { startup, queue, connect, handshake } = times;
        let texts = [user, database, application_name];
        let knows = texts.each_ref().map(Option::is_some);
        let texts: Vec<String> = texts.into_iter().flatten().collect();
        Self {
            times: [startup, queue, connect, handshake].map(Took::from),
            backend,
            backend_local: backend_local.map(Address::from),
            texts: texts.join("\0").into(),
            knows,
            tls,
            phase,
            why,
            road: road.map(Name::of),
        }
    }
}

impl Packed {
    pub fn unpack(&self) -> Details {
        let Self { times, backend, backend_local, texts, knows, tls, phase, why, road } = self;
        let [startup, queue, connect, handshake] = times.map(Took::duration);
        let mut texts = texts.split('\0').map(str::to_owned);
        let [user, database, application_name] = knows.map(|known| if known { texts.next() } else { None });
        Details {
            phase: *phase,
            user,
            database,
            application_name,
            tls: *tls,
            backend: backend.clone(),
            backend_local: backend_local.map(SocketAddr::from),
            road: road.map(Name::as_str),
            why: *why,
            times: Times { startup, queue, connect, handshake },
        }
    }

    pub fn phase_and_road(&self) -> (Phase, Option<&'static str>) {
        (self.phase, self.road.map(Name::as_str))
    }

    pub fn backend(&self) -> Option<&Arc<Backend>> {
        self.backend.as_ref()
    }
}

impl Took {
    const NONE: u32 = u32::MAX;
    const MILLIS: u32 = 1 << 31;

    fn duration(self) -> Option<Duration> {
        match self.0 {
            Self::NONE => None,
            millis if millis & Self::MILLIS != 0 => Some(Duration::from_millis((millis & !Self::MILLIS).into())),
            micros => Some(Duration::from_micros(micros.into())),
        }
    }
}

impl From<Option<Duration>> for Took {
    fn from(time: Option<Duration>) -> Self {
        let Some(time) = time else { return Self(Self::NONE) };
        let micros = time.saturating_add(Duration::from_nanos(500)).as_micros();
        match u32::try_from(micros) {
            Ok(micros) if micros < Self::MILLIS => Self(micros),
            _ => Self(Self::MILLIS | u32::try_from(time.as_millis()).unwrap_or(u32::MAX).min(Self::MILLIS - 2)),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        let (ip, scope) = match address {
            SocketAddr::V4(address) => (address.ip().to_ipv6_compatible(), 0),
            SocketAddr::V6(address) => (*address.ip(), address.scope_id()),
        };
        Self { ip: ip.octets(), scope, port: address.port(), is_v6: address.is_ipv6() }
    }
}

impl From<Address> for SocketAddr {
    fn from(Address { ip, scope, port, is_v6 }: Address) -> Self {
        let [.., a, b, c, d] = ip;
        if is_v6 { SocketAddrV6::new(ip.into(), port, 0, scope).into() } else { ([a, b, c, d], port).into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text() -> impl Strategy<Value = Option<String>> {
        prop::option::of("[^\0]{0,20}")
    }

    fn time() -> impl Strategy<Value = Option<Duration>> {
        prop::option::of((0..1u64 << 31).prop_map(Duration::from_micros))
    }

    fn local() -> impl Strategy<Value = Option<SocketAddr>> {
        let v4 = (any::<[u8; 4]>(), any::<u16>()).prop_map(SocketAddr::from);
        let v6 = (any::<[u8; 16]>(), any::<u16>(), any::<u32>())
            .prop_map(|(ip, port, scope)| SocketAddrV6::new(ip.into(), port, 0, scope).into());
        prop::option::of(prop_oneof![v4, v6])
    }

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked(
            texts in [text(), text(), text()],
            times in [time(), time(), time(), time()],
            backend_local in local(),
            tls: bool,
            road in prop::option::of(prop::sample::select(vec!["relay", "xdp", "tc"])),
            why in prop::option::of(prop::sample::select(Why::ALL)),
        ) {
            let [user, database, application_name] = texts;
            let [startup, queue, connect, handshake] = times;
            let times = Times { startup, queue, connect, handshake };
            let phase = Phase::Forward;
            let backend = Some(Arc::new(Backend::new("p", "b", "127.0.0.1:1".parse().unwrap())));
            let details =
                Details { phase, user, database, application_name, tls, backend, backend_local, road, why, times };
            let unpacked = Packed::from(details.clone()).unpack();
            prop_assert_eq!(format!("{unpacked:?}"), format!("{details:?}"));
        }
    }

    #[test]
    fn long_times_are_kept_to_the_millisecond() {
        let back = |time| Took::from(Some(time)).duration();
        for (time, kept) in [
            (Duration::from_nanos(1_499), Duration::from_micros(1)),
            (Duration::from_nanos(1_500), Duration::from_micros(2)),
            (Duration::from_secs(3600) + Duration::from_micros(1_700), Duration::from_millis(3_600_001)),
            (Duration::from_secs(86_400 * 10), Duration::from_secs(86_400 * 10)),
            (Duration::MAX, Duration::from_millis((1 << 31) - 2)),
        ] {
            assert_eq!(back(time), Some(kept));
        }
        assert_eq!(Took::from(None).duration(), None);
    }
}
