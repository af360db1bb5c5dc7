"""Runs the areas, each in a process of its own, several at once."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from importlib import import_module
from time import monotonic

from mmssl.doctor import Area, Doing, Finding
from mmssl.errors import one_line

#: Seconds after which an area is given up: importing torch from a cold network disk takes its time.
TIME_LIMIT = 60.0

# Seconds that a process which was killed is waited for.
_GRACE = 2.0

#: Looked at together: most of the time goes into imports.
_AT_ONCE = 4


def examine(
    areas: Sequence[str], time_limit: float = TIME_LIMIT
) -> Iterator[tuple[str, list[Finding]]]:
    """Look at areas; each is yielded when it is done, the first to be done first."""
    stop = threading.Event()
    pool = ThreadPoolExecutor(_AT_ONCE)
    try:
        work = {pool.submit(_in_a_process, area, time_limit, stop): area for area in areas}
        for done in as_completed(work):
            yield work[done], done.result()
    finally:
        stop.set()  # whoever asked has gone: Ctrl-C
        pool.shutdown(cancel_futures=True)


def _in_a_process(area: str, time_limit: float, stop: threading.Event) -> list[Finding]:
    """What a process finds that does nothing else, and why it ended if it did not finish."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "mmssl.doctor.examination", area],  # -P: not from this folder
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # so that what it has started ends with it
    )
    ended = ""
    begun = monotonic()
    while True:
        try:
            out, err = process.communicate(timeout=0.2)
            break
        except subprocess.TimeoutExpired as error:
            waited = monotonic() - begun
            if (waited > time_limit or stop.is_set()) and not ended:
                ended = f"no answer within {time_limit:g} s"
                time_limit = waited
                os.killpg(process.pid, signal.SIGKILL)
            if ended and waited > time_limit + _GRACE:  # a dead disk's cannot even be killed
                out, err = (error.output or b"").decode(errors="replace"), ""
                break
    found: list[Finding] = []
    doing = f"the examination of {area}"
    finished = False
    for line in out.splitlines():
        try:
            said = json.loads(line)
            finished = finished or said == {"finished": True}
            if "status" in said:
                found.append(Finding(**said))
            elif "what" in said:
                doing = said["what"]
        except (ValueError, TypeError):  # a library that prints
            continue
    if finished:
        return found
    if not ended:
        code = process.returncode
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"exit code {code}"
        last = one_line((err.strip().splitlines() or [""])[-1])
        ended = f"crashed ({name})" + (f": {last}" if last else "")
    return [*found, Finding(doing, "problem", ended, _ADVICE.get(area, ""))]


_ADVICE = {
    "cuda": "driver and torch may not fit: compare nvidia-smi with python -c 'import torch'; "
    "device=cpu works without",
    "slurm": "ask whoever runs the cluster; without SLURM there are --launch inline and local",
    "disk": "the file system does not answer: set runs=... and MMSSL_CACHE to another one",
    "plugins": "uninstall the plugin that was installed last",
}


def _say(said: dict[str, object], file: int) -> None:
    os.write(file, (json.dumps(said) + "\n").encode())


def main(area: str) -> None:
    """Look at one area, and print what is found as lines of JSON."""
    # Only findings go to the standard output, whatever libraries print there.
    out = os.dup(1)
    os.dup2(2, 1)
    module: Area = import_module(f"mmssl.doctor.{area}")
    for said in module.look():
        _say(asdict(said), out)
        assert isinstance(said, Finding | Doing)
    _say({"finished": True}, out)


if __name__ == "__main__":
    main(sys.argv[1])
