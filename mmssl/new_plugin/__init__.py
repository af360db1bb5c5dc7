"""A new plugin as an installable package: ``mmssl new-plugin``.

- `mmssl.new_plugin.names` checks its name, and makes all others from it;
- `mmssl.new_plugin.write` writes its files, from ``templates/``.
"""
