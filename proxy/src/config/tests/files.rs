//! The files shipped and the page that documents the keys.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::schema_keys;
use crate::config::*;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn the_shipped_files_are_good() {
    let mut files: Vec<PathBuf> = std::fs::read_dir(repository().join("deploy/pgsplice"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    files.sort();
    assert!(files.len() >= 4);
    for file in files {
        let (_, warnings) = Config::load(&file).unwrap_or_else(|errors| panic!("{errors}"));
        assert!(warnings.is_empty(), "{warnings:?}");
    }
}

/// The rows of the tables in docs/config.md: full key and columns. A heading names the sections of the tables below it.
fn documented_rows() -> Vec<(String, Vec<String>)> {
    let page = std::fs::read_to_string(repository().join("docs/config.md")).unwrap();
    let mut rows = Vec::new();
    let mut sections: Vec<String> = Vec::new();
    for line in page.lines() {
        if line.starts_with('#') {
            let names = line.split('`').skip(1).step_by(2);
            sections = names.map(|name| name.trim_matches(['[', ']']).to_owned()).collect();
        } else if line.starts_with("| `") {
            let columns: Vec<String> = line.split('|').skip(1).map(|column| column.trim().to_owned()).collect();
            let key = columns[0].trim_matches('`');
            rows.extend(sections.iter().map(|section| (format!("{section}.{key}"), columns.clone())));
        }
    }
    rows
}

#[test]
fn every_key_is_documented_and_every_documented_key_is_known() {
    let mut documented: Vec<String> = documented_rows().into_iter().map(|(key, _)| key).collect();
    documented.sort();
    let known: Vec<String> = schema_keys().into_iter().collect();
    assert_eq!(documented, known);
}

/// The third column of a key's row is its default, as `settings` shows it.
#[test]
fn the_documented_defaults_are_those_in_force() {
    let sections = [
        ("proxy", settings::proxy(&Proxy::default())),
        ("log", settings::log(&Log::default())),
        ("admin", settings::admin(&Admin::default())),
        ("guard", settings::guard(&Guard::default())),
        ("splice", settings::splice(&Splice::default())),
        ("cluster.NAME", settings::cluster(&Cluster::default())),
        ("pool.NAME", settings::pool(&Pool::default())),
        ("listener.NAME", settings::listener(&Listener::default())),
    ];
    let in_force: BTreeMap<String, String> = sections
        .iter()
        .flat_map(|(section, settings)| settings.iter().map(move |(key, value)| (format!("{section}.{key}"), value)))
        .map(|(key, value)| (key, value.to_string()))
        .collect();
    let mut compared = 0;
    for (key, columns) in documented_rows() {
        let Some(value) = in_force.get(&key) else { continue };
        // What has no fixed default is said in words.
        let documented = columns[2].as_str();
        let in_words =
            ["required", "the system's", "host of the URL"].iter().any(|words| documented.starts_with(words));
        if in_words {
            continue;
        }
        let same_time = parse_duration(documented).is_ok_and(|documented| parse_duration(value) == Ok(documented));
        assert!(documented == value || same_time, "{key}: documented {documented}, in force {value}");
        compared += 1;
    }
    assert!(compared > 40, "{compared}");
}

#[test]
fn the_examples_of_the_page_are_good() {
    let page = std::fs::read_to_string(repository().join("docs/config.md")).unwrap();
    let examples: Vec<&str> = page.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(!examples.is_empty());
    for example in examples {
        Config::from_str_named(example, "docs/config.md").unwrap_or_else(|errors| panic!("{errors}\n{example}"));
    }
}
