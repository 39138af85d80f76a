//! The kinds of values a key may have: each knows what it expects in words and how to read it.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::DeValue;

use super::model::{IpNet, SpliceAfter};
use super::units;

/// One kind of value. The problem and `expected` together are the message a person sees.
pub(super) struct Kind<'k, T> {
    pub expected: String,
    parse: Box<Parse<'k, T>>,
}

type Parse<'k, T> = dyn Fn(&DeValue<'_>) -> Result<T, String> + 'k;

impl<'k, T> Kind<'k, T> {
    pub fn new(expected: impl Into<String>, parse: impl Fn(&DeValue<'_>) -> Result<T, String> + 'k) -> Self {
        Self { expected: expected.into(), parse: Box::new(parse) }
    }

    /// The error is the problem in words.
    pub fn read(&self, value: &DeValue<'_>) -> Result<T, String> {
        (self.parse)(value)
    }
}

/// What stands there instead of what was expected.
pub(super) fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("{text:?} is text"),
        DeValue::Integer(number) => format!("{number} is a number"),
        DeValue::Float(number) => format!("{number} is a number with a point"),
        DeValue::Boolean(flag) => format!("{flag} is a boolean"),
        DeValue::Datetime(at) => format!("{at} is a date"),
        DeValue::Array(_) => "this is a list".into(),
        DeValue::Table(_) => "this is a table".into(),
    }
}

pub(super) fn integer(value: &DeValue<'_>) -> Result<i128, String> {
    match value {
        DeValue::Integer(number) => {
            i128::from_str_radix(number.as_str(), number.radix()).map_err(|_| format!("{number} is out of range"))
        }
        other => Err(describe(other)),
    }
}

fn string<'v>(value: &'v DeValue<'_>) -> Result<&'v str, String> {
    value.as_str().ok_or_else(|| describe(value))
}

/// A whole number within the range.
pub(super) fn count<'k, N: TryFrom<i128> + Into<i128> + Copy + 'k>(range: RangeInclusive<N>) -> Kind<'k, N> {
    let (low, high) = ((*range.start()).into(), (*range.end()).into());
    Kind::new(format!("a whole number from {low} to {high}"), move |value| {
        let number = integer(value)?;
        let fits = if (low..=high).contains(&number) { N::try_from(number).ok() } else { None };
        fits.ok_or_else(|| match number {
            n if n < low => format!("{n} is too small"),
            n => format!("{n} is too large"),
        })
    })
}

/// As [`count`], for the types that do not convert into `i128` by themselves.
pub(super) fn count_usize<'k>(range: RangeInclusive<u32>) -> Kind<'k, usize> {
    let inner = count(range);
    Kind::new(inner.expected.clone(), move |value| inner.read(value).map(|number| number as usize))
}

pub(super) fn flag<'k>() -> Kind<'k, bool> {
    Kind::new("true or false", |value| value.as_bool().ok_or_else(|| describe(value)))
}

/// What something is called in logs, metrics and keys.
pub(super) fn name<'k>() -> Kind<'k, String> {
    Kind::new(super::read::NAME, |value| match string(value)? {
        text if super::read::is_name(text) => Ok(text.into()),
        text => Err(format!("{text:?} is not a name")),
    })
}

pub(super) fn text<'k>(what: &'k str) -> Kind<'k, String> {
    Kind::new(what, |value| match string(value)? {
        "" => Err("\"\" is empty".into()),
        text => Ok(text.into()),
    })
}

/// Like [`text`], without the characters a NUL-terminated protocol field cannot carry.
pub(super) fn protocol_text<'k>(what: &'k str) -> Kind<'k, String> {
    Kind::new(what, |value| match string(value)? {
        "" => Err("\"\" is empty".into()),
        text if text.contains('\0') => Err(format!("{text:?} has a zero byte")),
        text => Ok(text.into()),
    })
}

/// Like [`protocol_text`], never repeated in a message. `what` is a password, a token.
pub(super) fn secret<'k>(what: &str) -> Kind<'k, String> {
    Kind::new(format!("a {what} in quotes"), |value| match value.as_str() {
        None => Err("this is not text".into()),
        Some("") => Err("this is empty".into()),
        Some(text) if text.contains('\0') => Err("this has a zero byte".into()),
        Some(text) => Ok(text.into()),
    })
}

