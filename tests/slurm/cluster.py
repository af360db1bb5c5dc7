"""A real SLURM of two nodes, with accounting, on this one machine: for tests, and by hand.

    python tests/slurm/cluster.py up      # prints what to export
    python tests/slurm/cluster.py down

It needs root and Debian's packages (see README.md), neither systemd nor containers. Everything
lies in one folder, every daemon is this user's own process on ports of its own, and a cluster
that is down keeps nothing but its configuration and logs.
"""

import argparse
import contextlib
import ctypes
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from types import TracebackType

# A machine's two nodes may promise more than it has: nothing is bound to cores, no memory is kept.
CPUS, MEMORY_MB, GPUS = 4, 8000, 2

CONFIGURATION = """\
ClusterName=mmssl
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={slurmctld}
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until its old credential has expired: by default that takes minutes.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/spool/slurmctld.pid
SlurmdPidFile={folder}/spool/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=500
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=5
# A lost node is noticed within half a minute, and serves again as soon as it is back.
SlurmdTimeout=10
MessageTimeout=7
ReturnToService=2
KillWait=3
JobRequeue=1
# Finished jobs stay visible to squeue and scontrol.
MinJobAge=3600
FirstJobId={first_job}
GresTypes=gpu
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={slurmdbd}
AccountingStoragePass={folder}/munge.socket
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=DEFAULT Nodes=ALL DefaultTime=5 MaxTime=INFINITE State=UP PreemptMode=OFF
PartitionName=test PriorityTier=1 Default=YES
PartitionName=low PriorityTier=1 Default=NO PreemptMode=REQUEUE GraceTime=10
PartitionName=high PriorityTier=2 Default=NO
"""

