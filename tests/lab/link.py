"""Two hosts in network namespaces of their own, joined by a veth, with nothing else attached to it."""

import contextlib
import os
import signal
import subprocess
import time

CLIENT4, SERVER4 = "198.51.100.1", "198.51.100.2"
CLIENT6, SERVER6 = "2001:db8:1::1", "2001:db8:1::2"
INNER_CLIENT, INNER_SERVER = "203.0.113.1", "203.0.113.2"


class LabError(Exception):
    """What went wrong, for the last line of a scenario."""


# Nothing that a scenario waits for takes longer, seconds.
PATIENCE = 30


def until(what, condition):
    """Waits for a condition; a scenario fails if it does not come true in time."""
    deadline = time.monotonic() + PATIENCE
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise LabError(f"waited {PATIENCE} s in vain for {what}")
        time.sleep(0.05)


class Host:
    """A network namespace and the programs in it."""

    def __init__(self, name, folder):
        self.name, self.folder = name, folder
        self.programs = []

    def command(self, *command):
        return ["ip", "netns", "exec", self.name, *map(str, command)]

    def run(self, *command, seconds=20, check=True, **options):
        """Runs a program to its end."""
        done = subprocess.run(
            self.command(*command), capture_output=True, text=True, timeout=seconds, check=False, **options
        )
        if check and done.returncode != 0:
            raise LabError(f"`{' '.join(map(str, command))}` ended with {done.returncode}: {done.stderr.strip()[-800:]}")
        return done

    def start(self, *command, log, **options):
        """Starts a program; the end of the scenario ends it. What it says goes to the log."""
        path = self.folder / log
        with path.open("wb") as file:
            options = {"stdin": subprocess.DEVNULL} | options
            process = subprocess.Popen(self.command(*command), stdout=file, stderr=file, **options)
        process.log = path
        self.programs.append(process)
        return process

    def end(self):
        """Ends what the host still runs, first politely."""
        for name in (signal.SIGTERM, signal.SIGKILL):
            listed = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False)
            for pid in listed.stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), name)
            for process in self.programs:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(3 if name == signal.SIGTERM else None)
        subprocess.run(["ip", "netns", "del", self.name], capture_output=True, check=False)


class Link:
    """The two hosts, `client` and `server`. The link carries no IP packet until `up` and after `down`."""

    def __init__(self, name, folder):
        mark = f"lw{os.getpid()}-{name}"
        self.folder = folder
        self.client, self.server = Host(f"{mark}-c", folder), Host(f"{mark}-s", folder)

    def __enter__(self):
        try:
            for host in (self.client, self.server):
                subprocess.run(["ip", "netns", "add", host.name], check=True)
                host.run("ip", "link", "set", "lo", "up")
            self.client.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", self.server.name)
            for host, four, six in ((self.client, CLIENT4, CLIENT6), (self.server, SERVER4, SERVER6)):
                host.run("ip", "address", "add", f"{four}/24", "dev", "eth0")
                host.run("ip", "address", "add", f"{six}/64", "dev", "eth0", "nodad")
            self.client.run("ip", "link", "set", "eth0", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.client.end()
        self.server.end()

    def up(self):
        self.server.run("ip", "link", "set", "eth0", "up")

    def down(self):
        self.server.run("ip", "link", "set", "eth0", "down")
        # The client's end notices up to a second later, and what is sent into the void is captured all the same
        # (strongSwan answers the change of a link with MOBIKE): without an address, inside or outside, it sends nothing.
        self.client.run("ip", "address", "flush", "scope", "global")


def ping(host, address, count=3):
    """Traffic inside a tunnel."""
    host.run("ping", "-c", count, "-i", "0.1", "-W", "2", "-s", "300", address)


def reach(host, address):
    """Waits until the other end of a tunnel answers."""
    once = ["ping", "-c", "1", "-W", "1", address]
    until(f"an answer from {address}", lambda: host.run(*once, check=False).returncode == 0)
    ping(host, address)
