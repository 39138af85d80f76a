//! From text to [`Config`]: one file for each kind of named section, the unnamed ones here.

mod agent;
mod cluster;
mod listener;
mod pool;
mod store;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::DeTable;

pub(super) use agent::agent;

use super::model::{Admin, Config, Guard, Log, LogFormat, Proxy, Splice, SpliceMode, TlsFiles, XdpMode};
use super::read::{Reader, Section};
use super::report::{ConfigErrors, Report, Warning};
use super::{plain_io_error, validate, values};

type Outcome = Result<(Config, Vec<Warning>), ConfigErrors>;

/// The outcome, and every key the parser asked for, with NAME for the names people give.
pub(super) fn parse(text: &str, file: &str) -> (Outcome, BTreeSet<String>) {
    let mut report = Report::new(file, text);
    let Some(table) = table(&mut report, text) else {
        return (report.finish().map(|warnings| (Config::default(), warnings)), BTreeSet::new());
    };
    let folder = Path::new(file).parent().unwrap_or(Path::new("")).to_owned();
    let mut reader = Reader::new(report);
    let mut config = Config::default();
    let mut top = reader.top(table.get_ref());
    proxy(top.section("proxy"), &mut config.proxy);
    log(top.section("log"), &mut config.log);
    admin(top.section("admin"), &mut config.admin);
    guard(top.section("guard"), &mut config.guard);
    splice(top.section("splice"), &mut config.splice);
    top.named_sections("cluster", |name, section| {
        config.clusters.insert(name.into(), cluster::cluster(section, &folder));
    });
    top.named_sections("pool", |name, section| {
        config.pools.insert(name.into(), pool::pool(section, &folder));
    });
    top.named_sections("listener", |name, section| {
        config.listeners.insert(name.into(), listener::listener(section));
    });
    top.end();
    reader.blame_unknown();
    let Reader { mut report, known, .. } = reader;
    validate::validate(&config, &mut report);
    config.origin = report.origin.clone();
    (report.finish().map(|warnings| (config, warnings)), known)
}

/// The text as TOML; `None` where it is not, which is then blamed.
fn table<'t>(report: &mut Report, text: &'t str) -> Option<Spanned<DeTable<'t>>> {
    let (table, syntax_errors) = DeTable::parse_recoverable(text);
    // What stands behind broken TOML is a guess: its errors come once the text can be read.
    let is_good = syntax_errors.is_empty();
    for error in syntax_errors {
        let line = report.line_at(error.span().map_or(0, |span| span.start));
        let (problem, expected) = syntax_problem(error.message());
        report.error_at(line, "", problem, expected);
    }
    is_good.then_some(table)
}

/// The TOML parser's message in two parts, with words of our own where it has none a person could use.
fn syntax_problem(message: &str) -> (&str, &str) {
    match message.split_once(", expected ") {
        Some((problem, "nothing" | "literal string")) => (problem, "text in quotes, a number, true or false"),
        Some((problem, expected)) => (problem, expected),
        None if message == "duplicate key" => (message, "each key once in its section"),
        None => (message, "TOML"),
    }
}

fn proxy(mut section: Section<'_, '_>, proxy: &mut Proxy) {
    section.set("threads", values::count_usize(0..=1024), &mut proxy.threads);
    section.set("drain_timeout", values::duration_or_zero("cutting at once"), &mut proxy.drain_timeout);
    section.end();
}

fn log(mut section: Section<'_, '_>, log: &mut Log) {
    const FORMATS: &[(&str, LogFormat)] = &[("text", LogFormat::Text), ("json", LogFormat::Json)];
    section.set("format", values::one_of(FORMATS), &mut log.format);
    section.set("level", values::log_level(), &mut log.level);
    section.set("access", values::flag(), &mut log.access);
    section.end();
}

fn admin(mut section: Section<'_, '_>, admin: &mut Admin) {
    section.set("socket", values::socket_path(), &mut admin.socket);
    admin.http = section.get("http", values::socket_addr());
    section.end();
}

fn guard(mut section: Section<'_, '_>, guard: &mut Guard) {
    const MODES: &[(&str, XdpMode)] =
        &[("auto", XdpMode::Auto), ("native", XdpMode::Native), ("generic", XdpMode::Generic)];
    guard.interfaces = section.list("interfaces", values::interface()).unwrap_or_default();
    section.set("mode", values::one_of(MODES), &mut guard.mode);
    section.set("pin_path", values::absolute_path(), &mut guard.pin_path);
    guard.deny = section.list("deny", values::ip_net()).unwrap_or_default();
    section.end();
}

fn splice(mut section: Section<'_, '_>, splice: &mut Splice) {
    const MODES: &[(&str, SpliceMode)] =
        &[("auto", SpliceMode::Auto), ("xdp", SpliceMode::Xdp), ("tc", SpliceMode::Tc)];
    splice.interfaces = section.list("interfaces", values::interface()).unwrap_or_default();
    section.set("mode", values::one_of(MODES), &mut splice.mode);
    section.set("max_sessions", values::count(1..=1_000_000), &mut splice.max_sessions);
    section.set("source_ports", values::port_range(), &mut splice.source_ports);
    section.end();
}

/// `[….tls]`.
fn tls(mut section: Section<'_, '_>, folder: &Path) -> TlsFiles {
    let tls = TlsFiles {
        ca: section.get("ca", values::readable_file("PEM file", folder)),
        cert: section.get("cert", values::readable_file("PEM file", folder)),
        key: section.get("key", values::readable_file("PEM file", folder)),
        server_name: section.get("server_name", values::text("the name in the server's certificate")),
    };
    match (section.has("cert"), section.has("key")) {
        (true, false) => section.error("cert", "there is no key for it", "cert and key, both or neither"),
        (false, true) => section.error("key", "there is no cert for it", "cert and key, both or neither"),
        _ => {}
    }
    section.end();
    tls
}

/// `password` or `password_file`, whose first line is the password.
fn password(section: &mut Section<'_, '_>, folder: &Path) -> Option<String> {
    secret(section, folder, ["password", "password_file"])
}

/// A key for a secret, and the key for a file with it.
fn secret(section: &mut Section<'_, '_>, folder: &Path, [key, file_key]: [&'static str; 2]) -> Option<String> {
    let inline = section.get(key, values::secret(key));
    if section.has(key) && section.has(file_key) {
        section.error(file_key, format!("there is a {key} as well"), format!("either {key} or {file_key}"));
    }
    let what = format!("file with the {key} in its first line");
    match section.get(file_key, values::readable_file(&what, folder)) {
        Some(path) => read_secret(section, [key, file_key], &path),
        None => inline,
    }
}

fn read_secret(section: &mut Section<'_, '_>, [key, file_key]: [&'static str; 2], path: &PathBuf) -> Option<String> {
    use std::os::unix::fs::PermissionsExt;

    let expected = format!("a file with the {key} in its first line");
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            let problem = format!("cannot read {}: {}", path.display(), plain_io_error(&error));
            section.error(file_key, problem, expected);
            return None;
        }
    };
    if std::fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o004 != 0) {
        section.warn(file_key, format!("every user of this host can read {}; chmod o-r it", path.display()));
    }
    match text.lines().next().unwrap_or_default() {
        "" => section.error(file_key, format!("the first line of {} is empty", path.display()), expected),
        line if line.contains('\0') => {
            section.error(file_key, format!("the first line of {} has a zero byte", path.display()), expected)
        }
        line => return Some(line.into()),
    }
    None
}