DATABASE_CONFIGURATION = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={slurmdbd}
SlurmUser=root
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/spool/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={mariadbd}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
"""

# A node's own host name, and addresses for all names, which torch.distributed looks up.
OWN_NAMES = ["unshare", "--mount", "--uts", "bash", "-c"]
OWN_NAMES += ['hostname "$0" && mount --bind "$1" /etc/hosts && shift && exec "$@"']

# Somebody has to wait for orphans. (Without -m, bash would have all jobs ignore SIGINT.)
REAPING = ["bash", "-m", "-c", '"$0" "$@" & wait']


class Cluster:
    """Two nodes, ``cluster.nodes``, in the partitions ``test``, ``low`` and ``high``.

    Jobs of ``high`` preempt those of ``low``, which have 10 s to end before they are requeued. Each
    node has 4 CPUs, 8 GB and 2 GPUs, none of which is real. Nodes have host names of their own,
    ``n1`` and ``n2``, where this machine allows namespaces; else they are addresses.

    Args:
        folder: for everything; what an earlier cluster left there is replaced.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.namespaces = _succeeds(["unshare", "--mount", "--uts", "true"], os.environ)
        self.nodes = ("n1", "n2") if self.namespaces else ("127.0.0.11", "127.0.0.12")
        outer = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH"))}
        self.environment = {
            **outer,
            "PATH": f"{outer.get('PATH', os.defpath)}:/usr/sbin:/sbin",
            "SLURM_CONF": str(self.folder / "slurm.conf"),
        }
        self._processes: list[subprocess.Popen[bytes]] = []  # so that none becomes a zombie

    def start(self) -> None:
        """Bring everything up; both nodes are idle then.

        Raises:
            RuntimeError: a daemon ended, or was not ready in time; with the end of its log.
            FileExistsError: the folder is not one of a cluster.
        """
        if self._alive("slurmctld"):
            raise FileExistsError(f"a cluster is up in {self.folder}")
        if (self.folder / "slurm.conf").exists():
            self.stop()
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True)
        for name in ("log", "pids", "spool", "state"):
            (self.folder / name).mkdir()
        ports = dict(
            zip(("slurmctld", "slurmdbd", "mariadbd", *self.nodes), _ports(5), strict=True)
        )
        self._configure(ports)
        try:
            self._start_munged()
            self._start_mariadbd(ports["mariadbd"])
            self._start("slurmdbd", ["slurmdbd", "-D"], lambda: _answers(ports["slurmdbd"]))
            self._start("slurmctld", ["slurmctld", "-D"], lambda: _answers(ports["slurmctld"]))
            for node in self.nodes:
                self._start_slurmd(node)
            for node in self.nodes:
                self.bring_node_up(node)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Kill every daemon and all that jobs left on the nodes. Fine if nothing is up."""
        for name in (*self.nodes, "slurmctld", "slurmdbd", "mariadbd", "munged"):
            self._kill(name)
        shutil.rmtree(self.folder / "database", ignore_errors=True)

    def __enter__(self) -> "Cluster":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    # What tests do with it

    def run(self, *command: str, seconds: float = 60) -> str:
        """What a command, such as ``srun`` or ``sacct``, prints to stdout, without blank ends.

        Raises:
            RuntimeError: it failed; with what it printed to stderr.
            subprocess.TimeoutExpired: it took longer.
        """
        done = subprocess.run(
            command,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr}")
        return done.stdout.strip()

    def submit(self, script: Path, *options: str) -> str:
        """``sbatch`` with its options; the job's id. The job writes beside the script."""
        output = f"--output={script.parent}/%j.out"
        return self.run("sbatch", "--parsable", output, *options, str(script))

    def state(self, job: str) -> str:
        """A job's state as the controller has it now, such as ``RUNNING`` or ``NODE_FAIL``."""
        return self.run("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T")

    def restarts(self, job: str) -> int:
        """How often a job was requeued and ran again."""
        record = self.run("scontrol", "--oneliner", "show", "job", job)
        return int(dict(f.split("=", 1) for f in record.split() if "=" in f)["Restarts"])

    def wait_for_state(self, job: str, states: str | Collection[str], seconds: float) -> str:
        """Watch a job until it is in one of the states; which.

        Raises:
            TimeoutError: it was not; with all that the controller knows of the job.
        """
        wanted = {states} if isinstance(states, str) else set(states)
        state = ""

        def seen() -> bool:
            nonlocal state
            state = self.state(job)
            return state in wanted

        if not _wait(seen, seconds):
            record = self.run("scontrol", "show", "job", job)
            raise TimeoutError(f"not {wanted} within {seconds} s:\n{record}")
        return state

    @contextlib.contextmanager
    def configured(self, line: str) -> Iterator[None]:
        """For a while, a line more in the controller's slurm.conf."""
        path = self.folder / "slurm.conf"
        before = path.read_text()
        path.write_text(f"{before}{line}\n")
        try:
            self.run("scontrol", "reconfigure")
            yield
        finally:
            path.write_text(before)
            self.run("scontrol", "reconfigure")

    def requeue(self, job: str) -> None:
        """``scontrol requeue``: what an administrator, or a user, does to a running job."""
        self.run("scontrol", "requeue", job)

    def take_node_down(self, node: str) -> None:
        """As if its power were cut: its daemon and all processes of all jobs there die at once."""
        self._kill(node)

    def bring_node_up(self, node: str, seconds: float = 30) -> None:
        """Start a node's daemon where it is down, and wait until the node serves jobs.

        Raises:
            RuntimeError: it does not in time; with the end of the controller's log.
        """
        if not self._alive(node):
            self._start_slurmd(node)
        if not _wait(lambda: self._node_state(node) in ("idle", "mixed", "allocated"), seconds):
            raise RuntimeError(f"{node} is {self._node_state(node)}\n{self._log('slurmctld')}")

    def cancel_all(self, seconds: float = 60) -> None:
        """Cancel all jobs, and wait until none is left on any node, not even in its last moments.

        Raises:
            TimeoutError: some were left; with their list.
        """

        # SLURM may take a moment to see a job that is just being requeued, hence again and again.
        def none_left() -> bool:
            left = self.run("squeue", "--noheader", "--format=%i")
            if left:
                self.run("scancel", "--quiet", "--user=root")
            return not left

        if not _wait(none_left, seconds):
            raise TimeoutError(f"jobs do not end:\n{self.run('squeue', '--long')}")

    def tidy(self) -> None:
        """No job is left, and both nodes are idle."""
        self.cancel_all()
        for node in self.nodes:
            self.bring_node_up(node)

    # How it is made

    def _configure(self, ports: Mapping[str, int]) -> None:
        host = socket.gethostname().split(".")[0]
        addresses = {n: "127.0.0.1" if self.namespaces else n for n in self.nodes}
        nodes = [
            f"NodeName={node} NodeAddr={addresses[node]} Port={ports[node]} CPUs={CPUS}"
            f" RealMemory={MEMORY_MB} Gres=gpu:{GPUS}"
            for node in self.nodes
        ]
        values = {
            **{name: str(port) for name, port in ports.items() if name not in self.nodes},
            "folder": str(self.folder),
            "host": host,
            "nodes": "\n".join(nodes),
            # submitit finds results by job id: those of an earlier cluster must not be met again.
            "first_job": str(int(time.time() - 1.7e9) // 10),
        }
        (self.folder / "slurm.conf").write_text(CONFIGURATION.format_map(values))
        database = self.folder / "slurmdbd.conf"
        database.touch(mode=0o600)  # slurmdbd insists
        database.write_text(DATABASE_CONFIGURATION.format_map(values))
        # A GPU is a device file that exists, and any will do.
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
        # cgroups are not used, but a plugin is loaded, and only v1's loads everywhere.
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        hosts = [f"127.0.0.1 localhost {host}", *(f"{a} {n}" for n, a in addresses.items())]
        (self.folder / "hosts").write_text("\n".join(hosts) + "\n")

    def _start_munged(self) -> None:
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(random.SystemRandom().randbytes(1024))
        munge = f"--socket={self.folder}/munge.socket"
        command = [
            *("munged", "--foreground", "--force", munge, f"--key-file={key}"),
            f"--pid-file={self.folder}/spool/munged.pid",
            f"--seed-file={self.folder}/state/munged.seed",
        ]
        client = ["munge", "--no-input", munge]
        self._start("munged", command, lambda: _succeeds(client, self.environment))

    def _start_mariadbd(self, port: int) -> None:
        data, sock = self.folder / "database", self.folder / "mariadbd.socket"
        self.run(
            *("mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}"),
            *("--auth-root-authentication-method=normal", "--skip-name-resolve", "--skip-test-db"),
        )
        command = [
            *("mariadbd", "--no-defaults", "--user=root", f"--datadir={data}", f"--socket={sock}"),
            *("--bind-address=127.0.0.1", f"--port={port}", "--skip-name-resolve"),
            f"--pid-file={self.folder}/spool/mariadbd.pid",
            # slurmdbd asks for the longer wait; nothing here has to outlive a crash.
            *("--innodb-lock-wait-timeout=900", "--innodb-flush-log-at-trx-commit=0"),
            "--innodb-log-file-size=16M",
        ]
        sql = ["mariadb", "--no-defaults", f"--socket={sock}", "--user=root", "--execute"]
        ready = [*sql, "select 1"]
        self._start("mariadbd", command, lambda: _succeeds(ready, self.environment))
        self.run(
            *sql,
            "create user slurm@'127.0.0.1' identified by 'slurm';"
            " grant all on slurm.* to slurm@'127.0.0.1'",
        )

    def _start_slurmd(self, node: str) -> None:
        (self.folder / "spool" / node).mkdir(exist_ok=True)
        command = [*REAPING, "slurmd", "-D", "-N", node]
        if self.namespaces:
            command = [*OWN_NAMES, node, str(self.folder / "hosts"), *command]
        self._start(node, command, lambda: True)

    def _start(self, name: str, command: list[str], ready: Callable[[], bool]) -> None:
        """Start a daemon in the foreground, in a session of its own, and wait until it is ready."""
        with open(self.folder / "log" / f"{name}.out", "ab") as out:
            process = subprocess.Popen(
                command,
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_adopt_orphans,
            )
        self._processes.append(process)
        (self.folder / "pids" / name).write_text(str(process.pid))
        if not _wait(lambda: process.poll() is not None or ready(), 30):
            raise RuntimeError(f"{name} is not ready\n{self._log(name)}")
        if process.poll() is not None:
            raise RuntimeError(f"{name} ended with {process.poll()}\n{self._log(name)}")

    def _pid(self, name: str) -> int | None:
        """Of a daemon of this cluster that lives: its number may be another's by now."""
        try:
            pid = int((self.folder / "pids" / name).read_text())
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):  # never started, or gone
            return None
        ours = f"SLURM_CONF={self.folder}/slurm.conf".encode()
        return pid if ours in environment else None  # a zombie has no environment

    def _alive(self, name: str) -> bool:
        return self._pid(name) is not None

    def _kill(self, name: str) -> None:
        """Freeze a daemon and all its descendants, then kill them: none can report the others."""
        pid = self._pid(name)
        if pid is None:
            return
        # Frozen from the top down, as a parent that sees its child stop may end. Killed from the
        # bottom up, as the kernel wakes the frozen children of one that dies.
        frozen: list[int] = []
        while more := [process for process in _family(pid) if process not in frozen]:
            for process in more:
                _send(process, signal.SIGSTOP)
            frozen += more
        for process in reversed(frozen):
            _send(process, signal.SIGKILL)
        for child in self._processes:
            if child.pid == pid:
                child.wait()
        if not _wait(lambda: not self._alive(name), 10):
            raise RuntimeError(f"{name} outlives a kill -9")

    def _node_state(self, node: str) -> str:
        return self.run("sinfo", "--noheader", "--Node", f"--nodes={node}", "--format=%T").split()[
            0
        ]

    def _log(self, name: str) -> str:
        """The last lines of a daemon's logs."""
        logs = sorted(self.folder.glob(f"log/*{name}.*"))
        return "\n".join(
            f"{path}:\n" + "\n".join(path.read_text(errors="replace").splitlines()[-20:])
            for path in logs
        )


