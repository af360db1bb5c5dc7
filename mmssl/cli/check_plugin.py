"""``mmssl check-plugin``: does a plugin keep to the contracts?"""

from typing import Annotated

import typer

from mmssl.completion import names


def check_plugin(
    name: Annotated[
        str,
        typer.Argument(
            help="The plugin, as `mmssl plugins` shows it.", autocompletion=names.plugins
        ),
    ],
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            help="A recipe that names its components, once for each; by default those that the "
            "plugin ships.",
            autocompletion=names.recipes,
        ),
    ] = None,
    only: Annotated[
        str, typer.Option(help="Only checks whose line contains this, such as 'modality imu'.")
    ] = "",
) -> int:
    """Check a plugin: contracts, determinism, ranks, resumption, and its recipes at tiny size.

    Every component is built as a recipe of the plugin names it, and so are its data: small recipes
    are checked in a minute or two. The same checks run in the plugin's own tests, by
    `mmssl.testing.conformance`. Exit code 0: all conform; 1: some do not.

    Examples:
      mmssl check-plugin mmssl_imu
      mmssl check-plugin mmssl_imu --only "modality imu"
      mmssl check-plugin mmssl_vicreg --recipe my.yaml --recipe other.yaml
    """
    import warnings
    from unittest import SkipTest

    from mmssl.cli.terminal import Terminal
    from mmssl.errors import UserError

    terminal = Terminal()
    with terminal.task("reading the plugin and its recipes", None):
        from mmssl.testing import Nonconforming, conformance

        every = conformance(name, recipe)
        broken = f"plugin {name}: loads"  # which is why there is no other
        checks = [check for check in every if only in str(check) or str(check) == broken]
    if not checks:
        raise UserError(f"--only {only!r}: none of the {len(every)} checks of {name} contains it")
    failed = left_out = 0
    subject = ""
    with terminal.task(f"checks of {name}", len(checks)) as advance:
        for check in checks:
            if check.subject != subject:
                subject = check.subject
                terminal.say(subject)
            advance(0, at=check.claim)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    check()
            except SkipTest as reason:
                left_out += 1
                terminal.say(f"  -       {check.claim}\n          not applicable: {reason}")
            except Nonconforming as error:
                failed += 1
                terminal.say(f"  FAILED  {check.claim}\n          {error}")
            else:
                terminal.say(f"  ok      {check.claim}")
            advance(1)
    kept = len(checks) - failed - left_out
    terminal.say(f"{name}: {kept} ok, {failed} failed, {left_out} not applicable")
    return 1 if failed else 0
