# SPDX-License-Identifier: Apache-2.0
"""Several hosts on one machine: Linux namespaces with addresses, names, folders and ssh servers of their own.

    with Bed(2) as bed:
        bed["node1"].run("ssh node2 hostname")

Each host has an own network, file tree, name and list of processes (``unshare``), and a wire to a common switch. The
project is copied to ``/srv/NAME/trainer``, which no other host has; ``/srv/NAME/models`` is a folder that all share.
Keys are made for one use. The machine needs root, iproute2, nftables and OpenSSH (Debian: iproute2, nftables,
openssh-server). When the process that made the bed ends, even by SIGKILL, the kernel ends all hosts with all that runs
on them, and takes their networks and mounts away.
"""
from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from faults.hosts.namespaces import SSHD, START_SECONDS, attend, child_of, has_netem, hold, in_network

ROOT = Path(__file__).resolve().parents[2]
LONG_WIRE = Path(__file__).with_name("long_wire.py")
# What a host gets of the project.
CODE = ("recognition", "common", "train.py", "train_parall.py", "sample_config.py", "scripts", "bench")
NETWORK = "10.77.0"
# Tiny runs of several processes on the few processors of this machine want one thread each.
ENVIRONMENT = ("OMP_NUM_THREADS=1", "OPENBLAS_NUM_THREADS=1", "NUMBA_NUM_THREADS=1")
_OF_THE_HOST = ("sshd: ", "sleep 1000000", "rpcbind", "ganesha.nfsd ", "fuse-nfs ", "wireguard-go ")
# The first process of a host: it collects orphans, and all others of the host end with it.
_INIT = """
set -e
ip link set lo up
mount -t tmpfs none /run; mkdir /run/sshd
mount -t tmpfs none /srv; mkdir -p "$HOST_PROJECT" "$HOST_PROJECT/../models"
mount --bind "$HOST_FILES/../shared" "$HOST_PROJECT/../models"
mkdir -p /root/.ssh; mount -t tmpfs -o mode=700 none /root/.ssh
hostname "$HOST_NAME"
mount --bind "$HOST_FILES/hosts" /etc/hosts
mount --bind "$HOST_FILES/ssh_config" /etc/ssh/ssh_config
set +e
"$HOST_SSHD" -D -e -f "$HOST_FILES/sshd_config" 2> "$HOST_FILES/sshd.log" &
while :; do sleep 1000000 & wait $!; done
"""
_SSHD_CONFIG = """
HostKey {folder}/{name}/host_key
AuthorizedKeysFile {folder}/{name}/authorized_keys
StrictModes no
SetEnv {environment}
UsePAM no
PidFile none
PermitRootLogin prohibit-password
"""
_SSH_CONFIG = """
IdentityFile {folder}/key
UserKnownHostsFile {folder}/known_hosts
"""


