//! `linewarden approvals draft`: a flow of the log into an approval for a person to review.

use std::io::{self, Write};
use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;

use super::stanza::{Stanza, name, text};
use crate::cli::explain::{Selector, Told, flow_line, list, logged};
use crate::cli::{Failure, USAGE};
use crate::detect::{Code, Protocol};
use crate::policy::Label;
use crate::record::{FlowDirection, Record};

/// Arguments of the command.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Example: linewarden approvals draft --flow 84f720bee2edfd57 >/etc/linewarden/approvals.d/partner.toml.draft\n\nFill in what is marked TODO, then rename the file to *.toml and run `linewarden check-config`."
)]
pub struct Options {
    /// Which flow: its `flow_id` (or the first digits of it), its Community ID, an address, address:port, or two of these
    /// joined by a comma
    #[arg(long, value_name = "FLOW")]
    flow: String,
    /// The log's folder or files [default: where `run` writes it]
    #[arg(long, value_name = "DIR|FILE")]
    log: Vec<PathBuf>,
    /// Settings, for the default of the above
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) fn run(options: &Options) -> Result<(), Failure> {
    let wanted = Selector::parse(&options.flow)?;
    let (histories, read) = logged(&options.log, options.config.as_deref(), &wanted)?;
    let mut out = io::stdout().lock();
    if histories.len() > 1 {
        return Err(list(&histories, &options.flow, &mut out)?);
    }
    let Some(Told { shown: record, .. }) = histories.values().next().and_then(|history| history.last()) else {
        read?;
        let message = format!("no flow of the log matches `{}`; `linewarden query` lists all", options.flow);
        return Err(Failure::new(USAGE, message));
    };
    let Some(tunnel) = record.tunnel else {
        let message = format!(
            "the flow {} shows no sign of a tunnel: as `other` it needs no approval, and a leased line is approved by its path (see linewarden-approvals(5))",
            record.flow_id
        );
        return Err(Failure::new(USAGE, message));
    };
    out.write_all(draft(record, tunnel).text.as_bytes())?;
    out.flush()?;
    read
}

fn draft(record: &Record, tunnel: Protocol) -> Stanza {
    let (peer, port, own) = peer(record);
    let mut about = vec![
        format!("Drafted from flow {} (Community ID {}):", record.flow_id, record.community_id),
        flow_line(record),
        format!(
            "{} to {}, {} octets forward, {} back; {}, {}",
            record.start,
            record.end,
            record.fwd_octets,
            record.rev_octets,
            record.verdict.name(),
            record.reason.name()
        ),
    ];
    about.extend(record.confidence.map(|confidence| format!("{} is {}, by:", tunnel.name(), confidence.name())));
    about.extend(record.evidence.iter().map(|found| match Code::named(&found.code) {
        Some(code) => format!("  {}: {} [{}]", found.code, code.meaning, code.clause),
        None => format!("  {}", found.code),
    }));
    if let Some(approval) = &record.approval {
        let how = if record.verdict == Label::AuthorizedLeasedLine { "covers it already" } else { "comes nearest" };
        about.push(format!("The approval \"{}\" of {} {how}.", approval.id, approval.owner));
    }
    let mut draft = Stanza::new(&format!("vpn-{}-{}", tunnel.name(), name(&peer.to_string())), &about);
    draft.set("kind", &text("vpn"));
    draft.todo("owner", "who answers for it");
    draft.todo("reference", "ticket, contract or circuit");
    draft.todo("need", "why it is needed");
    draft.todo("valid_until", "its last day, such as 2027-12-31");
    draft.set_noted(
        "peers",
        &toml::Value::Array(vec![text(&peer.to_string())]),
        &format!("the other end is {own}: is this the approved one, and its only address?"),
    );
    draft.set("tunnels", &toml::Value::Array(vec![text(tunnel.name())]));
    if let Some(port) = port {
        draft.set("ports", &format_args!("[{port}]"));
    }
    let quoted = |name: &str| text(name).to_string();
    let vlan = record.vlan.first().map_or_else(String::new, |vlan| format!(", vlan = {vlan}"));
    let (sensor, interface) = (quoted(&record.sensor), quoted(&record.interface));
    draft.comment("Where it was seen; with it, elsewhere is `wrong_path`:");
    draft.offer(&format!("path = {{ sensor = {sensor}, interface = {interface}{vlan} }}"));
    match tunnel {
        Protocol::Wireguard => {
            draft.comment("Whose keys its handshakes must be made with, as `wg show` prints them:");
            draft.offer("identity = { wireguard_public_keys = [\"\"] }");
        }
        Protocol::Openvpn => {
            draft.comment(
                "The static key that its control packets must be made with (openvpn_tls_auth, openvpn_tls_crypt):",
            );
            draft.offer("identity = { openvpn_tls_auth = [\"keys/ta.key\"] }");
        }
        _ => {}
    }
    draft
}

/// The end that an approval would name, its port if that tells, and the other end.
fn peer(record: &Record) -> (IpAddr, Option<u16>, IpAddr) {
    let (src, dst) = ((record.src_ip, record.src_port), (record.dst_ip, record.dst_port));
    let (peer, own) = if record.direction == FlowDirection::Inbound { (src, dst) } else { (dst, src) };
    // Who opened the flow chose its own port by chance.
    let port =
        if record.originator_known { dst.1 } else { peer.1.filter(|port| own.1.is_some_and(|own| *port <= own)) };
    (peer.0, port, own.0)
}