pub(super) fn one_of<'k, T: Copy>(choices: &'static [(&'static str, T)]) -> Kind<'k, T> {
    let names: Vec<String> = choices.iter().map(|(name, _)| format!("{name:?}")).collect();
    let expected = match names.as_slice() {
        [first, second] => format!("{first} or {second}"),
        names => format!("one of {}", names.join(", ")),
    };
    Kind::new(expected, move |value| {
        let text = string(value)?;
        match choices.iter().find(|(name, _)| *name == text) {
            Some((_, choice)) => Ok(*choice),
            None => Err(match closest(text, choices.iter().map(|(name, _)| *name)) {
                Some(name) => format!("{text:?} is not known (did you mean {name:?}?)"),
                None => format!("{text:?} is not known"),
            }),
        }
    })
}

/// The name a typo was probably meant to be.
pub(super) fn closest<'n>(typo: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    // A third of the letters may be wrong, dashes and underscores and case do not count.
    let plain = |name: &str| name.replace('-', "_").to_lowercase();
    let typo = plain(typo);
    names
        .map(|name| (strsim::osa_distance(&typo, &plain(name)), name))
        .filter(|(distance, name)| *distance <= (name.len() / 3).max(1) && *distance < name.len())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

fn duration_value(value: &DeValue<'_>) -> Result<Duration, String> {
    match value {
        DeValue::String(text) => units::parse_duration(text),
        DeValue::Integer(number) if number.as_str() == "0" => Ok(Duration::ZERO),
        DeValue::Integer(number) => Err(format!("{number} has no unit")),
        other => Err(describe(other)),
    }
}

/// More than zero.
pub(super) fn duration<'k>() -> Kind<'k, Duration> {
    Kind::new("a duration above zero, such as 2s, 500ms or 1h30m", |value| match duration_value(value)? {
        Duration::ZERO => Err("zero makes no sense here".into()),
        duration => Ok(duration),
    })
}

/// Zero has the meaning given.
pub(super) fn duration_or_zero<'k>(zero_means: &str) -> Kind<'k, Duration> {
    Kind::new(format!("a duration such as 2s, 500ms or 1h30m, or 0 for {zero_means}"), duration_value)
}

/// The kernel counts keepalive in whole seconds, at most 32,767 (`MAX_TCP_KEEPIDLE`, include/net/tcp.h).
pub(super) fn keepalive<'k>(zero_means: Option<&str>) -> Kind<'k, Duration> {
    let zero_is_fine = zero_means.is_some();
    let or_zero = zero_means.map(|meaning| format!(", or 0 for {meaning}")).unwrap_or_default();
    Kind::new(format!("whole seconds from 1s to 32767s{or_zero}"), move |value| match duration_value(value)? {
        Duration::ZERO if !zero_is_fine => Err("zero makes no sense here".into()),
        duration if duration.subsec_nanos() != 0 => {
            Err(format!("{} is not in whole seconds", units::show_duration(duration)))
        }
        duration if duration.as_secs() > 32_767 => Err(format!("{} is too long", units::show_duration(duration))),
        duration => Ok(duration),
    })
}

/// TCP_USER_TIMEOUT is an int of milliseconds.
pub(super) fn user_timeout<'k>() -> Kind<'k, Duration> {
    Kind::new("a duration from 1ms to 24d, or 0 for the kernel's own", |value| match duration_value(value)? {
        Duration::ZERO => Ok(Duration::ZERO),
        duration if duration < Duration::from_millis(1) => {
            Err(format!("{} is too short", units::show_duration(duration)))
        }
        duration if duration > Duration::from_secs(24 * 86_400) => {
            Err(format!("{} is too long", units::show_duration(duration)))
        }
        duration => Ok(duration),
    })
}

/// Turns as a number, or time with its unit.
pub(super) fn splice_after<'k>() -> Kind<'k, SpliceAfter> {
    const MOST: i128 = 1_000_000;
    let expected = format!("\"auto\", a number of turns from 0 to {MOST}, or a duration such as \"50ms\"");
    Kind::new(expected, |value| match value {
        DeValue::String(text) if text == "auto" => Ok(SpliceAfter::Auto),
        DeValue::String(_) => duration_value(value).map(SpliceAfter::Time),
        number => match integer(number)? {
            turns @ 0..=MOST => Ok(SpliceAfter::Turns(turns as u32)),
            turns if turns < 0 => Err(format!("{turns} is too small")),
            turns => Err(format!("{turns} is too large")),
        },
    })
}

/// Bytes.
pub(super) fn size<'k>() -> Kind<'k, u64> {
    Kind::new("a size in bytes or such as 16MiB or 16MB", |value| match value {
        DeValue::String(text) => units::parse_size(text),
        number => u64::try_from(integer(number)?).map_err(|_| format!("{} is below zero", describe_number(number))),
    })
}

/// Bytes within the range.
pub(super) fn size_within<'k>(range: RangeInclusive<u32>) -> Kind<'k, usize> {
    let any = size();
    let (low, high) = (u64::from(*range.start()), u64::from(*range.end()));
    Kind::new(format!("a size from {low} to {high} bytes"), move |value| match any.read(value)? {
        bytes if bytes < low => Err(format!("{bytes} bytes is too small")),
        bytes if bytes > high => Err(format!("{bytes} bytes is too large")),
        bytes => Ok(bytes as usize),
    })
}

fn describe_number(value: &DeValue<'_>) -> String {
    value.as_integer().map(ToString::to_string).unwrap_or_default()
}

/// Where to listen. `*:5432` and `:5432` are every address of the host: 0.0.0.0 and, where there is IPv6, [::].
pub(super) fn bind<'k>() -> Kind<'k, Vec<SocketAddr>> {
    Kind::new("ip:port such as 10.0.0.1:5432 or [2001:db8::1]:5432, or *:5432 for every address", |value| {
        let text = string(value)?;
        let (host, port) = host_and_port(text)?;
        if host.is_empty() || host == "*" {
            let v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
            let v6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
            return Ok(if host_has_ipv6() { vec![v4, v6] } else { vec![v4] });
        }
        text.parse().map(|addr| vec![addr]).map_err(|_| format!("{host:?} is not an IP address"))
    })
}

fn host_has_ipv6() -> bool {
    Path::new("/proc/net/if_inet6").exists()
}

/// One `ip:port` to listen on.
pub(super) fn socket_addr<'k>() -> Kind<'k, SocketAddr> {
    Kind::new("ip:port such as 127.0.0.1:9187", |value| {
        let text = string(value)?;
        let (host, _) = host_and_port(text)?;
        text.parse().map_err(|_| format!("{host:?} is not an IP address"))
    })
}

/// From and to, both included. Ports below 1024 belong to services.
pub(super) fn port_range<'k>() -> Kind<'k, RangeInclusive<u16>> {
    Kind::new("two ports from 1024 to 65535 such as \"12000-32767\"", |value| {
        let text = string(value)?;
        let (first, last) = text.split_once('-').ok_or_else(|| format!("{text:?} is not a range"))?;
        let (first, last) = (port(first.trim())?, port(last.trim())?);
        match (first, last) {
            (0..1024, _) => Err(format!("{first} is below 1024")),
            _ if first > last => Err(format!("{first} is above {last}")),
            _ => Ok(first..=last),
        }
    })
}

/// `ip:port` or `host:port`, as text: names are resolved when the pool is made.
pub(super) fn backend_address<'k>() -> Kind<'k, String> {
    Kind::new("ip:port or host:port such as 10.0.0.7:6432, bouncer1:6432 or [2001:db8::7]:6432", |value| {
        let text = string(value)?;
        let (host, port) = host_and_port(text)?;
        if port == 0 {
            return Err(format!("{text:?} has port 0"));
        }
        let is_ip = text.parse::<SocketAddr>().is_ok();
        let looks_like_ip = host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        if is_ip || (!looks_like_ip && is_host_name(host)) {
            return Ok(text.into());
        }
        Err(format!("{host:?} is neither an IP address nor a host name"))
    })
}

fn is_host_name(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    host.len() <= 253
        && host.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
                && !label.starts_with('-')
        })
}

