"""``mmssl plugins``: who brings what, and what is broken."""


def plugins() -> None:
    """List plugins: name, version, what each brings, and why a broken one is broken.

    Example:
      mmssl plugins
    """
    from mmssl.registry import discover

    for plugin in discover().plugins:
        print(f"{plugin.name} {plugin.version}".rstrip())
        if plugin.error:
            print(f"  broken: {plugin.error}")
        if plugin.slow:
            print(f"  {plugin.slow}")
        by_kind: dict[str, list[str]] = {}
        for component in plugin.components:
            by_kind.setdefault(component.kind, []).append(component.name)
        for kind, names in by_kind.items():
            print(f"  {kind}: {', '.join(names)}")
