//! `generate`, for whoever packages linewarden: manual pages and completions say what the program does.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::Path;

use crate::common::command::{assert_says, folder, run};

/// Name and text of each file that is made.
fn made(what: &str) -> BTreeMap<String, String> {
    let folder = folder(&[]);
    let to = folder.path().join("new/folder");
    let said = run([OsString::from("generate"), what.into(), to.clone().into()]).expect(0).out;
    let files: BTreeMap<_, _> = fs::read_dir(&to)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap()))
        .collect();
    assert_eq!(said.lines().count(), files.len(), "each is named: {said}");
    files
}

/// What a page says, without the marks of its typesetting.
fn plain(page: &str) -> String {
    page.replace("\\-", "-")
        .replace("\\fB", "")
        .replace("\\fR", "")
        .replace("\\fI", "")
        .replace("\\*(Aq", "'")
        .replace("\\&", "")
}

#[test]
fn each_command_has_a_page_with_its_options() {
    let pages = made("man");
    let names: Vec<_> = pages.keys().map(String::as_str).collect();
    let listed = |words: &[String]| -> Vec<Vec<String>> {
        let help = run(words.iter().map(String::as_str).chain(["--help"])).expect(0).out;
        let listed = help.lines().skip_while(|line| !line.starts_with("Commands:")).skip(1);
        let listed = listed.take_while(|line| line.starts_with("  ")).filter(|line| !line.starts_with("    "));
        let name = |line: &str| line.split_whitespace().next().unwrap().to_owned();
        listed.map(name).filter(|name| name != "help").map(|name| [words, &[name]].concat()).collect()
    };
    let mut commands = listed(&[]);
    commands.extend(commands.iter().flat_map(|words| listed(words)).collect::<Vec<_>>());
    let has = |words: &str| commands.iter().any(|command| command.join(" ") == words);
    assert!(has("run") && has("approvals lint") && has("ctl status") && !has("generate"), "{commands:?}");
    for command in &commands {
        let page = format!("linewarden-{}.1", command.join("-"));
        assert!(names.contains(&&*page), "{page} is missing: {names:?}");
        let help = run(command.iter().map(String::as_str).chain(["--help"])).expect(0).out;
        let options = help.split_whitespace().filter(|word| word.starts_with("--") && word.len() > 2);
        let page = plain(&pages[&page]);
        for option in options.map(|word| word.trim_matches(|c: char| !c.is_alphanumeric() && c != '-')) {
            assert!(page.contains(option.split(['=', '[']).next().unwrap()), "{command:?}: {option}\n{page}");
        }
    }
    assert_eq!(names.len(), commands.len() + 4, "linewarden(1), linewarden(8) and two of section 5: {names:?}");
    assert_says(&plain(&pages["linewarden.8"]), &["/var/log/linewarden", "SIGHUP", "Exit codes: 0 done"]);
}

#[test]
fn the_pages_of_settings_and_approvals_hold_every_line_of_the_example_files() {
    let pages = made("man");
    for (page, file) in [
        ("linewarden.toml.5", "config/linewarden.toml"),
        ("linewarden-approvals.5", "config/approvals.d/example.toml.disabled"),
    ] {
        let page = plain(&pages[page]);
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
        for line in text.lines() {
            let words = line.trim_start_matches(['#', ' ']);
            assert!(page.contains(words), "{file}: `{words}` is not on the page");
        }
    }
}

#[test]
fn completions_for_three_shells_know_the_commands() {
    let completions = made("completions");
    assert_eq!(completions.keys().collect::<Vec<_>>(), ["_linewarden", "linewarden", "linewarden.fish"]);
    for (name, text) in &completions {
        assert_says(text, &["replay", "check-config", "approvals", "lint"]);
        assert!(!text.is_empty(), "{name}");
    }
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let folder = folder(&[("file", "")]);
    let to = folder.path().join("file/below");
    let done = run([OsString::from("generate"), "man".into(), to.clone().into()]).expect(1);
    assert_says(&done.err, &[to.to_str().unwrap(), "cannot be written"]);
}
