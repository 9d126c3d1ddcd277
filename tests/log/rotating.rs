//! A log that is written, rotated, packed and cut by retention while it is verified.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::*;

#[test]
fn a_log_that_is_rotated_meanwhile_gives_no_false_alarm() {
    for (keep_octets, compress) in [(3 << 20, false), (512 << 10, true)] {
        let folder = tempfile::tempdir().unwrap();
        let config = LogConfig {
            rotate_octets: 64 << 10,
            keep_octets,
            compress,
            sync_interval: Duration::from_millis(1),
            ..LogConfig::default()
        };
        drop(open(folder.path(), &config, clock()));
        let (is_over, has_written) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut log = open(folder.path(), &config, clock());
                let mut seq = 0;
                while !is_over.load(Ordering::Relaxed) {
                    for _ in 0..40 {
                        seq += 1;
                        log.write(&line(seq));
                    }
                    log.tick(clock());
                    // A disk that is slower than this is not rotated on.
                    if seq % 400 == 0 {
                        log.sync(clock());
                    }
                }
                has_written.store(log.written() > 0, Ordering::Relaxed);
            });
            // However fast it is verified, it is rotated a few times meanwhile.
            let goes_on = |round: &u32| {
                let is_rotated = listing(folder.path()).closed.last_key_value().is_some_and(|(number, _)| *number > 20);
                *round < 6 || (!is_rotated && *round < 10_000)
            };
            let found = (0..).take_while(goes_on).find_map(|_| {
                let report = verified(folder.path(), true);
                (!report.is_whole).then_some(report)
            });
            is_over.store(true, Ordering::Relaxed);
            assert!(found.is_none(), "{found:#?}");
        });
        let segments = listing(folder.path()).closed;
        let latest = segments.last_key_value().map(|(number, _)| *number);
        assert!(has_written.into_inner() && latest > Some(20), "it was rotated: {latest:?}");
        assert!(verified(folder.path(), true).is_whole);
    }
}