/// Splits at the last colon; brackets stay with the host.
fn host_and_port(text: &str) -> Result<(&str, u16), String> {
    if text.parse::<Ipv6Addr>().is_ok() {
        return Err(format!("{text:?} is an IPv6 address without brackets and port"));
    }
    let Some((host, port)) = text.rsplit_once(':').filter(|_| !text.ends_with(']')) else {
        return Err(format!("{text:?} has no port"));
    };
    Ok((host, self::port(port)?))
}

/// Digits only: `parse` alone would take `+1`.
fn port(text: &str) -> Result<u16, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits).ok_or_else(|| format!("{text:?} is not a port"))
}

pub(super) fn ip_net<'k>() -> Kind<'k, IpNet> {
    Kind::new("an IP address or a CIDR such as 192.0.2.0/24 or 2001:db8::/32", |value| {
        string(value)?.parse().map_err(|error: super::IpNetError| error.to_string())
    })
}

/// IFNAMSIZ is 16 with the closing zero; `dev_valid_name` in net/core/dev.c has the rest.
pub(super) fn interface<'k>() -> Kind<'k, String> {
    Kind::new("the name of a network interface, such as eth0", |value| {
        let text = string(value)?;
        let valid = !text.is_empty()
            && text.len() < 16
            && text != "."
            && text != ".."
            && !text.chars().any(|c| c == '/' || c == ':' || c.is_whitespace() || c.is_control());
        if valid { Ok(text.into()) } else { Err(format!("{text:?} cannot be the name of an interface")) }
    })
}

