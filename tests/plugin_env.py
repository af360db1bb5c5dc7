"""An environment of a plugin's author: this one, and what is installed into it."""

import os
import site
import subprocess
import sys
from pathlib import Path

_COMMAND = """\
#!{python}
import sys
{code}
"""


def author_environment(folder: Path) -> dict[str, str]:
    """Variables under which ``python``, ``pip`` and ``mmssl`` are a new virtual environment's.

    It sees all that is installed here; what pip installs, it installs there, without looking for
    dependencies or build tools elsewhere.
    """
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    here = site.getsitepackages()[0]
    packages = next(venv.glob("lib/python*/site-packages"))
    # addsitedir follows the .pth files of what is installed here in editable mode.
    (packages / "here.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    for name, code in {
        "mmssl": "from mmssl.cli import main\nsys.exit(main())",
        "pip": "import runpy\nrunpy.run_module('pip', run_name='__main__')",
    }.items():
        command = venv / "bin" / name
        command.write_text(_COMMAND.format(python=venv / "bin/python", code=code))
        command.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "VIRTUAL_ENV": str(venv),
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # of this variable 0 means: without isolation
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "MMSSL_CACHE": str(folder / "cache"),
        "COLUMNS": "100",
    }
