//! A log as `query` reads it: lines, also compressed and with an index beside them. The first octet says which.
#![no_main]

use std::ops::ControlFlow;

use libfuzzer_sys::fuzz_target;
use linewarden::policy::Label;
use linewarden::record::Kind;
use linewarden::store::{Asked, FLOW_LOG, Log, Rows, Selection, scan};
use linewarden_fuzz::{file_of, folder};

fuzz_target!(|input: &[u8]| {
    let Some((&how, rest)) = input.split_first() else { return };
    let mut names = vec!["linewarden.ndjson"];
    if how & 1 == 0 {
        file_of("linewarden.ndjson", rest);
    } else {
        let middle = rest.len() * usize::from(how) / 256;
        let (data, index) = rest.split_at(middle);
        names =
            vec!["linewarden-20261128T094756Z-000001.ndjson.zst", "linewarden-20261128T094756Z-000001.ndjson.index"];
        file_of(names[0], data);
        file_of(names[1], index);
    }
    if let Ok(log) = Log::open(&[folder().to_owned()], FLOW_LOG) {
        for rows in [Rows::Flows, Rows::Records(vec![Kind::Start, Kind::Update, Kind::End])] {
            for selection in [Selection::default(), Selection::default().labels(&[Label::UnapprovedVpnTunnel])] {
                let asked = Asked { selection: &selection, rows: rows.clone(), progress: &|_| {} };
                let mut seen = 0_u64;
                let report = scan(
                    &log,
                    &asked,
                    || 0_u64,
                    |count, _, _| *count += 1,
                    |count| {
                        seen += count;
                        ControlFlow::Continue(())
                    },
                );
                if let Ok(report) = report {
                    assert_eq!(report.rows, seen);
                }
            }
        }
    }
    for name in names {
        let _ = std::fs::remove_file(folder().join(name));
    }
});