class Host:
    """A host. ``pid``: of its first process, as this machine numbers it; ``project``: the trainer's folder there."""

    def __init__(self, name: str, address: str, folder: Path) -> None:
        self.name, self.address, self.files = name, address, folder / name
        self.project = Path("/srv", name, "trainer")
        self.start()

    def start(self) -> None:
        """Switch the host on. Its files are empty, and it has no network yet."""
        self.holder = hold(["bash", "-c", _INIT], HOST_NAME=self.name, HOST_FILES=str(self.files), HOST_SSHD=SSHD,
                            HOST_PROJECT=str(self.project))
        self.pid = child_of(self.holder)

    def entered(self, *command: str) -> list[str]:
        """The command line that runs a command on this host, in its project's folder, with a plain environment."""
        return ["nsenter", "-t", str(self.pid), "-a", f"--wd={self.root}{self.project}", "env", "-i", "HOME=/root",
                "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LANG=C.UTF-8", *ENVIRONMENT, *command]

    @property
    def root(self) -> str:
        """The host's root folder, seen from this machine."""
        return f"/proc/{self.pid}/root"

    def path(self, inside: str | Path) -> Path:
        """A file of the host, seen from this machine. Relative names are below the project."""
        return Path(f"{self.root}{self.project / inside}")

    def begin(self, line: str, **variables: str) -> subprocess.Popen[str]:
        """Start a shell line on this host, with pipes for its output."""
        pairs = [f"{name}={value}" for name, value in variables.items()]
        return subprocess.Popen(self.entered(*pairs, "bash", "-c", line), stdin=subprocess.DEVNULL, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)

    def run(self, line: str, timeout: float = 300, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a shell line on this host to its end; one that takes longer is killed.

        :raises TimeoutError: with its output, if it takes longer than ``timeout`` seconds.
        """
        process = self.begin(line, **variables)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            raise TimeoutError(f"{self.name}: {line}: not done in {timeout:g} s:\n{out}\n{err}") from None
        return subprocess.CompletedProcess(line, process.returncode, out, err)

    def check(self, line: str) -> str:
        """Run a shell line that has to succeed; returns its output."""
        done = self.run(line)
        if done.returncode:
            raise RuntimeError(f"{self.name}: {line}: status {done.returncode}: {done.stderr}")
        return done.stdout

    def firewall(self, rules: str) -> None:
        """Replace the host's firewall: rules of nft for packets that come in, and after ``|`` that go out."""
        incoming, _, outgoing = rules.partition("|")
        chains = "".join(f"add chain inet bed {hook} {{ type filter hook {hook} priority 0; }}\n"
                         + "".join(f"add rule inet bed {hook} {rule}\n" for rule in text.split(";") if rule.strip())
                         for hook, text in (("input", incoming), ("output", outgoing)))
        subprocess.run(["nsenter", "-t", str(self.pid), "-n", "nft", "-f", "-"], check=True, text=True,
                       input=f"add table inet bed\ndelete table inet bed\nadd table inet bed\n{chains}")

    def network(self, *commands: str) -> None:
        """Run commands of ``ip`` or ``tc`` in the host's network."""
        in_network(self.pid, *commands)

    def processes(self) -> dict[int, str]:
        """The host's processes, with their command lines, but for its own, of which one of ssh may wait long for a
        connection whose other end is gone."""
        space, found = os.readlink(f"/proc/{self.pid}/ns/pid"), {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(path / "ns/pid") == space and int(path.name) != self.pid:
                    found[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:  # it has ended
                continue
        return {pid: line for pid, line in found.items() if line and not line.startswith(_OF_THE_HOST)}

    def kill(self, pid: int, number: int) -> None:
        """Send a signal to one of :meth:`processes`, which may just have ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def stop(self) -> None:
        """End the host with all its processes."""
        _end(self.holder)


class Bed:
    """Hosts ``node1`` ... on one switch. A context: at its end nothing of it is left."""

    def __init__(self, count: int, names: Sequence[str] = ()) -> None:
        """:param names: of the hosts; not given: ``node1`` ..."""
        self.folder = Path(tempfile.mkdtemp(prefix="bed-"))
        self.hosts: dict[str, Host] = {}
        self._long_wires: dict[str, subprocess.Popen[bytes]] = {}
        try:
            self._make(names or [f"node{number}" for number in range(1, count + 1)])
        except BaseException:
            self.close()
            raise

    def _make(self, names: Sequence[str]) -> None:
        addresses = {name: f"{NETWORK}.{number}" for number, name in enumerate(names, 1)}
        _keygen(self.folder / "key")
        (self.folder / "shared").mkdir()
        for name in names:
            files = self.folder / name
            files.mkdir()
            _keygen(files / "host_key")
            shutil.copy(self.folder / "key.pub", files / "authorized_keys")
            # The last one has the file as Debian writes it: its own name leads to an address that no other can reach.
            own = {name: "127.0.1.1"} if name == names[-1] else {}
            lines = [f"{address} {other}\n" for other, address in {**addresses, **own}.items()]
            (files / "hosts").write_text("".join(["127.0.0.1 localhost\n", *lines]))
            (files / "sshd_config").write_text(_SSHD_CONFIG.format(folder=self.folder, name=name,
                                                                   environment=" ".join(ENVIRONMENT)))
            (files / "ssh_config").write_text(_SSH_CONFIG.format(folder=self.folder))
        (self.folder / "known_hosts").write_text("".join(
            f"{name},{address} {(self.folder / name / 'host_key.pub').read_text()}"
            for name, address in addresses.items()))
        self.switch = hold(["sleep", "infinity"])
        self._switch_pid = child_of(self.switch)
        self._in_switch("ip link add switch type bridge", "ip link set switch up")
        for name, address in addresses.items():
            self.hosts[name] = Host(name, address, self.folder)
            self.connect(self.hosts[name])
        self._project = self.folder / "project"  # hosts that are switched on later get the same
        copy_project(ROOT, self._project)
        for host in self.hosts.values():
            self._ready(host)

    def _ready(self, host: Host) -> None:
        self._await_ssh(host)
        copy_project(self._project, host.path("."))
        host.path(".venv").symlink_to(sys.prefix)

    def connect(self, host: Host) -> None:
        """Put a wire between a host and the switch, and give the host its address."""
        wire = f"to-{host.name}"
        subprocess.run(["nsenter", "-t", str(self._switch_pid), "-n", "ip", "link", "delete", wire],
                       stderr=subprocess.DEVNULL)  # of a host that was switched off: the kernel takes its time
        card = f"02:00:00:00:00:{int(host.address.rpartition('.')[2]):02x}"  # the same when it is switched on again
        self._in_switch(f"ip link add {wire} type veth peer name eth0 address {card} netns {host.pid}",
                        f"ip link set {wire} master switch up")
        host.network(f"ip address add {host.address}/24 dev eth0", "ip link set eth0 up")

    def unplug(self, host: Host) -> None:
        """Take the host's wire away, as when its power fails: no packet says that its connections end."""
        self._in_switch(f"ip link set to-{host.name} down")

    def plug(self, host: Host) -> None:
        """Put back the wire that :meth:`unplug` took away."""
        self._in_switch(f"ip link set to-{host.name} up")

    def restart(self, host: Host) -> None:
        """Switch a host on again that was stopped, with a fresh copy of the project."""
        host.start()
        self.connect(host)
        self._ready(host)

    def slow_link(self, host: Host, rate: str = "10gbit", delay: float = 0.0, loss: float = 0.0) -> None:
        """Let packets to and from a host pass in order, at a rate, ``delay`` seconds (+-10 %) later; lose a share."""
        wire, near, far = (f"{end}-{host.name}" for end in ("to", "near", "far"))
        shape = f"root tbf rate {rate} burst 64kb latency 400ms"
        if (delay or loss) and has_netem():
            shape = f"root netem rate {rate} delay {delay}s {delay / 10}s loss {100 * loss}%"
        elif delay or loss:
            self._in_switch(f"ip link set {wire} nomaster", f"ip link add {far} type veth peer name {near}",
                            f"ip link set {near} up", f"ip link set {far} master switch up")
            self._long_wires[host.name] = attend(self._switch_pid, [
                sys.executable, "-I", str(LONG_WIRE), wire, near, str(delay), str(delay / 10), str(loss)])
        self._in_switch(f"tc qdisc replace dev {wire} {shape}")
        host.network(f"tc qdisc replace dev eth0 {shape}")

    def full_speed(self, host: Host) -> None:
        """Take back what :meth:`slow_link` did."""
        if host.name in self._long_wires:
            _end(self._long_wires.pop(host.name))
            self._in_switch(f"ip link delete far-{host.name}", f"ip link set to-{host.name} master switch")
        self._in_switch(f"tc qdisc del dev to-{host.name} root")
        host.network("tc qdisc del dev eth0 root")

    def _in_switch(self, *commands: str) -> None:
        in_network(self._switch_pid, *commands)

    def _await_ssh(self, host: Host) -> None:
        end = time.monotonic() + START_SECONDS
        while host.run(f"ssh -o BatchMode=yes {host.address} true").returncode:
            if time.monotonic() > end:
                raise RuntimeError(f"{host.name}: no ssh: {(host.files / 'sshd.log').read_text()}")
            time.sleep(0.1)

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def __iter__(self) -> Iterator[Host]:
        return iter(self.hosts.values())

    def close(self) -> None:
        """End all hosts and remove their files."""
        for host in self:
            host.stop()
        for program in [*self._long_wires.values(), *([self.switch] if hasattr(self, "switch") else [])]:
            _end(program)
        shutil.rmtree(self.folder)

    def __enter__(self) -> Bed:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def _end(program: subprocess.Popen[bytes]) -> None:
    program.kill()
    program.communicate()


def _keygen(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "bed", "-f", str(path)], check=True)


def copy_project(source: Path, target: Path) -> None:
    """Copy what a host needs of the project."""
    target.mkdir(exist_ok=True)
    for name in CODE:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source / name, target / name)
