"""SLURM's commands as small scripts that note what they are asked and say what they are told."""

import os
from pathlib import Path

import pytest

# Each notes its words in calls.txt. sbatch keeps the scripts; squeue and sacct print a file.
_SCRIPTS = {
    "sbatch": """
        if [ -e {here}/refusal ]; then cat {here}/refusal >&2; exit 1; fi
        number=$(($(cat {here}/number) + 1)); echo $number > {here}/number
        cp "$1" {here}/$number.sh; echo "Submitted batch job $number"
    """,
    "srun": 'for word; do echo "$word"; done > {here}/srun.txt; exit ${{FAKE_CODE:-0}}',
    "squeue": "cat {here}/squeue.txt",
    "sacct": "cat {here}/sacct.txt",
    "scancel": "",
    "scontrol": "exit 1",
}


class FakeSlurm:
    """Scripts in a folder that is first on PATH.

    Args:
        folder: for them and what they note.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True)
        for name, text in _SCRIPTS.items():
            script = self.bin / name
            body = text.format(here=folder)
            script.write_text(f'#!/bin/sh\necho "{name} $*" >> {folder}/calls.txt\n{body}\n')
            script.chmod(0o755)
        (folder / "number").write_text("100")
        (folder / "calls.txt").touch()
        self.queue({})
        self.accounts({})

    @property
    def path(self) -> str:
        """What PATH is to be."""
        return f"{self.bin}{os.pathsep}{os.environ['PATH']}"

    def queue(self, jobs: dict[str, str]) -> None:
        """What squeue says: by id, ``"PENDING"`` or ``"PENDING|Dependency"``."""
        lines = [f"{job}|{s}{'' if '|' in s else '|None'}\n" for job, s in jobs.items()]
        (self.folder / "squeue.txt").write_text("".join(lines))

    def accounts(self, jobs: dict[str, str]) -> None:
        """What sacct says, by id."""
        lines = [f"{job}|{state}\n" for job, state in jobs.items()]
        (self.folder / "sacct.txt").write_text("".join(lines))

    def refuse(self, message: str) -> None:
        """What sbatch says from now on."""
        (self.folder / "refusal").write_text(message)

    def scripts(self) -> dict[str, str]:
        """The scripts of submitted jobs, by id."""
        return {path.stem: path.read_text() for path in sorted(self.folder.glob("*.sh"))}

    def options(self, job: str) -> dict[str, str]:
        """The options of a submitted job, without quotes."""
        prefix = "#SBATCH --"
        lines = self.scripts()[job].splitlines()
        found = (line[len(prefix) :].partition("=") for line in lines if line.startswith(prefix))
        return {name: value.strip("'") for name, _, value in found}

    def calls(self, command: str) -> list[str]:
        """What a command was asked, in order."""
        lines = (self.folder / "calls.txt").read_text().splitlines()
        return [line.partition(" ")[2] for line in lines if line.split()[0] == command]


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """On PATH for as long as a test runs; import it where it is used."""
    fake = FakeSlurm(tmp_path / "slurm")
    monkeypatch.setenv("PATH", fake.path)
    return fake
