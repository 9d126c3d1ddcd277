//! `linewarden approvals`: looks over the approvals, and drafts new ones for people to fill in. It approves nothing itself.

mod draft;
mod import;
mod lint;
mod netbox;
mod register;
mod stanza;

use clap::{Args, Subcommand};

use super::Failure;

/// Arguments of the command.
#[derive(Debug, Args)]
pub struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Say what is valid in the approvals but probably not meant
    ///
    /// Networks that are a large part of the Internet, or hide another approval's, or add nothing to it; approvals without a
    /// need, of any tunnel, with keys and no path, of the same reference; such as have ended, end soon or have not begun.
    /// Exits with 2 where there is something to say.
    Lint(lint::Options),
    /// Draft approvals from a register of circuits: a table (CSV), or what NetBox answers
    Import(import::Options),
    /// Draft an approval from a flow of the log
    ///
    /// Owner, reference, need and end are left for a person to write: until then it is refused.
    Draft(draft::Options),
}

pub(super) fn run(options: &Options) -> Result<(), Failure> {
    match &options.what {
        What::Lint(options) => lint::run(options),
        What::Import(options) => import::run(options),
        What::Draft(options) => draft::run(options),
    }
}
