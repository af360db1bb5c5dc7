"""What holds of a plugin as a whole: it costs nothing until a recipe names what it brings."""

import importlib.metadata
import json
import subprocess
import sys
from dataclasses import dataclass

from packaging.requirements import InvalidRequirement, Requirement

from mmssl.testing.check import fail, not_applicable, require

# What `mmssl --help` must not wait for.
_SLOW = (
    "torch", "numpy", "scipy", "sklearn", "pandas", "matplotlib", "torchvision", "torchaudio",
    "timm", "faiss", "av", "transformers", "jax", "tensorflow",
)  # fmt: skip

_IMPORT = """\
import importlib, json, sys
before = set(sys.modules)
importlib.import_module(sys.argv[1])
print(json.dumps([name for name in sys.argv[2:] if name in set(sys.modules) - before]))
"""


@dataclass(frozen=True)
class Case:
    """A plugin by its name."""

    name: str

    @property
    def entry(self) -> importlib.metadata.EntryPoint:
        """What names its module; the core has none."""
        found = importlib.metadata.entry_points(group="mmssl", name=self.name)
        return next(iter(found), importlib.metadata.EntryPoint(self.name, "mmssl.builtin", "mmssl"))


def imports_nothing_slow(case: Case) -> None:
    """Its module imports in a new process, and neither torch nor numpy with it"""
    module = case.entry.module
    code = f"import sys; sys.path[:] = {sys.path}\n{_IMPORT}"
    command = [sys.executable, "-c", code, module, *_SLOW]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no reason"])[-1]
        fail(f"'import {module}' fails in a new process: {last}")
    slow = json.loads(done.stdout.splitlines()[-1])
    if slow:
        fail(
            f"'import {module}' imports {', '.join(slow)}, and every `mmssl --help` waits for it: "
            "import it in the modules of the components, which are only named here "
            '(register("name", "package.module:Class"))'
        )


def says_what_it_needs(case: Case) -> None:
    """Its distribution says which versions of mmssl it works with"""
    distribution = case.entry.dist
    if distribution is None or distribution.name == "mmssl":
        not_applicable("it comes with mmssl itself")
    own = []
    for line in distribution.requires or []:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if requirement.name.lower() == "mmssl":
            own.append(requirement)
    way = 'write dependencies = ["mmssl>=0.1,<0.2"] in its pyproject.toml, with what it works with'
    require(bool(own), f"the distribution {distribution.name} does not depend on mmssl: {way}")
    bounds = {clause.operator for requirement in own for clause in requirement.specifier}
    require(
        bool(bounds & {"<", "<=", "==", "~=", "==="}),
        f"the distribution {distribution.name} depends on '{own[0]}', also on a mmssl that does "
        f"not exist yet and whose contracts may differ: {way}",
    )


TESTS = (imports_nothing_slow, says_what_it_needs)
