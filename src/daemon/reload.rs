//! Turns the folder of approvals into what every worker judges by, all of it or nothing, and says when all of them do.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::{JoinHandle, block_in_place};
use tokio::time::timeout_at;
use tracing::{error, info, warn};

use super::board::Board;
use super::control::protocol::{ErrorAnswer, ReloadAnswer};
use super::events::Events;
use super::{Loaded, load_policy};
use crate::capture::{Command, Worker};
use crate::config::{Config, ConfigError, Origin};
use crate::policy::Policy;
use crate::sink::sensor::{ApprovalInForce, PolicyInForce, ReloadFailed, What};

type Outcome = Result<ReloadAnswer, ErrorAnswer>;
type Asker = oneshot::Sender<Outcome>;

/// One reload at a time.
#[derive(Default)]
pub(super) struct Reloading {
    pending: Option<Pending>,
}

/// Workers were told, and not all have answered yet.
struct Pending {
    answer: ReloadAnswer,
    asker: Option<Asker>,
    /// Those that did not answer.
    silent: JoinHandle<Vec<usize>>,
}

/// A worker that has not taken new approvals after this long stands still: the watchdog will see to it.
const PATIENCE: Duration = Duration::from_secs(30);
/// What a wrong file says at most in an event.
const MOST_LINES: usize = 1000;
const FAILED: u8 = 1;
const CONFIGURATION: u8 = 78;

impl Reloading {
    pub(super) const fn is_idle(&self) -> bool {
        self.pending.is_none()
    }

    /// Reads the files; where they are right, tells every worker. What is wrong changes nothing.
    pub(super) fn begin(
        &mut self,
        (config, origin): (&Config, &Origin),
        (workers, board): (&[Worker], &Board),
        events: &mut Events,
        asker: Option<Asker>,
    ) {
        let before = board.policy().revision().to_string();
        let read = block_in_place(|| Ok((ignored_settings(origin)?, load_policy(config, origin)?)));
        let (ignored, Loaded { policy, warnings }) = match read {
            Ok(read) => read,
            Err(ConfigError(text)) => {
                for line in text.lines() {
                    error!("{line}");
                }
                let advice = if config.sandbox.enabled && text.contains("Permission denied") {
                    " (in the sandbox only folders named at the start are read: see sandbox.read)"
                } else {
                    ""
                };
                error!(revision = %before, "approvals NOT reloaded: the old ones stay in force{advice}");
                board.reload_failed();
                let errors = text.lines().take(MOST_LINES).map(str::to_owned).collect();
                events.say(What::ReloadFailed(ReloadFailed { revision: before.as_str().into(), errors }));
                answer(asker, Err(ErrorAnswer { code: CONFIGURATION, message: text }));
                return;
            }
        };
        if !ignored.is_empty() {
            warn!(
                settings = ignored.join(", "),
                "settings changed: a reload takes approvals alone, these take a restart"
            );
        }
        events.say(What::Policy(in_force(&policy)));
        // Before the first record that is judged by it.
        board.set_policy(&policy);
        let taken = workers.iter().map(|worker| {
            let (sender, taken) = oneshot::channel();
            worker.tell(Command::SetPolicy(policy.clone(), sender));
            taken
        });
        let silent = tokio::spawn(silent(taken.collect()));
        let answer = ReloadAnswer {
            revision: policy.revision().to_string(),
            before,
            approvals: policy.approvals().len(),
            workers: workers.len(),
            warnings,
            ignored,
        };
        self.pending = Some(Pending { answer, asker, silent });
    }

    /// Ends when every worker has answered, or none will any more; never while there is nothing to wait for.
    pub(super) async fn done(&mut self) {
        let Some(pending) = &mut self.pending else { return std::future::pending().await };
        let silent = (&mut pending.silent).await.unwrap_or_default();
        let Some(Pending { answer: of, asker, .. }) = self.pending.take() else { return };
        if silent.is_empty() {
            info!(revision = %of.revision, approvals = of.approvals, "approvals reloaded: every open flow is judged again");
            answer(asker, Ok(of));
        } else {
            let message = format!(
                "workers {silent:?} have not taken the new approvals, revision {}, after {} s: they will when they get on",
                of.revision,
                PATIENCE.as_secs()
            );
            error!("{message}");
            answer(asker, Err(ErrorAnswer { code: FAILED, message }));
        }
    }
}

async fn silent(taken: Vec<oneshot::Receiver<()>>) -> Vec<usize> {
    let end = tokio::time::Instant::now() + PATIENCE;
    let mut silent = Vec::new();
    for (worker, taken) in taken.into_iter().enumerate() {
        if !matches!(timeout_at(end, taken).await, Ok(Ok(()))) {
            silent.push(worker);
        }
    }
    silent
}

fn answer(asker: Option<Asker>, outcome: Outcome) {
    if let Some(asker) = asker {
        // It may have gone.
        let _ = asker.send(outcome);
    }
}

/// What differs in the settings' file from what the daemon started with.
fn ignored_settings(origin: &Origin) -> Result<Vec<String>, ConfigError> {
    let Some(file) = &origin.file else { return Ok(Vec::new()) };
    let (now, _) = Origin::read(Some(file))?;
    Ok(origin.changes(&now))
}

/// The approvals, as an event tells them.
pub(super) fn in_force(policy: &Policy) -> PolicyInForce {
    let approvals = policy.approvals().iter().map(|approval| ApprovalInForce::from(&**approval)).collect();
    PolicyInForce { revision: policy.revision().clone(), approvals }
}
