"""What holds of a command: its help comes at once."""

import subprocess
import sys
from dataclasses import dataclass

from mmssl.registry import Registration
from mmssl.testing.check import fail, require

_HELP = """\
import sys
from mmssl.cli import main
try:
    main()
except SystemExit as ended:
    code = ended.code or 0
    print("\\n" + str(code), "torch" in sys.modules)
"""


@dataclass(frozen=True)
class Case:
    """A command that the plugin registered."""

    registration: Registration


def helps(case: Case) -> None:
    """Its help, and its group's, come without torch"""
    group, verb = case.registration.name.split()
    for words in ([group, verb, "--help"], [group, "--help"]):
        prepared = f"import sys; sys.path[:] = {sys.path}; sys.argv = {['mmssl', *words]}"
        done = subprocess.run(
            [sys.executable, "-c", f"{prepared}\n{_HELP}"],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        typed = " ".join(["mmssl", *words])
        *said, last = done.stdout.strip().splitlines() or [""]
        if not last.startswith("0 "):
            reason = (done.stderr.strip().splitlines() or said or ["it said nothing"])[-1]
            fail(f"`{typed}` ends with an error: {reason}")
        require(
            last == "0 False",
            f"`{typed}` imports torch: import it within the function {case.registration.target}",
        )
        shown = " ".join(said)
        if "Broken:" in shown:
            fail(f"`{typed}` says {shown[shown.index('Broken:') :]}")


TESTS = (helps,)
