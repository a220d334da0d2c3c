//! A mapping of the configuration: which keys it may have, and its values as the types they must be.

use super::tree::{Node, Value};
use super::{ConfigError, Place, duration};
use std::str::FromStr;
use std::time::Duration;

/// The keys of a kind of mapping.
pub struct Keys {
    /// Those that mean something.
    pub known: &'static [&'static str],
    /// Those of Litestream that we do not have, each with what to do instead.
    pub unsupported: &'static [(&'static str, &'static str)],
}

/// All that is wrong so far, and all that is to be said once.
#[derive(Default)]
pub struct Findings {
    /// What is wrong.
    pub errors: Vec<ConfigError>,
    /// What has no effect; each sentence once.
    pub notices: Vec<String>,
}

/// A mapping whose keys have been checked.
pub struct Section<'a> {
    /// Where it begins.
    pub at: Place,
    entries: Vec<(&'a str, &'a Node)>,
}

/// A text and its place.
#[derive(Clone, Copy)]
pub struct Text<'a> {
    /// Where it begins.
    pub at: Place,
    /// Never empty.
    pub text: &'a str,
    may_be_shown: bool,
}

impl Findings {
    /// Takes an error in.
    pub fn error(&mut self, at: Place, message: impl Into<String>) {
        self.errors.push(ConfigError { file: None, at: Some(at), message: message.into() });
    }

    /// Takes a notice in, unless it is there.
    pub fn notice(&mut self, message: &str) {
        if !self.notices.iter().any(|notice| notice == message) {
            self.notices.push(message.to_owned());
        }
    }
}

impl<'a> Section<'a> {
    /// Opens the mapping `node`; `name` is what errors call it. Every key that is unknown, not supported or there
    /// twice is an error.
    pub fn open(node: &'a Node, name: &str, keys: &Keys, findings: &mut Findings) -> Option<Self> {
        let Value::Map(entries) = &node.value else {
            findings.error(node.at, format!("{name} must be keys with values, like `path: ...`"));
            return None;
        };
        let mut section = Section { at: node.at, entries: Vec::new() };
        for entry in entries {
            let key = entry.key.as_str();
            if section.entries.iter().any(|(earlier, _)| *earlier == key) {
                findings.error(entry.at, format!("{key} is given twice"));
            } else if keys.known.contains(&key) {
                section.entries.push((key, &entry.node));
            } else if let Some((_, instead)) = keys.unsupported.iter().find(|(other, _)| *other == key) {
                findings.error(entry.at, format!("{key} is not supported by wal-agent; {instead}"));
            } else {
                let shown = if entry.may_be_shown { key } else { "a key from the environment" };
                findings.error(entry.at, unknown_key(shown, name, keys));
            }
        }
        Some(section)
    }

    /// The value of a key that is given and not null.
    pub fn get(&self, key: &str) -> Option<&'a Node> {
        let (_, node) = self.entries.iter().find(|(name, _)| *name == key)?;
        (!matches!(node.value, Value::Null)).then_some(node)
    }

    /// Where the value of a key is; where the mapping is, if the key is not there.
    pub fn at_key(&self, key: &str) -> Place {
        self.get(key).map_or(self.at, |node| node.at)
    }

    /// A text; an empty one counts as not given, as with Litestream.
    pub fn text(&self, key: &str, findings: &mut Findings) -> Option<Text<'a>> {
        self.get(key)?.as_text(key, findings)
    }

    /// One or more texts: a text alone, or a list of them.
    pub fn texts(&self, key: &str, findings: &mut Findings) -> Vec<Text<'a>> {
        let Some(node) = self.get(key) else { return Vec::new() };
        match &node.value {
            Value::List(nodes) => nodes.iter().filter_map(|node| node.as_text(key, findings)).collect(),
            _ => node.as_text(key, findings).into_iter().collect(),
        }
    }

    /// A duration.
    pub fn duration(&self, key: &str, findings: &mut Findings) -> Option<Duration> {
        let text = self.text(key, findings)?;
        let parsed = duration::parse(text.text);
        parsed.map_err(|wrong| findings.error(text.at, format!("{key}: {} {wrong}", text.shown()))).ok()
    }

    /// A count of something.
    pub fn count(&self, key: &str, findings: &mut Findings) -> Option<u32> {
        self.number(key, "a whole number of 0 or more", findings)
    }

    /// A number of bytes.
    pub fn bytes(&self, key: &str, findings: &mut Findings) -> Option<u64> {
        self.number(key, "a whole number of bytes", findings)
    }

    fn number<N: FromStr>(&self, key: &str, what: &str, findings: &mut Findings) -> Option<N> {
        let text = self.text(key, findings)?;
        let number = text.text.parse().ok();
        if number.is_none() {
            findings.error(text.at, format!("{key}: {} is not {what}", text.shown()));
        }
        number
    }

    /// One of several words, in any case.
    pub fn choice<T: Copy>(&self, key: &str, words: &[(&str, T)], findings: &mut Findings) -> Option<T> {
        let text = self.text(key, findings)?;
        let chosen = words.iter().find(|(word, _)| word.eq_ignore_ascii_case(text.text));
        if chosen.is_none() {
            let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            findings.error(text.at, format!("{key}: {} is none of {}", text.shown(), words.join(", ")));
        }
        chosen.map(|(_, value)| *value)
    }

    /// The mappings of a list; `name` is what errors call each.
    pub fn list(&self, key: &str, findings: &mut Findings) -> &'a [Node] {
        match self.get(key) {
            None => &[],
            Some(Node { value: Value::List(nodes), .. }) => nodes,
            Some(node) => {
                findings.error(node.at, format!("{key} must be a list: each entry begins with `- `"));
                &[]
            }
        }
    }
}

impl Text<'_> {
    /// The text in quotes, unless it comes from the environment and might be a secret.
    pub fn shown(&self) -> String {
        if self.may_be_shown { format!("{:?}", self.text) } else { "the value from the environment".into() }
    }
}

impl Node {
    fn as_text(&self, key: &str, findings: &mut Findings) -> Option<Text<'_>> {
        match &self.value {
            Value::Text(text) if !text.is_empty() => {
                Some(Text { at: self.at, text, may_be_shown: self.may_be_shown })
            }
            Value::Text(_) | Value::Null => None,
            Value::List(_) | Value::Map(_) => {
                findings.error(self.at, format!("{key} must be a single value"));
                None
            }
        }
    }
}

fn unknown_key(key: &str, section: &str, keys: &Keys) -> String {
    let nearest = keys.known.iter().map(|known| (distance(key, known), known)).min();
    match nearest {
        Some((distance, known)) if distance <= NEAR.min(known.len() / 2) => {
            format!("{key} is no key of {section}; perhaps {known} was meant")
        }
        _ => format!("{key} is no key of {section}; its keys are {}", keys.known.join(", ")),
    }
}

/// How many letters may differ for a key to be taken for a mistyped one.
const NEAR: usize = 3;

/// The edit distance: letters to insert, remove or replace. Case and `_` for `-` do not count.
fn distance(a: &str, b: &str) -> usize {
    let simple = |c: char| if c == '_' { '-' } else { c.to_ascii_lowercase() };
    let b: Vec<char> = b.chars().map(simple).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().map(simple).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
