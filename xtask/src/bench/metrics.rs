//! What a running pgsplice counts, read from its admin socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

const TIMEOUT: Duration = Duration::from_secs(10);

/// One scrape.
#[derive(Debug)]
pub struct Metrics(Vec<Point>);

#[derive(Debug, PartialEq)]
struct Point {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

pub fn scrape(socket: &Path) -> Result<Metrics> {
    let text = get(socket).with_context(|| format!("pgsplice's metrics at {}", socket.display()))?;
    let (head, body) = text.split_once("\r\n\r\n").context("no HTTP answer")?;
    ensure!(head.starts_with("HTTP/1.0 200"), "{}", head.lines().next().unwrap_or_default());
    Ok(parse(body))
}

fn get(socket: &Path) -> Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    // HTTP/1.0: neither chunks nor a connection to keep.
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn parse(text: &str) -> Metrics {
    Metrics(text.lines().filter(|line| !line.starts_with('#')).filter_map(point).collect())
}

/// `name{label="value",…} 1.0` or `name 1.0`. The values that are asked for hold no escapes.
fn point(line: &str) -> Option<Point> {
    let (head, value) = line.rsplit_once(' ')?;
    let (name, labels) = head.split_once('{').unwrap_or((head, ""));
    let labels = labels
        .trim_end_matches('}')
        .split(',')
        .filter_map(|label| label.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned()))
        .collect();
    Some(Point { name: name.to_owned(), labels, value: value.parse().ok()? })
}

impl Metrics {
    /// All points of this name that have these labels, added up; `None` if there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let has = |point: &Point, (label, value): &(&str, &str)| {
            point.labels.iter().any(|(name, is)| name == label && is == value)
        };
        let wanted = |point: &&Point| point.name == name && labels.iter().all(|label| has(point, label));
        self.0.iter().filter(wanted).map(|point| point.value).reduce(|a, b| a + b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_added_up_by_name_and_labels() {
        let metrics = parse(
            "# TYPE a gauge\na{listener=\"x\",road=\"tc\"} 3\na{listener=\"y\",road=\"tc\"} 4\n\
             a{listener=\"x\",road=\"relay\"} 1\nb_total 2.5\n# EOF\n",
        );
        assert_eq!(metrics.sum("a", &[("road", "tc")]), Some(7.0));
        assert_eq!(metrics.sum("a", &[("road", "tc"), ("listener", "x")]), Some(3.0));
        assert_eq!(metrics.sum("b_total", &[]), Some(2.5));
        assert_eq!(metrics.sum("a", &[("road", "xdp")]), None);
    }
}
