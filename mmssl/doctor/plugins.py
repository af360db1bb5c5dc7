"""Plugins of this environment, and why broken ones are."""

from collections import Counter
from collections.abc import Iterator

from mmssl.doctor import Doing, Finding
from mmssl.hooks import KINDS
from mmssl.registry import SINGULAR, discover


def look() -> Iterator[Finding | Doing]:
    """A line for each plugin, and one for each name that two of them use."""
    yield Doing("loading plugins")
    registry = discover()
    for plugin in registry.plugins:
        what = f"plugin {plugin.name}"
        if plugin.error:
            advice = "mend, update or uninstall it; recipes that use nothing of it work"
            yield Finding(what, "warning", f"broken: {plugin.error}", advice)
        elif plugin.slow:
            found, _, advice = plugin.slow.partition(": ")[2].partition(": ")
            yield Finding(what, "warning", found, f"its author can {advice}")
        elif plugin.name != "mmssl":
            count = len(plugin.components)
            found = f"{plugin.version}, {count} component{'' if count == 1 else 's'}"
            yield Finding(what, "ok", found.removeprefix(", "))
    for kind in KINDS:
        names = Counter(component.name for component in registry.components(kind))
        for name, count in names.items():
            if count > 1:
                found = f"{count} plugins bring a {SINGULAR[kind]} of this name"
                yield Finding(f"name {name}", "warning", found, f"write PLUGIN/{name} in recipes")
