"""``mmssl doctor`` on a sound machine, and on machines where something is broken."""

import json
import os
import platform
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import MMSSL, mmssl
from strangers import install_plugin, with_path

from mmssl.doctor import AREAS, Finding, cuda, examination, machine, media
from mmssl.doctor.examination import examine

# Python runs it as it starts, in every process of a test.
SHIM = "sitecustomize.py"


def look(
    area: str, monkeypatch: pytest.MonkeyPatch, environ: Mapping[str, str], time_limit: float = 60
) -> dict[str, Finding]:
    """What is found in an area, by what was looked at."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    ((found_in, findings),) = examine([area], time_limit)
    assert found_in == area
    return {finding.what: finding for finding in findings}


def test_a_sound_machine(tmp_path: Path) -> None:
    done = mmssl("doctor", "--json", cwd=tmp_path)
    found = {each["what"]: each for each in json.loads(done.stdout)}
    assert [w for w, each in found.items() if each["status"] == "problem"] == []
    assert (done.returncode, done.stderr) == (0, "")
    assert found["python"]["found"].startswith(platform.python_version())
    assert found["torch"]["found"] == torch.__version__
    assert found["plugin mmssl_clustering"]["status"] == "ok"
    assert found["gloo"]["found"].startswith("2 processes summed")
    assert "decoded the same" in found["decoder"]["found"]
    assert "k-means on" in found["faiss"]["found"]
    assert found["locks"]["status"] == "ok"
    assert {each["status"] for each in found.values()} <= {"ok", "warning"}
    assert all(each["advice"] for each in found.values() if each["status"] != "ok")
    assert os.listdir(tmp_path) == []  # nothing stays


def test_what_a_person_reads_and_the_exit_code(tmp_path: Path) -> None:
    """Without faiss, and with a plugin that is broken."""
    (tmp_path / SHIM).write_text(
        "import sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'faiss': raise ImportError('libfaiss.so: cannot open')\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    install_plugin(tmp_path, "torn", "import no_such_dependency")
    done = subprocess.run(
        [MMSSL, "doctor"], cwd=tmp_path, env=with_path(tmp_path), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("problem  faiss  "))
    assert lines[at].endswith("does not load: ImportError: libfaiss.so: cannot open")
    assert lines[at + 1].strip().startswith("-> pip install faiss-gpu")
    (torn,) = [line for line in lines if "plugin torn" in line]
    assert torn.startswith("warning")
    assert "No module named 'no_such_dependency'" in torn
    assert lines[-1].startswith("runs will fail before this is mended: ")
    assert "faiss" in lines[-1]
    assert "torn" not in lines[-1]


def script(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_slurm_that_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = look("slurm", monkeypatch, {"PATH": str(tmp_path)})
    assert found["SLURM"].status == "ok"
    assert found["SLURM"].found.startswith("not here")


def test_slurm_that_answers_and_slurm_that_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sbatch", "srun"):
        script(tmp_path, name, "exit 0")
    script(tmp_path, "sinfo", "echo 'gpu* up 12 gpu:a100:8'; echo 'cpu down 3 (null)'")
    script(tmp_path, "squeue", "echo slurm_load_jobs: Unable to contact controller >&2; exit 1")
    found = look("slurm", monkeypatch, {"PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert found["sinfo"].status == "ok"
    assert found["sinfo"].found == "gpu*: 12 nodes with gpu:a100:8; cpu: 3 nodes down"
    assert found["squeue"].status == "warning"
    assert "Unable to contact controller" in found["squeue"].found
    assert "--launch inline" in found["squeue"].advice


def test_a_command_that_hangs_is_given_up_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sbatch", "srun", "squeue"):
        script(tmp_path, name, "exit 0")
    script(tmp_path, "sinfo", f"echo $$ > {tmp_path}/pid; exec sleep 600")
    found = look("slurm", monkeypatch, {"PATH": f"{tmp_path}:/usr/bin:/bin"}, time_limit=3)
    assert found["sinfo"].status == "problem"
    assert "no answer within 3 s" in found["sinfo"].found
    pid = int((tmp_path / "pid").read_text())
    end = time.monotonic() + 60
    while time.monotonic() < end and _runs(pid):
        time.sleep(0.05)
    assert not _runs(pid)


def test_a_process_that_cannot_be_killed_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that waits for a dead disk: the examination ends, and what it said is kept."""
    for name in ("sbatch", "srun", "squeue"):
        script(tmp_path, name, "exit 0")
    script(tmp_path, "sinfo", f"echo $PPID > {tmp_path}/pid; exec sleep 600")
    monkeypatch.setattr(os, "killpg", lambda *_: None)
    monkeypatch.setattr(examination, "_GRACE", 0.2)
    try:
        found = look("slurm", monkeypatch, {"PATH": f"{tmp_path}:/usr/bin:/bin"}, time_limit=4)
    finally:
        monkeypatch.undo()
        if (tmp_path / "pid").exists():
            os.killpg(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    assert found["sinfo"].found == "no answer within 4 s"


def test_modules_of_the_folder_are_not_taken_for_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('json of this folder')")
    monkeypatch.chdir(tmp_path)
    assert look("machine", monkeypatch, {})["cores"].found


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_library_that_kills_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text(
        "import os, signal\nprint('noise')\nos.kill(os.getpid(), signal.SIGSEGV)"
    )
    found = look("cuda", monkeypatch, {"PYTHONPATH": with_path(tmp_path)["PYTHONPATH"]})
    assert found["import torch"].status == "problem"
    assert found["import torch"].found.startswith("crashed (SIGSEGV)")
    assert found["import torch"].advice


@pytest.mark.parametrize(
    ("shim", "what", "status", "words", "advice"),
    [
        (
            "real = os.open\n"
            "def refuse(path, *more, **named):\n"
            "    if '.doctor-' in str(path): raise OSError(errno.EROFS, 'Read-only file system')\n"
            "    return real(path, *more, **named)\n"
            "os.open = refuse\n",
            "disk of runs",
            "problem",
            "cannot be written: Read-only file system",
            "runs=",
        ),
        (
            "import collections\n"
            "Room = collections.namedtuple('Room', 'f_bavail f_frsize')\n"
            "os.statvfs = lambda path: Room(10, 4096)\n",
            "disk of cache",
            "problem",
            "0 MB free",
            "MMSSL_CACHE",
        ),
        (
            "import fcntl\nfcntl.lockf = lambda *arguments: None\n",
            "locks",
            "warning",
            "do not hold",
            "twice",
        ),
        (
            "real = os.read\nos.read = lambda file, size: real(file, size)[:-1]\n",
            "disk of runs",
            "problem",
            "not what was written",
            "runs=",
        ),
    ],
)
def test_disks(
    shim: str,
    what: str,
    status: str,
    words: str,
    advice: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / SHIM).write_text("import errno, os\n" + shim)
    monkeypatch.chdir(tmp_path)
    found = look("disk", monkeypatch, {"PYTHONPATH": with_path(tmp_path)["PYTHONPATH"]})
    assert found[what].status == status
    assert words in found[what].found
    assert advice in found[what].advice
    assert os.listdir(tmp_path) in ([SHIM], ["__pycache__", SHIM], [SHIM, "__pycache__"])


@pytest.mark.parametrize("call", ["fsync", "waitpid"])
def test_a_disk_that_does_not_answer_keeps_no_file(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The examination is killed while it writes, or while it locks."""
    for folder in ("python", "work"):
        (tmp_path / folder).mkdir()
    left = tmp_path / "work" / f".doctor-{'0f' * 8}"  # by a doctor before
    left.touch()
    os.utime(left, (0, 0))
    shim = f"import os, time\nos.{call} = lambda *arguments: time.sleep(600)\n"
    (tmp_path / "python" / SHIM).write_text(shim)
    monkeypatch.chdir(tmp_path / "work")
    path = with_path(tmp_path / "python")["PYTHONPATH"]
    environ = {"PYTHONPATH": path, "MMSSL_CACHE": str(tmp_path / "work")}
    found = look("disk", monkeypatch, environ, time_limit=8)
    assert "no answer within 8 s" in [each.found for each in found.values()]
    assert os.listdir() == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_runs_that_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir(mode=0o555)
    monkeypatch.chdir(tmp_path)
    found = look("disk", monkeypatch, {})
    assert found["disk of runs"].status == "problem"


def test_the_memory_that_a_job_may_use(tmp_path: Path) -> None:
    """Limits lie where SLURM sets them: of a job, above the step and the task."""

    def group(path: str, limit: str, used: int, copies: int) -> None:
        folder = tmp_path / "cgroup" / path
        folder.mkdir()
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon {used}\nfile 7\ninactive_file {copies}\n")

    (tmp_path / "cgroup").mkdir()
    (tmp_path / "cgroup/memory.stat").write_text("anon 1\n")  # a root has no limit
    group("slurm", "9000", 8900, 0)
    group("slurm/job_7", "4000", 1500, 500)
    group("slurm/job_7/step_0", "max", 1500, 500)
    mine = tmp_path / "mine"

    def found(line: str) -> tuple[int | None, int]:
        mine.write_text(f"1:cpu:/elsewhere\n{line}\n")
        return machine._of_this_job(tmp_path / "cgroup", mine)

    assert found("0::/slurm/job_7/step_0") == (4000, 100)  # others take what is around it
    (tmp_path / "cgroup/slurm/memory.current").write_text("2000")
    assert found("0::/slurm/job_7/step_0") == (4000, 3000)
    assert found("0::/slurm/job_7/step_0/task_that_is_not_seen") == (4000, 3000)
    assert found("0::/slurm") == (9000, 7000)
    assert found("0::/") == (None, 0)
    assert found("0::/../../slurm/job_7") == (None, 0)
    assert found("4:memory:/slurm") == (None, 0)
    mine.unlink()
    assert machine._of_this_job(tmp_path / "cgroup", mine) == (None, 0)
    # As a container sees its own.
    (tmp_path / "cgroup/memory.max").write_text("5000")
    assert machine._of_this_job(tmp_path / "cgroup", mine) == (5000, 5000)


def test_little_shared_memory_and_few_open_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / SHIM).write_text(
        "import os, resource, collections\n"
        "os.statvfs = lambda path: collections.namedtuple('S', 'f_bavail f_frsize')(16384, 4096)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, 4096))\n"
        "os.sched_getaffinity = lambda process: {0}\n"
    )
    found = look("machine", monkeypatch, {"PYTHONPATH": with_path(tmp_path)["PYTHONPATH"]})
    assert found["shared memory"].status == "warning"
    assert found["shared memory"].found == "64 MB free in /dev/shm"
    assert "--shm-size" in found["shared memory"].advice
    assert (found["open files"].found, found["open files"].advice) == (
        "256 at once",
        "ulimit -n 4096",
    )
    assert found["cores"].status == "warning"
    assert "data.workers=1" in found["cores"].advice


def test_processes_that_do_not_find_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = look("ranks", monkeypatch, {"GLOO_SOCKET_IFNAME": "nowhere0"})
    assert found["gloo"].status == "problem"
    assert "GLOO_SOCKET_IFNAME" in found["gloo"].advice


def test_a_package_that_is_old_and_one_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / SHIM).write_text(
        "import importlib.metadata as m\n"
        "real = m.version\n"
        "def version(name):\n"
        "    if name == 'timm': return '0.1'\n"
        "    if name == 'submitit': raise m.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "m.version = version\n"
    )
    found = look("packages", monkeypatch, {"PYTHONPATH": with_path(tmp_path)["PYTHONPATH"]})
    assert found["timm"].status == "problem"
    assert found["timm"].found == "0.1, which mmssl was not made for"
    assert found["timm"].advice.startswith("pip install 'timm")
    assert (found["submitit"].status, found["submitit"].found) == ("problem", "not installed")


@pytest.mark.parametrize("wrong", ["pictures", "sound"])
def test_a_decoder_that_decodes_something_else(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = media._decode

    def decode(data: bytes) -> tuple[np.ndarray, np.ndarray]:
        seen, heard = right(data)
        return (seen[::-1], heard) if wrong == "pictures" else (seen, heard[::2].repeat(4))

    monkeypatch.setattr(media, "_decode", decode)
    *_, finding = media.look()
    assert isinstance(finding, Finding)
    assert finding.status == "problem"
    assert finding.found.startswith(f"{wrong} come out otherwise")


def test_a_gpu_that_cannot_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)

    def fail(index: int) -> str:
        raise RuntimeError("CUDA error: no kernel image is available for execution\nmore")

    monkeypatch.setattr(torch.cuda, "get_device_name", fail)
    *_, finding = cuda.look()
    assert finding == Finding(
        "GPU 0",
        "problem",
        "CUDA error: no kernel image is available for execution",
        "this torch may not be built for this GPU or driver (pytorch.org); device=cpu works",
    )


def test_a_gpu_that_computes_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is played by the CPU, and its product by something else."""
    real = torch.arange
    monkeypatch.setattr(
        torch, "arange", lambda end, device: real(end) if "cuda" in device else None
    )
    for name, value in {
        "get_device_name": "Toy",
        "get_device_capability": (9, 0),
        "mem_get_info": (8e9, 8e9),
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda index, value=value: value)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert cuda._device(0).status == "ok"
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: tensor + torch.rand(()))
    assert cuda._device(0).status == "problem"


def test_every_module_is_an_area() -> None:
    folder = Path(examination.__file__).parent
    there = {path.stem for path in folder.glob("*.py")} - {"__init__", "examination"}
    assert there == set(AREAS)
