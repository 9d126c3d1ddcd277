//! `linewarden generate`: manual pages and completions, for whoever packages linewarden. Made from the command line and the
//! commented example files, so that they say what the program does.

mod daemon_page;
mod settings_page;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Command, ValueEnum};
use clap_complete::Shell;
use clap_mangen::Man;

use super::{FAILED, Failure};

/// Arguments of the command.
#[derive(Debug, Args)]
pub struct Options {
    /// What to make
    what: What,
    /// Where to
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum What {
    /// Manual pages
    Man,
    /// Completions for bash, zsh and fish
    Completions,
}

const NAME: &str = "linewarden";
/// The lower line of a page.
const SOURCE: &str = concat!("linewarden ", env!("CARGO_PKG_VERSION"));

/// `command`: the whole command line.
pub(super) fn run(options: &Options, command: Command) -> Result<(), Failure> {
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move |error: std::io::Error| Failure::new(FAILED, format!("{path}: cannot be written: {error}"))
    };
    fs::create_dir_all(&options.folder).map_err(failed(&options.folder))?;
    let mut files = match options.what {
        What::Man => pages(command).map_err(failed(&options.folder))?,
        What::Completions => completions(command),
    };
    files.sort();
    let mut out = std::io::stdout().lock();
    for (name, octets) in files {
        let path = options.folder.join(name);
        fs::write(&path, octets).map_err(failed(&path))?;
        writeln!(out, "{}", path.display())?;
    }
    Ok(())
}

type File = (String, Vec<u8>);

fn pages(command: Command) -> std::io::Result<Vec<File>> {
    let mut command = command.disable_help_subcommand(true);
    // Options that go for all commands below one are theirs, too; and each knows its whole name.
    command.build();
    let mut pages = Vec::new();
    let mut add = |name: String, command: Command| -> std::io::Result<()> {
        let mut page = Vec::new();
        let title = name.to_uppercase();
        Man::new(command).title(title).section("1").source(SOURCE).manual("User Commands").render(&mut page)?;
        pages.push((format!("{name}.1"), page));
        Ok(())
    };
    let mut waiting = vec![command];
    while let Some(command) = waiting.pop() {
        waiting.extend(command.get_subcommands().filter(|below| !below.is_hide_set()).cloned());
        add(command.get_display_name().unwrap_or(NAME).to_owned(), command)?;
    }
    pages.push((format!("{NAME}.8"), daemon_page::render()));
    let settings = settings_page::Page {
        name: "linewarden.toml",
        about: "settings of linewarden",
        path: "/etc/linewarden/linewarden.toml",
        text: include_str!("../../config/linewarden.toml"),
    };
    let approvals = settings_page::Page {
        name: "linewarden-approvals",
        about: "approved leased lines and VPN endpoints",
        path: "/etc/linewarden/approvals.d/*.toml",
        text: include_str!("../../config/approvals.d/example.toml.disabled"),
    };
    for page in [settings, approvals] {
        pages.push((format!("{}.5", page.name), page.render()));
    }
    Ok(pages)
}

fn completions(mut command: Command) -> Vec<File> {
    // By the names under which the shells look for them.
    [(Shell::Bash, "linewarden"), (Shell::Zsh, "_linewarden"), (Shell::Fish, "linewarden.fish")]
        .map(|(shell, name)| {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut command, NAME, &mut text);
            (name.to_owned(), text)
        })
        .into()
}
