"""The built daemon on the client's end of the link, with the recording that its verdicts are compared to."""

import json
import pathlib
import signal
import struct
import subprocess

from link import LabError, until

BINARY = pathlib.Path(__file__).resolve().parents[2] / "target/release/linewarden"
# What the kernel alone sends at moments of its own (neighbour discovery, multicast reports) is left to it.
FILTER = "ip or (ip6 and (udp or tcp or proto 50))"

APPROVAL = """\
id = "lab"
kind = "vpn"
owner = "lab"
reference = "LAB-1"
valid_until = 2099-12-31
peers = {peers}
ip_protocols = {ip_protocols}
tunnels = {tunnels}
"""


class Approvals:
    """The folder of approvals."""

    def __init__(self, folder):
        self.folder = folder / "approvals.d"
        self.folder.mkdir()

    def write(self, text):
        (self.folder / "lab.toml").write_text(text)

    def approve(self, peers, ip_protocols, tunnels):
        lists = {"peers": peers, "ip_protocols": ip_protocols, "tunnels": tunnels}
        self.write(APPROVAL.format(**{name: json.dumps(values) for name, values in lists.items()}))


class Recording:
    """tcpdump beside the daemons."""

    def __init__(self, link):
        self.path = link.folder / "link.pcap"
        options = ["-i", "eth0", "-s", "0", "-U", "--immediate-mode", "-B", "16384", "-Z", "root"]
        self.process = link.client.start("tcpdump", *options, "-w", self.path, FILTER, log="tcpdump.log")
        until("tcpdump", lambda: "listening on" in self.process.log.read_text())

    def packets(self):
        """How many the file holds: a header of 24 octets, then 16 and the frame for each."""
        data, at, count = self.path.read_bytes(), 24, 0
        while at + 16 <= len(data):
            at += 16 + struct.unpack_from("<I", data, at + 8)[0]
            count += at <= len(data)
        return count

    def end(self):
        self.process.send_signal(signal.SIGINT)
        self.process.wait(10)


class Sensor:
    """One daemon with so many workers."""

    def __init__(self, link, approvals, workers):
        self.workers = workers
        self.folder = link.folder / f"workers-{workers}"
        self.folder.mkdir()
        program = link.client.run("tcpdump", "-i", "eth0", "-s", "0", "-ddd", FILTER).stdout
        config = self.folder / "linewarden.toml"
        config.write_text(
            f"""\
sensor = "lab"
[capture]
interfaces = ["eth0"]
workers = {workers}
ring_octets = "8MiB"
block_octets = "256KiB"
block_timeout = "10ms"
filter = \"\"\"
{program}\"\"\"
[policy]
approvals = "{approvals.folder}"
[records]
dir = "{self.folder}"
"""
        )
        self.process = link.client.start(BINARY, "run", "--config", config, log=f"workers-{workers}.log")
        self.said(1, "capturing")
        if "NO APPROVALS" not in self.process.log.read_text():
            raise LabError("an empty set of approvals is not said at start")

    def said(self, times, text):
        def condition():
            if self.process.poll() is not None:
                raise LabError(f"linewarden ended with {self.process.returncode}: {self.process.log.read_text()}")
            return self.process.log.read_text().count(text) >= times

        until(f"`{text}` in {self.process.log}", condition)

    def reload(self):
        self.process.send_signal(signal.SIGHUP)

    def records(self):
        path = self.folder / "linewarden.ndjson"
        # The last line may still be on its way.
        return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def latest(self):
        """The newest record of each flow."""
        return {record["flow_id"]: record for record in self.records()}.values()

    def end(self):
        """SIGTERM; gives the summary."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(20)
        if code != 0:
            raise LabError(f"linewarden ended with {code}: {self.process.log.read_text()[-800:]}")
        return json.loads((self.folder / "summary.json").read_text())


def replay(recording, approvals, workers):
    """The records of the same packets, replayed."""
    command = [BINARY, "replay", recording.path, "--quiet", "--approvals", approvals.folder, "--workers", workers]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise LabError(f"replay ended with {done.returncode}: {done.stderr}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def answer(records):
    """What must not depend on how the packets came: the last record of each flow, without the file's or process's own."""
    ends = [record for record in records if record["kind"] == "end"]
    communities = {record["flow_id"]: record["community_id"] for record in ends}
    names = """community_id src_ip src_port dst_ip dst_port proto direction originator_known fwd_packets fwd_octets
        rev_packets rev_octets verdict reason tunnel confidence midstream spi gre_key policy_revision""".split()
    return sorted(
        [json.dumps({name: record[name] for name in names} | {
            "evidence": [[sign["code"], sign["direction"], sign["value"], sign["count"]] for sign in record["evidence"]],
            "approval": record["approval"] and record["approval"]["id"],
            "outer": communities.get(record["outer_flow_id"]),
        }) for record in ends]
    )


def check_counts(summary, records):
    """Packets and octets in = sum over records + counted losses."""
    every_end = [record for record in records if record["kind"] == "end"]
    ends = [end for end in every_end if end["outer_flow_id"] is None]
    inside = [end for end in every_end if end["outer_flow_id"] is not None]
    undecodable = sum(summary["undecodable"].values())
    checks = {
        "packets = classified + undecodable + dropped": (
            summary["packets"], summary["classified"] + undecodable + summary["dropped_kernel"],
        ),
        "octets = classified + undecodable": (
            summary["octets"], summary["classified_octets"] + summary["undecodable_octets"],
        ),
        "classified packets = sum over records": (
            summary["classified"], sum(end["fwd_packets"] + end["rev_packets"] for end in ends) + summary["unrecorded"],
        ),
        "classified octets = sum over records": (
            summary["classified_octets"],
            sum(end["fwd_octets"] + end["rev_octets"] for end in ends) + summary["unrecorded_octets"],
        ),
        "packets inside tunnels = sum over records": (
            summary["inside"]["packets"],
            sum(end["fwd_packets"] + end["rev_packets"] for end in inside)
            + summary["inside"]["undecodable"] + summary["inside"]["unrecorded"],
        ),
        "records lost": (summary["records_lost"], 0),
        "dropped by the kernel": (summary["dropped_kernel"], 0),
    }
    for what, (is_, should) in checks.items():
        if is_ != should:
            raise LabError(f"{what}: {is_} against {should}")
    if summary["packets"] == 0:
        raise LabError("no packet was seen")
