//! Turns a configuration into the core's settings, and finds what it leaves open.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::{Approvals, Config, ConfigError};
use crate::audit::AuditSettings;
use crate::flow::FlowSettings;
use crate::policy::Policy;

/// Where approvals are looked for when no setting names a folder, in this order.
pub const APPROVAL_FOLDERS: [&str; 2] = ["config/approvals.d", "/etc/linewarden/approvals.d"];

impl Config {
    /// Settings of the core of one of `workers` workers, which share the memory bound.
    #[must_use]
    pub fn audit_settings(
        &self,
        sensor: Arc<str>,
        interfaces: Vec<Arc<str>>,
        workers: usize,
        hash_seed: u64,
    ) -> AuditSettings {
        AuditSettings {
            sensor,
            interfaces,
            snap_length: self.capture.snap_length,
            decapsulation: self.decapsulate.clone(),
            flow: FlowSettings {
                idle_timeout: self.flow.idle_timeout,
                active_timeout: self.flow.active_timeout,
                memory_octets: self.flow.memory_octets / workers.max(1),
                vlan_in_key: self.flow.vlan_in_key,
                home_nets: self.flow.home_nets.clone(),
            },
            update_interval: self.records.update_interval,
            other: self.records.other,
            hash_seed,
        }
    }

    /// A record tells of an open flow at least this often: in its next packet after that time, or it has ended.
    #[must_use]
    pub fn silence(&self) -> Duration {
        let update = Some(self.records.update_interval).filter(|interval| !interval.is_zero());
        let told = update.map_or(self.flow.active_timeout, |interval| interval.min(self.flow.active_timeout));
        // Records take a moment.
        told + self.flow.idle_timeout + Duration::from_mins(1)
    }

    /// The sensor's name: the setting, else the host's.
    #[must_use]
    pub fn sensor_name(&self) -> Arc<str> {
        if !self.sensor.is_empty() {
            return self.sensor.as_str().into();
        }
        host_name().into()
    }

    /// The folder of approvals: the setting, else the first that exists of [`APPROVAL_FOLDERS`].
    #[must_use]
    pub fn approvals_folder(&self) -> Option<PathBuf> {
        self.policy
            .approvals
            .clone()
            .or_else(|| APPROVAL_FOLDERS.iter().map(PathBuf::from).find(|folder| folder.is_dir()))
    }

    /// The approvals that are to be in force, and their folder; the empty set where there is no folder.
    pub fn load_approvals(&self) -> Result<(Approvals, Option<PathBuf>), ConfigError> {
        let folder = self.approvals_folder();
        let approvals = folder.as_deref().map_or_else(|| Ok(Approvals::empty()), Approvals::load)?;
        Ok((approvals, folder))
    }

    /// The policy made of them.
    #[must_use]
    pub fn policy(&self, sensor: Arc<str>, approvals: Approvals) -> Policy {
        Policy::new(sensor, self.policy.min_confidence, approvals.revision, approvals.list)
    }
}

/// This host's name.
#[must_use]
pub fn host_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match host.trim() {
        "" => "localhost".to_owned(),
        name => name.to_owned(),
    }
}

/// What to say where no approval is in force.
#[must_use]
pub fn no_approvals(folder: Option<&Path>) -> String {
    let place = folder.map_or_else(
        || format!("there is no folder {}", APPROVAL_FOLDERS.join(" nor ")),
        |folder| format!("{} holds none", folder.display()),
    );
    format!("NO APPROVALS ARE IN FORCE ({place}): every tunnel will be called unapproved_vpn_tunnel")
}
