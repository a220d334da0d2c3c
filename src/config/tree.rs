//! YAML as a tree whose every node knows its place in the file, and whether its text may be shown.

use super::expand::Expanded;
use super::{ConfigError, Place};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{
    DuplicateKeyPolicy, Location, MessageFormatter, NonFiniteFloatPolicy, Spanned, UserMessageFormatter,
};
use std::fmt;

/// A value and its place.
pub struct Node {
    /// Where it begins in the file.
    pub at: Place,
    /// Whether no part of it comes from the environment.
    pub may_be_shown: bool,
    /// What it is.
    pub value: Value,
}

/// What a node is.
pub enum Value {
    /// Nothing was written, or `null` or `~`.
    Null,
    /// Any scalar, as it was written: a number, too, may be meant as a name or a password.
    Text(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping with its keys in order; the same key may come twice.
    Map(Vec<Entry>),
}

/// A key and its value.
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where the key begins.
    pub at: Place,
    /// Whether no part of the key comes from the environment.
    pub may_be_shown: bool,
    /// What belongs to it.
    pub node: Node,
}

/// Reads the expanded text.
///
/// # Errors
/// Where it is not YAML; without the text itself, in which there may be secrets.
pub fn read(expanded: &Expanded<'_>) -> Result<Node, ConfigError> {
    let options = serde_saphyr::options! {
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
        with_snippet: false,
    };
    match serde_saphyr::from_str_with_options::<Spanned<Raw>>(&expanded.text, options) {
        Ok(raw) => Ok(node(raw, expanded)),
        Err(error) => Err(syntax_error(&error, expanded)),
    }
}

/// What serde sees; a scalar that YAML takes for a number or a boolean is `Typed`, and its text is in the file.
enum Raw {
    Null,
    Typed,
    Text(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any YAML value")
    }
    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }
    fn visit_bool<E>(self, _: bool) -> Result<Raw, E> {
        Ok(Raw::Typed)
    }
    fn visit_i64<E>(self, _: i64) -> Result<Raw, E> {
        Ok(Raw::Typed)
    }
    fn visit_u64<E>(self, _: u64) -> Result<Raw, E> {
        Ok(Raw::Typed)
    }
    fn visit_i128<E>(self, _: i128) -> Result<Raw, E> {
        Ok(Raw::Typed)
    }
    fn visit_u128<E>(self, _: u128) -> Result<Raw, E> {
        Ok(Raw::Typed)
    }
    fn visit_f64<E>(self, _: f64) -> Result<Raw, E> {
        Ok(Raw::Typed)
    }
    fn visit_str<E>(self, text: &str) -> Result<Raw, E> {
        Ok(Raw::Text(text.to_owned()))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Raw, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = sequence.next_element()? {
            nodes.push(node);
        }
        Ok(Raw::List(nodes))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Raw::Map(entries))
    }
}

fn node(raw: Spanned<Raw>, expanded: &Expanded<'_>) -> Node {
    let source = bytes(raw.defined);
    let value = match raw.value {
        Raw::Null => Value::Null,
        Raw::Typed => Value::Text(expanded.text.get(source.clone()).unwrap_or_default().trim().to_owned()),
        Raw::Text(text) => Value::Text(text),
        Raw::List(nodes) => Value::List(nodes.into_iter().map(|raw| node(raw, expanded)).collect()),
        Raw::Map(entries) => {
            Value::Map(entries.into_iter().map(|(key, raw)| entry(key, raw, expanded)).collect())
        }
    };
    let may_be_shown = !expanded.is_from_environment(source);
    Node { at: place(raw.referenced, expanded), may_be_shown, value }
}

fn entry(key: Spanned<String>, raw: Spanned<Raw>, expanded: &Expanded<'_>) -> Entry {
    let may_be_shown = !expanded.is_from_environment(bytes(key.defined));
    Entry { at: place(key.referenced, expanded), key: key.value, may_be_shown, node: node(raw, expanded) }
}

fn syntax_error(error: &serde_saphyr::Error, expanded: &Expanded<'_>) -> ConfigError {
    let reason = UserMessageFormatter.format_message(error);
    let start = error.location().map(|location| bytes(location).start);
    let message = match start {
        Some(byte) if expanded.is_line_from_environment(byte) => {
            "this is not YAML once its variables are replaced; quotes around them may help".into()
        }
        _ => format!("this is not YAML: {reason}"),
    };
    ConfigError { file: None, at: start.map(|byte| expanded.place(byte)), message }
}

fn place(location: Location, expanded: &Expanded<'_>) -> Place {
    expanded.place(bytes(location).start)
}

/// The bytes of a location, which is known for texts that are whole in memory.
fn bytes(location: Location) -> std::ops::Range<usize> {
    let span = location.span();
    let start = span.byte_offset().unwrap_or(0) as usize;
    start..start + span.byte_len().unwrap_or(0) as usize
}