def absent() -> list[str]:
    """What a cluster needs and this machine lacks; an empty list where it can be started."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    commands = ("slurmctld", "slurmd", "slurmdbd", "srun", "munged", "mariadbd", "mariadb")
    lacking = [command for command in commands if shutil.which(command, path=path) is None]
    return lacking if os.geteuid() == 0 else [*lacking, "root"]


def _adopt_orphans() -> None:
    """Make a process the parent of all whose parents end: a node's processes stay its own.

    SLURM lets go of the processes that run a job's steps, so that they outlive the daemon. Here
    they must not: a node that dies takes them along.
    """
    set_child_subreaper = 36
    ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)


def _family(pid: int) -> list[int]:
    """A process and all its descendants, parents before children."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has gone meanwhile
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    family = [pid]
    for member in family:
        family += children.get(member, [])
    return family


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _wait(seen: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not seen():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _succeeds(command: list[str], environment: Mapping[str, str]) -> bool:
    quiet = subprocess.DEVNULL
    return not subprocess.run(
        command, env=environment, stdin=quiet, stdout=quiet, stderr=quiet
    ).returncode


def _ports(count: int) -> list[int]:
    """Ports that are free now, and that no connection gets by chance while a node is down."""
    free: list[int] = []
    while len(free) < count:
        port = random.SystemRandom().randrange(10_000, 30_000)
        with socket.socket() as trial, contextlib.suppress(OSError):
            trial.bind(("127.0.0.1", port))
            if port not in free:
                free.append(port)
    return free


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _main() -> None:
    parser = argparse.ArgumentParser(description="Bring a two-node SLURM up or down.")
    parser.add_argument("action", choices=["up", "down"])
    default = Path(tempfile.gettempdir()) / "mmssl-slurm"
    parser.add_argument("--folder", type=Path, default=default, help=f"default: {default}")
    options = parser.parse_args()
    if lacking := absent():
        sys.exit(f"a SLURM cluster needs {', '.join(lacking)}: see tests/slurm/README.md")
    cluster = Cluster(options.folder)
    if options.action == "down":
        cluster.stop()
        return
    try:
        cluster.start()
    except (FileExistsError, RuntimeError) as error:
        sys.exit(str(error))
    print(f"export SLURM_CONF={cluster.environment['SLURM_CONF']}")
    if shutil.which("srun") is None:
        print("export PATH=$PATH:/usr/sbin:/sbin")


if __name__ == "__main__":
    _main()
