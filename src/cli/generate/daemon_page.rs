//! The manual page of the daemon as an administrator meets it: `linewarden(8)`.

use clap_mangen::roff::{Roff, bold, roman};

use super::SOURCE;
use crate::cli::EXIT_CODES;

/// Heading, then what it is about: a tag and a text, or a paragraph without a tag.
const SECTIONS: [(&str, &[(&str, &str)]); 6] = [
    (
        "DESCRIPTION",
        &[
            (
                "",
                "linewarden run watches a link of your own network and labels every flow: authorized_leased_line, unapproved_vpn_tunnel or other. It sends and blocks nothing, and keeps no payload.",
            ),
            (
                "",
                "As a service it runs as the user linewarden. It starts with the capabilities CAP_NET_RAW and CAP_BPF, opens what it captures from, and gives both up.",
            ),
        ],
    ),
    (
        "FILES",
        &[
            ("/etc/linewarden/linewarden.toml", "Settings; see linewarden.toml(5)."),
            (
                "/etc/linewarden/approvals.d/*.toml",
                "Approvals; see linewarden-approvals(5). Readable by the group linewarden.",
            ),
            ("/var/log/linewarden", "Records and summary.json. Removed with the package's purge only."),
            (
                "/var/lib/linewarden",
                "State: the key that signs the log, its latest signed seals, and inventory.sqlite.",
            ),
            ("/run/linewarden", "Of the running daemon."),
        ],
    ),
    (
        "SIGNALS",
        &[
            (
                "SIGHUP",
                "Reads the approvals anew and judges every open flow again; a bad file is named in the log and changes nothing. Opens the log anew. systemctl reload linewarden sends it.",
            ),
            ("SIGUSR1", "Opens the log anew, after rotation by rename."),
            ("SIGTERM, SIGINT", "Ends every flow, writes its record, exits."),
        ],
    ),
    (
        "SANDBOX",
        &[(
            "",
            "Beside the sandbox of the service's unit the process makes one of its own (section sandbox of linewarden.toml(5)), however it was started: no thread has a capability; only the folders above can be reached, /etc/linewarden for reading; system calls that it does not make are refused with EPERM, and running a program, tracing, new namespaces, mounts and the like kill it, which the kernel's audit log tells. Nothing connects, no process is started, no other one is signalled. A second process, linewarden open-rings, keeps CAP_NET_RAW: it opens an interface that is made anew, and does nothing else; where it dies, the daemon ends to be started anew. The log says on start what is in force.",
        )],
    ),
    (
        "WATCHDOG",
        &[(
            "",
            "The service manager hears of the daemon only while every worker gets on. If one stands still for 10 seconds that is an error in the log, and the service is started again 30 seconds after the last good word (WatchdogSec=).",
        )],
    ),
    (
        "EXAMPLES",
        &[
            ("systemctl status linewarden", "What it captures, and whether packets were dropped."),
            (
                "linewarden check-config --config /etc/linewarden/linewarden.toml",
                "What is wrong with the settings and approvals.",
            ),
            ("systemctl reload linewarden", "Puts changed approvals in force."),
            ("systemctl edit linewarden", "Changes the unit; /usr/share/doc/linewarden/examples has drop-ins."),
        ],
    ),
];

pub(super) fn render() -> Vec<u8> {
    let mut page = Roff::new();
    page.control("TH", ["LINEWARDEN", "8", "", SOURCE, "System Administration"]);
    page.control("SH", ["NAME"]).text([roman("linewarden - the daemon that labels every flow on a link")]);
    page.control("SH", ["SYNOPSIS"]);
    page.text([bold("systemctl"), roman(" start|stop|reload|status "), bold("linewarden")]);
    page.control("PP", []).text([
        bold("linewarden run"),
        roman(" [OPTIONS]; see "),
        bold("linewarden-run"),
        roman("(1)"),
    ]);
    for (heading, items) in SECTIONS {
        page.control("SH", [heading]);
        for (tag, text) in items {
            if tag.is_empty() {
                page.control("PP", []);
            } else {
                page.control("TP", []).text([bold(*tag)]);
            }
            page.text([roman(*text)]);
        }
    }
    page.control("SH", ["EXIT STATUS"]).text([roman(EXIT_CODES)]);
    page.control("SH", ["SEE ALSO"]);
    page.text([
        bold("linewarden"),
        roman("(1), "),
        bold("linewarden-run"),
        roman("(1), "),
        bold("linewarden.toml"),
        roman("(5), "),
        bold("linewarden-approvals"),
        roman("(5), "),
        bold("systemd.exec"),
        roman("(5)"),
    ]);
    page.to_roff().into_bytes()
}
