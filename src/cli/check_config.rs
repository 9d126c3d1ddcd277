//! `linewarden check-config`: everything that is wrong with configuration and approvals, at once.

use std::io::{self, Write};

use clap::Args;

use super::{CONFIGURATION, Failure, Sources};
use crate::config::{mirror_name, no_approvals};
use crate::daemon::clock;
use crate::sink::pseudonym::key_file;

/// Arguments of the command.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    sources: Sources,
}

pub(super) fn run(options: &Options) -> Result<(), Failure> {
    let mut wrong = Vec::new();
    let config = options.sources.config().map_err(|error| wrong.push(error.0)).unwrap_or_default();
    // Where the settings themselves are wrong, the folder they name is not known either, unless it was given.
    let loaded = if wrong.is_empty() || options.sources.approvals.is_some() {
        let mut config = config.clone();
        config.policy.approvals = options.sources.approvals.clone().or(config.policy.approvals);
        config.load_approvals().map_err(|error| wrong.push(error.0)).ok()
    } else {
        None
    };
    // Whether the daemon, started by who runs this, would go by them.
    if wrong.is_empty() {
        let settings = options.sources.config.as_deref();
        wrong.extend(options.sources.config()?.check_owners(settings).err().map(|error| error.0));
    }
    if !wrong.is_empty() {
        return Err(Failure::new(CONFIGURATION, wrong.join("\n")));
    }
    let mut out = io::stdout().lock();
    let place =
        options.sources.config.as_ref().map_or_else(|| "built-in defaults".into(), |path| path.display().to_string());
    writeln!(out, "settings   {place}: ok")?;
    for mirror in &config.decapsulate.mirrors {
        writeln!(out, "mirror     {}: opened, and no finding", mirror_name(mirror))?;
    }
    for output in &config.outputs {
        writeln!(out, "output     {}: {}", output.file, output.format.name())?;
    }
    if config.privacy.pseudonyms {
        let nets: Vec<_> = config.flow.home_nets.iter().map(ToString::to_string).collect();
        writeln!(out, "hidden     {}, by the key in {}", nets.join(", "), key_file(&config).display())?;
    }
    if let Some(warning) = config.flow.warning() {
        writeln!(out, "warning    {warning}")?;
    }
    if let Some((approvals, folder)) = loaded {
        for warning in approvals.warnings.iter().chain(&approvals.warnings_at(clock(), config.policy.warn_before)) {
            writeln!(out, "warning    {warning}")?;
        }
        let count = approvals.list.len();
        let policy = config.policy(config.sensor_name(), approvals);
        match &folder {
            Some(folder) if count > 0 => writeln!(
                out,
                "approvals  {}: ok, {count} with {} prefixes, revision {}",
                folder.display(),
                policy.prefixes(),
                policy.revision()
            )?,
            folder => writeln!(out, "approvals  {}", no_approvals(folder.as_deref()))?,
        }
        for approval in policy.approvals() {
            for key in &approval.keys {
                writeln!(out, "identity   {}: {}", approval.id, key.fingerprint())?;
            }
        }
    }
    Ok(())
}
