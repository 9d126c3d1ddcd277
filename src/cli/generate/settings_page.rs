//! Turns a commented example file of TOML into a manual page of section 5.
//!
//! | in the file | on the page |
//! |---|---|
//! | `[section]` | a heading; a comment that ends right above it is its first paragraph |
//! | keys, `key = …` or `#key = …`, and the comment that ends right above them | the keys with that text |
//! | any other comment | a paragraph |
//! | a comment's lines that are indented | as they are |

use clap_mangen::roff::{Roff, bold, roman};

use super::SOURCE;

/// A page to be.
pub(super) struct Page {
    /// Its name.
    pub name: &'static str,
    /// What its file holds, as `whatis(1)` prints it.
    pub about: &'static str,
    /// Where it lies.
    pub path: &'static str,
    /// The example.
    pub text: &'static str,
}

/// A line of the file, by what it is.
enum Line<'t> {
    Comment(&'t str),
    Heading(&'t str),
    Key(&'t str),
    Empty,
}

impl<'t> Line<'t> {
    fn of(line: &'t str) -> Self {
        let is_key = |text: &str| {
            text.split_once(" =")
                .is_some_and(|(key, _)| !key.is_empty() && key.chars().all(|c| c.is_alphanumeric() || c == '_'))
        };
        let bare = line.strip_prefix('#');
        // Keys in a column.
        let squeezed =
            |text: &str| text.split_once('=').map(|(key, _)| format!("{} =", key.trim_end())).unwrap_or_default();
        match bare {
            None if line.trim().is_empty() => Self::Empty,
            None if line.starts_with('[') => Self::Heading(line),
            None => Self::Key(line),
            Some(rest) if rest.starts_with('[') => Self::Heading(rest),
            Some(rest) if is_key(&squeezed(rest)) => Self::Key(rest),
            Some(rest) => Self::Comment(rest.strip_prefix(' ').unwrap_or(rest)),
        }
    }
}

impl Page {
    pub(super) fn render(&self) -> Vec<u8> {
        let mut page = Roff::new();
        let title = self.name.to_uppercase();
        page.control("TH", [title.as_str(), "5", "", SOURCE, "File Formats"]);
        page.control("SH", ["NAME"]).text([roman(format!("{} - {}", self.name, self.about))]);
        page.control("SH", ["SYNOPSIS"]).text([bold(self.path)]);
        page.control("SH", ["DESCRIPTION"]);
        self.body(&mut page);
        page.control("SH", ["SEE ALSO"]);
        page.text([
            bold("linewarden"),
            roman("(1), "),
            bold("linewarden"),
            roman("(8), "),
            bold("linewarden.toml"),
            roman("(5), "),
            bold("linewarden-approvals"),
            roman("(5)"),
        ]);
        page.to_roff().into_bytes()
    }

    fn body(&self, page: &mut Roff) {
        let mut comment = Vec::new();
        let mut lines = self.text.lines().map(Line::of).peekable();
        while let Some(line) = lines.next() {
            match line {
                Line::Comment(text) => comment.push(text),
                Line::Empty => {
                    if !comment.is_empty() {
                        page.control("PP", []);
                        prose(page, &comment);
                        comment.clear();
                    }
                }
                Line::Heading(text) => {
                    page.control("SH", [text]);
                    prose(page, &comment);
                    comment.clear();
                }
                Line::Key(text) => {
                    page.control("TP", []).text([bold(text)]);
                    while let Some(Line::Key(another)) = lines.peek() {
                        page.control("TQ", []).text([bold(*another)]);
                        lines.next();
                    }
                    prose(page, &comment);
                    comment.clear();
                }
            }
        }
        if !comment.is_empty() {
            page.control("PP", []);
            prose(page, &comment);
        }
    }
}

/// Indented lines stand as they are, all others flow.
fn prose(page: &mut Roff, comment: &[&str]) {
    for part in comment.chunk_by(|a, b| a.starts_with(' ') == b.starts_with(' ')) {
        let as_it_is = part.iter().any(|line| line.starts_with(' '));
        if as_it_is {
            page.control("nf", []);
        }
        for line in part {
            page.text([roman(*line)]);
        }
        if as_it_is {
            page.control("fi", []);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_keys_and_comments_are_told_apart() {
        let text = "# First.\n\n[a]\n# Of b.\n#   \"x\"  as it is\nb = \"x\"\n\n# Of c\n# and d.\n#c = 1\n#d    = 2\n\n# Of e.\n[e]\nf = 1 # here\n# Last: a = b.\n";
        let page = Page { name: "n", about: "about", path: "/p", text }.render();
        let page = String::from_utf8(page).unwrap();
        let body = page.split_once(".SH DESCRIPTION\n").unwrap().1.split_once(".SH \"SEE ALSO\"").unwrap().0;
        let expected = ".PP\nFirst.\n.SH [a]\n.TP\n\\fBb = \"x\"\\fR\nOf b.\n.nf\n  \"x\"  as it is\n.fi\n\
            .TP\n\\fBc = 1\\fR\n.TQ\n\\fBd    = 2\\fR\nOf c\nand d.\n.SH [e]\nOf e.\n.TP\n\\fBf = 1 # here\\fR\n.PP\nLast: a = b.\n";
        assert_eq!(body, expected);
    }
}