pub(super) fn absolute_path<'k>() -> Kind<'k, PathBuf> {
    Kind::new("an absolute path", |value| match string(value)? {
        text if text.contains('\0') => Err(format!("{text:?} has a zero byte")),
        text if text.starts_with('/') => Ok(text.into()),
        text => Err(format!("{text:?} is not absolute")),
    })
}

/// sun_path holds 108 bytes with the closing zero (unix(7)).
pub(super) fn socket_path<'k>() -> Kind<'k, PathBuf> {
    let absolute = absolute_path();
    Kind::new("an absolute path of at most 107 bytes", move |value| {
        let path = absolute.read(value)?;
        match path.as_os_str().len() {
            0..=107 => Ok(path),
            length => Err(format!("this path has {length} bytes")),
        }
    })
}

/// A file that can be read now; a relative path starts at `folder`, where the configuration is.
pub(super) fn readable_file<'k>(what: &str, folder: &'k Path) -> Kind<'k, PathBuf> {
    Kind::new(format!("the path of a readable {what}"), move |value| {
        let path = match string(value)? {
            "" => return Err("\"\" is empty".into()),
            path => folder.join(path),
        };
        match std::fs::File::open(&path).and_then(|file| file.metadata()) {
            Ok(meta) if meta.is_file() => Ok(path),
            Ok(_) => Err(format!("{} is not a file", path.display())),
            Err(error) => Err(format!("cannot read {}: {}", path.display(), super::plain_io_error(&error))),
        }
    })
}

/// `http://host[:port]` or `https://…`, without a path; with the port it has unless given.
pub(super) fn endpoint<'k>(default_port: u16, example: &'k str) -> Kind<'k, String> {
    Kind::new(format!("a URL such as http://10.0.0.1:{default_port} or {example}"), move |value| {
        let text = string(value)?;
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme @ ("http" | "https"), rest)) => (scheme, rest),
            Some((scheme, _)) => return Err(format!("{scheme:?} is neither http nor https")),
            None => return Err(format!("{text:?} has no http:// or https://")),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains(['/', '?', '#', '@']) || authority.contains(char::is_whitespace) {
            return Err(format!("{text:?} is more than scheme, host and port"));
        }
        Ok(format!("{scheme}://{}", with_port(authority, default_port)?))
    })
}

/// `host[:port]` of a server; `host` is an example of its name.
pub(super) fn server<'k>(default_port: u16, host: &str) -> Kind<'k, String> {
    let expected = format!("host:port such as 10.0.0.1:{default_port} or {host}:{default_port}");
    Kind::new(expected, move |value| with_port(string(value)?, default_port))
}

/// Host and port, the latter as given or else this one.
fn with_port(text: &str, default_port: u16) -> Result<String, String> {
    let has_port = text.rfind(':') > text.rfind(']');
    let authority = if has_port { text.to_owned() } else { format!("{text}:{default_port}") };
    let (host, port) = host_and_port(&authority)?;
    let is_ip = authority.parse::<SocketAddr>().is_ok();
    if port == 0 {
        return Err(format!("{text:?} has port 0"));
    }
    if !is_ip && !is_host_name(host) {
        return Err(format!("{host:?} is neither an IP address nor a host name"));
    }
    Ok(authority)
}

/// A `tracing` filter.
pub(super) fn log_level<'k>() -> Kind<'k, String> {
    Kind::new("a level (error, warn, info, debug, trace) or directives such as info,pgsplice=debug", |value| {
        let text = string(value)?;
        match crate::log::check_level(text) {
            Ok(()) => Ok(text.into()),
            Err(_) => Err(format!("{text:?} is not a log filter")),
        }
    })
}
