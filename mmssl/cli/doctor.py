"""``mmssl doctor``: what works on this machine."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mmssl.cli.terminal import Terminal
    from mmssl.doctor import Finding


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> int:
    """Look at this machine: what works, what does not, and what to do about it.

    Packages, plugins, disks, GPUs, several processes, decoding, clustering and SLURM are tried, not
    only asked for their versions. It takes some ten seconds, and writes nothing that stays.

    The exit code is 1 if something makes runs fail, else 0.

    Examples:
      mmssl doctor
      mmssl doctor --json
    """
    import json
    from dataclasses import asdict

    from mmssl.cli.terminal import Terminal
    from mmssl.doctor import AREAS
    from mmssl.doctor.examination import examine

    terminal = Terminal()
    found: dict[str, list[Finding]] = {}
    shown: list[str] = []
    with terminal.task("looking", len(AREAS)) as advance:
        for area, findings in examine(AREAS):
            found[area] = findings
            advance()
            # In their order, each as soon as those before it are there.
            while not as_json and len(shown) < len(AREAS) and AREAS[len(shown)] in found:
                shown.append(AREAS[len(shown)])
                _show(terminal, found[shown[-1]])
    everything = [finding for area in AREAS for finding in found[area]]
    problems = [finding.what for finding in everything if finding.status == "problem"]
    warnings = [finding.what for finding in everything if finding.status == "warning"]
    if as_json:
        print(json.dumps([asdict(finding) for finding in everything], indent=1, ensure_ascii=False))
    elif problems:
        terminal.say(f"runs will fail before this is mended: {', '.join(problems)}")
    elif warnings:
        terminal.say(f"runs work; to be looked at: {', '.join(warnings)}")
    else:
        terminal.say("all is well")
    return 1 if problems else 0


def _show(terminal: "Terminal", findings: "list[Finding]") -> None:
    for finding in findings:
        terminal.say(f"{finding.status:<8} {finding.what:<16} {finding.found}")
        if finding.advice:
            terminal.say(f"{'':<8} {'':<16} -> {finding.advice}")
