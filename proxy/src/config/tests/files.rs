//! The files shipped and the page that documents the keys.

use std::path::{Path, PathBuf};

use super::schema_keys;
use crate::config::Config;

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

/// In docs/config.md a heading names a section and the tables below it have a row for each key.
#[test]
fn every_key_is_documented_and_every_documented_key_is_known() {
    let page = std::fs::read_to_string(repository().join("docs/config.md")).unwrap();
    let mut documented = Vec::new();
    let mut sections: Vec<String> = Vec::new();
    for line in page.lines() {
        if line.starts_with('#') {
            let names = line.split('`').skip(1).step_by(2);
            sections = names.map(|name| name.trim_matches(['[', ']']).to_owned()).collect();
        } else if let Some(row) = line.strip_prefix("| `") {
            let key = row.split('`').next().unwrap();
            documented.extend(sections.iter().map(|section| format!("{section}.{key}")));
        }
    }
    documented.sort();
    let known: Vec<String> = schema_keys().into_iter().collect();
    assert_eq!(documented, known);
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
