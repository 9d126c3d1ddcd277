//! The system's clock is set a day forth and a day back: the daemon's by a library that is loaded before the C library, as nobody
//! may set the machine's for a test, and that of frames, which is the kernel's, in the core alone.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::common::command::{LINEWARDEN, done};
use crate::common::netns::until;
use crate::common::{OwnedFrame, assert_nothing_lost, ends, policy, settings};
use crate::{House, all_records, end, is_certain, tunnels, wireguard};
use linewarden::audit::Auditor;
use linewarden::flow::EndReason;
use linewarden::record::Record;
use linewarden::time::Timestamp;

/// Adds the seconds in a file to the wall clock.
const LIBRARY: &str = "#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
static int file = -1;
static int (*real)(clockid_t, struct timespec *);
__attribute__((constructor)) static void begin(void) {
    real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, \"clock_gettime\");
    file = open(getenv(\"CLOCK_OFFSET\"), O_RDONLY | O_CLOEXEC);
}
int clock_gettime(clockid_t which, struct timespec *time) {
    int answer = real(which, time);
    long long offset = 0;
    if (which == CLOCK_REALTIME && pread(file, &offset, sizeof offset, 0) == sizeof offset) time->tv_sec += offset;
    return answer;
}
";
const DAY: i64 = 86_400;

fn library(house: &House) -> PathBuf {
    let (source, library) = (house.path("clock.c"), house.path("clock.so"));
    fs::write(&source, LIBRARY).unwrap();
    done(Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).arg("-ldl")).expect(0);
    library
}

#[test]
fn a_clock_that_is_set_a_day_forth_and_back_is_told_and_flows_and_log_go_on() {
    let house = House::new("clock", "[flow]\nidle_timeout = \"2s\"");
    let offset = fs::File::create(house.path("offset")).unwrap();
    let set = |seconds: i64| offset.write_all_at(&seconds.to_ne_bytes(), 0).unwrap();
    set(0);
    let mut command = house.namespace.command(LINEWARDEN);
    command.env("LD_PRELOAD", library(&house)).env("CLOCK_OFFSET", house.path("offset"));
    let mut daemon = house.start_by(command);
    let mut sender = house.namespace.sender("far0");
    for (port, seconds) in (2000_u16..).zip([0, DAY, 0, -DAY, 0]) {
        set(seconds);
        if port > 2000 {
            let said = daemon.says("the system's clock was set");
            assert!(said.contains("WARN"), "{said}");
        }
        // A tunnel is seen, and ends as it should when nothing more comes of it.
        sender.send(&tunnels(port..port + 1));
        let of_port = |record: &Value| record["src_port"] == port || record["dst_port"] == port;
        let is_end = |record: &Value| record["kind"] == "end" && record["end_reason"] == "idle_timeout";
        until(&format!("the tunnel of port {port}, and its end: {:#?}", daemon.said), || {
            let records = all_records(&house.log());
            let records: Vec<_> = records.iter().filter(|record| of_port(record)).collect();
            (records.iter().any(|record| is_certain(record)) && records.iter().any(|record| is_end(record)))
                .then_some(())
        });
    }
    end(&mut daemon);
    assert_eq!(daemon.summary()["records_lost"], 0);
    let mut text = String::new();
    for entry in fs::read_dir(house.log()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.starts_with("sensor") && name.ends_with(".ndjson") {
            text.push_str(&fs::read_to_string(&path).unwrap());
        } else if name.starts_with("sensor") && name.ends_with(".ndjson.zst") {
            let octets = zstd::decode_all(&*fs::read(&path).unwrap()).unwrap();
            text.push_str(str::from_utf8(&octets).unwrap());
        }
    }
    let steps = text.lines().filter(|line| line.contains("\"kind\":\"clock_step\"")).count();
    assert_eq!(steps, 4, "{text}");
    house.assert_whole();
}

/// The same session at another time.
fn at(frames: &[OwnedFrame], shift: i64, port: u16) -> Vec<OwnedFrame> {
    let start = i64::try_from(frames[0].at.as_nanos()).unwrap();
    let moved = |frame: &OwnedFrame| {
        let mut frame = frame.clone();
        let side = if frame.data[26..30] == frames[0].data[26..30] { 34 } else { 36 };
        frame.data[side..side + 2].copy_from_slice(&port.to_be_bytes());
        let nanos =
            i64::try_from(frame.at.as_nanos()).unwrap() - start + 1_700_000_000_000_000_000 + shift * 1_000_000_000;
        frame.at = Timestamp::from_nanos(nanos.unsigned_abs());
        frame
    };
    frames.iter().map(moved).collect()
}

#[test]
fn flows_end_whichever_way_the_frames_clock_steps() {
    let session = wireguard();
    for step in [DAY, -DAY, 3600, -3600, -301] {
        let mut auditor = Auditor::new(settings().into(), policy(Vec::new()));
        let mut records: Vec<Record> = Vec::new();
        let mut take = |auditor: &mut Auditor, frames: &[OwnedFrame]| {
            let frames: Vec<_> = frames.iter().map(OwnedFrame::borrow).collect();
            auditor.observe(&frames, &mut |record| records.push(record));
        };
        take(&mut auditor, &at(&session[..30], 0, 1000));
        take(&mut auditor, &at(&session[..30], 0, 1001));
        // One goes on, another comes, one is gone.
        take(&mut auditor, &at(&session[30..50], step, 1000));
        take(&mut auditor, &at(&session, step, 1002));
        // By then nothing is open that is not of this time; and in a while nothing is at all.
        take(&mut auditor, &at(&session[50..], step + 3, 1000));
        assert_eq!(auditor.counters().flows_open, 2, "{step}");
        let now = at(&session, step + 3 + 130, 1)[0].at;
        for later in 0..3 {
            auditor.expire(now + Duration::from_secs(later), &mut |record| records.push(record));
        }
        assert_eq!(auditor.counters().flows_open, 0, "{step}");
        let ends_of = ends(&records);
        assert_eq!(ends_of.len(), 4, "{step}: the one that went on is two");
        assert!(
            ends_of.iter().all(|end| end.end_reason == Some(EndReason::IdleTimeout) && end.start <= end.end),
            "{step}"
        );
        assert_nothing_lost(&records, &auditor.counters(), &step.to_string());
    }
}
