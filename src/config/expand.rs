//! `$NAME` and `${NAME}` in the raw text, before it is YAML; and the way back, from a byte of what came out to its
//! place in the file.

use super::{ConfigError, Place};
use std::ops::Range;

/// The text with all variables replaced.
pub struct Expanded<'a> {
    /// What YAML is to be read from.
    pub text: String,
    file: &'a str,
    pieces: Vec<Piece>,
}

/// A variable: where it stands in the file, and where its value stands in the expanded text.
struct Piece {
    file: Range<usize>,
    expanded: Range<usize>,
}

/// Replaces the variables outside comments. One that is not set stays, and is an error.
/// A `$` that begins neither `$NAME` nor `${NAME}` is a dollar.
pub fn expand<'a>(
    file: &'a str,
    environment: &dyn Fn(&str) -> Option<String>,
) -> (Expanded<'a>, Vec<ConfigError>) {
    let mut expanded = Expanded { text: String::with_capacity(file.len()), file, pieces: Vec::new() };
    let mut errors = Vec::new();
    let mut copied = 0;
    for dollar in dollars(file) {
        let Some((name, length)) = variable(&file[dollar..]) else { continue };
        let Some(value) = environment(name) else {
            let message = format!("the environment variable {name} is not set");
            errors.push(ConfigError { file: None, at: Some(Place::of(file, dollar)), message });
            continue;
        };
        expanded.text.push_str(&file[copied..dollar]);
        copied = dollar + length;
        let start = expanded.text.len();
        expanded.text.push_str(&value);
        expanded.pieces.push(Piece { file: dollar..copied, expanded: start..expanded.text.len() });
    }
    expanded.text.push_str(&file[copied..]);
    (expanded, errors)
}

impl Expanded<'_> {
    /// The place in the file of a byte of the expanded text; inside a value, that of its variable.
    pub fn place(&self, byte: usize) -> Place {
        let before = self.pieces.partition_point(|piece| piece.expanded.start <= byte);
        let byte = match self.pieces[..before].last() {
            None => byte,
            Some(piece) if byte < piece.expanded.end => piece.file.start,
            Some(piece) => piece.file.end + (byte - piece.expanded.end),
        };
        Place::of(self.file, byte)
    }

    /// Whether a part of the expanded text holds something from the environment, which might be a secret.
    pub fn is_from_environment(&self, part: Range<usize>) -> bool {
        self.pieces.iter().any(|piece| piece.expanded.start < part.end && part.start < piece.expanded.end)
    }

    /// Whether the line of the expanded text around `byte` holds something from the environment.
    pub fn is_line_from_environment(&self, byte: usize) -> bool {
        let (before, behind) = self.text.split_at(self.text.floor_char_boundary(byte));
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let end = behind.find('\n').map_or(self.text.len(), |length| byte + length);
        self.is_from_environment(start..end)
    }
}

/// The name of the variable that `text` begins with, and how many bytes to replace.
fn variable(text: &str) -> Option<(&str, usize)> {
    let rest = text.strip_prefix('$')?;
    let braced = rest.strip_prefix('{');
    let body = braced.unwrap_or(rest);
    let length = body.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(body.len());
    let (name, behind) = body.split_at(length);
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    match braced {
        None => Some((name, 1 + length)),
        Some(_) if behind.starts_with('}') => Some((name, 3 + length)),
        Some(_) => None,
    }
}

/// The bytes of all dollars that are not in a comment.
///
/// Knows as much of YAML as that takes: a quote opens where a value may begin, and a comment begins with a `#` after
/// a blank, outside quotes.
fn dollars(text: &str) -> Vec<usize> {
    let mut found = Vec::new();
    let mut quote = None;
    let mut closed_at = None;
    let mut in_comment = false;
    let mut before = '\n';
    let mut last_visible = '\n';
    for (at, c) in text.char_indices() {
        match (c, quote) {
            ('\n', _) => in_comment = false,
            _ if in_comment => {}
            ('$', _) => found.push(at),
            (_, Some(open)) if c == open && !(open == '"' && before == '\\') => {
                quote = None;
                closed_at = Some(at);
            }
            (_, Some(_)) => {}
            ('#', None) if before.is_whitespace() => in_comment = true,
            ('"' | '\'', None) if "\n:-[{,?".contains(last_visible) => quote = Some(c),
            // Two single quotes are one that closes nothing.
            ('\'', None) if at.checked_sub(1) == closed_at && before == c => quote = Some(c),
            _ => {}
        }
        // Two backslashes are one that escapes nothing.
        before = if c == '\\' && before == '\\' { ' ' } else { c };
        if c == '\n' || !(c.is_whitespace() || in_comment) {
            last_visible = c;
        }
    }
    found
}
