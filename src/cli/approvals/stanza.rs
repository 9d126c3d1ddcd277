//! Turns what is known of a line into an approval as TOML: what is not known is left for a person to write, and refused
//! until then.

use std::collections::BTreeSet;
use std::fmt::{Display, Write};

use toml::Value;

use crate::config::Approvals;

/// An approval that is not in force.
pub(super) struct Stanza {
    pub id: String,
    pub text: String,
    /// Its line `[[approval]]`, from 1: what is missing is noted there.
    header: usize,
    /// Lines that a person is to fill in.
    todo: BTreeSet<usize>,
    /// Something else is asked for.
    asks: bool,
}

impl Stanza {
    pub(super) fn new(id: &str, about: &[String]) -> Self {
        let mut stanza = Self { id: id.to_owned(), text: String::new(), header: 0, todo: BTreeSet::new(), asks: false };
        about.iter().for_each(|line| stanza.comment(line));
        stanza.text.push_str("[[approval]]\n");
        stanza.header = stanza.lines();
        stanza.set("id", &text(id));
        stanza
    }

    fn lines(&self) -> usize {
        self.text.lines().count()
    }

    /// A line for people.
    pub(super) fn comment(&mut self, text: &str) {
        let _ = writeln!(self.text, "# {}", one_line(text));
    }

    pub(super) fn set(&mut self, key: &str, value: &dyn Display) {
        let _ = writeln!(self.text, "{key} = {value}");
    }

    /// A value, and what to think of.
    pub(super) fn set_noted(&mut self, key: &str, value: &dyn Display, note: &str) {
        let _ = writeln!(self.text, "{key} = {value}  # {}", one_line(note));
    }

    /// A value that a person must write: what stands there is refused.
    pub(super) fn todo(&mut self, key: &str, what: &str) {
        let _ = writeln!(self.text, "{key} = \"\"  # TODO: {}", one_line(what));
        self.todo.insert(self.lines());
    }

    /// A line to take the # off, without which the approval is refused.
    pub(super) fn ask(&mut self, line: &str, what: &str) {
        let _ = writeln!(self.text, "#{line}  # TODO: {}", one_line(what));
        self.asks = true;
    }

    /// A line that may be used.
    pub(super) fn offer(&mut self, line: &str) {
        let _ = writeln!(self.text, "#{}", one_line(line));
    }

    /// Whether something is left to write.
    pub(super) fn is_open(&self) -> bool {
        self.asks || !self.todo.is_empty()
    }

    /// What is wrong with what stands there: the key and what to write instead.
    pub(super) fn problems(&self) -> Vec<(String, String)> {
        let problems = Approvals::problems_of(&self.text).into_iter();
        let wrong = problems.filter(|(line, _)| *line != self.header && !self.todo.contains(line));
        let named = wrong.map(|(_, text)| {
            let key = text.split([' ', ':']).next().and_then(|key| key.rsplit('.').next()).unwrap_or_default();
            (key.to_owned(), text)
        });
        named.collect()
    }
}

/// A text as TOML, on one line.
pub(super) fn text(text: &str) -> Value {
    one_line(text).into()
}

/// Text that others wrote stays on its line.
fn one_line(text: &str) -> String {
    let plain: String = text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
    plain.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A name for an id or a file: letters, digits, dots and hyphens.
pub(super) fn name(text: &str) -> String {
    let letter = |letter: char| {
        if letter.is_ascii_alphanumeric() || matches!(letter, '.' | '_') { letter.to_ascii_lowercase() } else { '-' }
    };
    let plain: String = text.chars().map(letter).collect();
    let words: Vec<_> = plain.split('-').filter(|word| !word.trim_matches('.').is_empty()).collect();
    words.join("-").trim_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_becomes_no_toml() {
        let mut stanza = Stanza::new("a\"\n[[approval]]", &["one\n[[approval]]\nid = \"x\"".to_owned()]);
        stanza.comment("two\r\nkind = \"vpn\"");
        stanza.todo("owner", "who\n\tanswers");
        let parsed: toml::Table = stanza.text.parse().unwrap();
        let approvals = parsed["approval"].as_array().unwrap();
        assert_eq!((approvals.len(), approvals[0].as_table().unwrap().len()), (1, 2), "{}", stanza.text);
        assert_eq!(approvals[0]["id"].as_str(), Some("a\" [[approval]]"));
    }

    #[test]
    fn names() {
        for (text, expected) in [
            ("DE/PT 0815", "de-pt-0815"),
            ("../../etc/passwd", "etc-passwd"),
            ("198.51.100.2", "198.51.100.2"),
            ("2001:db8::1", "2001-db8-1"),
            ("é", ""),
            ("..", ""),
        ] {
            assert_eq!(name(text), expected, "{text}");
        }
    }
}
