//! What the documents show, works.

use std::path::Path;
use wal_agent::config;

const README: &str = include_str!("../../README.md");
const SAMPLE: &str = include_str!("../../packaging/wal-agent.yml");

fn assert_valid(text: &str) {
    let environment = |name: &str| Some(if name == "HOME" { "/home/app" } else { "value" }.to_owned());
    if let Err(errors) = config::parse(text, Path::new("/"), &environment) {
        panic!("{text}\n{errors:#?}");
    }
}

/// What the package says about its folder of configurations.
const CONF_D: &str = include_str!("../../packaging/conf.d-README");

/// The sample with everything switched on: `# key: value` is a key; `# Words and words` are not.
fn with_all_keys(sample: &str) -> String {
    let is_yaml = |text: &str| {
        let text = text.trim_start_matches([' ', '#', '-']);
        text.split_once(':').is_some_and(|(key, _)| key.chars().all(|c| c.is_ascii_lowercase() || c == '-'))
    };
    let switch_on = |line: &str| match line.split_once("# ") {
        Some((indent, rest)) if indent.trim().is_empty() && is_yaml(rest) => format!("{indent}{rest}\n"),
        _ => format!("{line}\n"),
    };
    sample.lines().map(switch_on).collect()
}

#[test]
fn every_configuration_that_the_readme_writes_is_valid() {
    let texts: Vec<_> =
        README.split("<<END\n").skip(1).filter_map(|rest| rest.split("END\n").next()).collect();
    assert!(!texts.is_empty());
    texts.into_iter().for_each(assert_valid);
}

#[test]
fn the_example_for_the_folder_is_a_configuration() {
    let example: String =
        CONF_D.lines().filter_map(|line| line.strip_prefix("    ")).map(|l| format!("{l}\n")).collect();
    assert!(example.starts_with("dbs:"), "{example}");
    assert_valid(&example);
}

#[test]
fn the_sample_is_a_configuration_as_it_is_and_with_everything_switched_on() {
    assert_valid(SAMPLE);
    // What is an example within an example, has two signs to take away.
    let all = with_all_keys(&with_all_keys(SAMPLE));
    assert!(all.contains("\nsocket:") && all.contains("\n    max-write-block:"), "{all}");
    assert_valid(&all);
}

#[test]
fn the_readme_names_every_key_that_is_accepted() {
    // An unknown key is answered with all keys there are.
    let texts = [
        "zzzzzzzz: 1",
        "dbs: [{zzzzzzzz: 1}]",
        "dbs: [{replicas: [{zzzzzzzz: 1}]}]",
        "logging: {zzzzzzzz: 1}",
    ];
    for text in texts {
        let errors = config::parse(text, Path::new("/"), &|_| None).expect_err("an unknown key");
        let listed = errors.iter().find_map(|error| error.message.split_once("its keys are "));
        let (_, keys) = listed.unwrap_or_else(|| panic!("{errors:#?}"));
        for key in keys.split(", ").filter(|key| !["type", "stderr"].contains(key)) {
            let is_there =
                README.contains(&format!("`{key}`")) || README.contains(&format!("`logging: {key}`"));
            assert!(is_there, "README.md does not name {key}");
        }
    }
}
