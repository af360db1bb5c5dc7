"""Every hook that a plugin may implement.

A plugin is a Python module (usually a package's ``__init__``) that is named by an entry point
in the group ``mmssl``::

    # pyproject.toml
    [project.entry-points.mmssl]
    my_plugin = "my_plugin"

    # my_plugin/__init__.py
    from mmssl import hookimpl

    @hookimpl
    def register_objectives(register):
        register("vicreg", "my_plugin.vicreg:VICReg")

There is one hook for each kind of component. Each receives ``register(name, target)``: ``name``
is what a recipe writes after ``use:``, ``target`` is ``"module:attribute"``. The target is
imported when a recipe first names it, so a plugin's ``__init__`` needs to import neither torch
nor its own components.

A target is a class or function whose keyword-only parameters are annotated and documented in
its docstring's ``Args:`` section. They are what a recipe may set: types, defaults, ranges
(``Annotated[int, Field(gt=0)]``) and nested components (annotated with their contract, for
instance ``train: Dataset``) are all read from the signature. Contracts: `mmssl.contracts`. Of an
evaluator the names ``subnetworks`` and ``modalities`` are taken: a recipe gives them to every
evaluation, and the core heeds them.

Recipes in the folder ``recipes/`` of the plugin's package are found by name:
``recipes/quickstart.yaml`` is ``mmssl run my_plugin/quickstart``.

Which versions of mmssl a plugin is for it says once, as its distribution's requirement:
``dependencies = ["mmssl>=0.1,<0.2"]``. One that does not fit is listed as broken.

A hook with any other name that starts with ``register_`` is refused as misspelt.

Every command imports every plugin, so a plugin's module imports nothing slow: what takes longer
than a second is named by ``mmssl plugins``, and after twenty seconds (two when a shell completes)
the plugin is given up as broken. The limit is an alarm that comes between two steps of Python; a
library of C that does not return holds everybody up. So that no plugin disturbs another, its import
is a guest: what it prints goes to the standard error, and the working directory, signal handlers
and filters of warnings are put back after it. What fails, whatever it raises, is listed by ``mmssl
plugins`` with its reason, and stops nobody else. Names of components are of letters, digits,
``_``, ``.``, ``+`` and ``-``.
"""

from typing import Protocol

import pluggy

hookspec = pluggy.HookspecMarker("mmssl")
hookimpl = pluggy.HookimplMarker("mmssl")
"""Marks a function of a plugin's module as a hook; without it nothing calls the function."""


class Register(Protocol):
    """The callback that every hook receives."""

    def __call__(self, name: str, target: str) -> None:
        """Register the component ``name``, to be imported from ``target`` ("module:attribute").

        Raises:
            ValueError: ``target`` has no colon, or this plugin registered ``name`` before.
        """


@hookspec
def register_modalities(register: Register) -> None:
    """Kinds of signal: how they are read, augmented, collated (`mmssl.Modality`)."""


@hookspec
def register_datasets(register: Register) -> None:
    """Where samples come from (`mmssl.Dataset`)."""


@hookspec
def register_backbones(register: Register) -> None:
    """Networks from clips to features (`mmssl.Backbone`)."""


@hookspec
def register_objectives(register: Register) -> None:
    """Self-supervised tasks: heads, loss, and what happens between rounds (`mmssl.Objective`)."""


@hookspec
def register_evaluators(register: Register) -> None:
    """Measures of a pretrained encoder (`mmssl.Evaluator`)."""


@hookspec
def register_optimizers(register: Register) -> None:
    """Functions from parameter groups to a ``torch.optim.Optimizer``.

    Called as ``target(groups, **parameters)``; the recipe sets the parameters, ``lr`` among them.
    """


@hookspec
def register_schedules(register: Register) -> None:
    """Functions from a step to a factor on the learning rate (`mmssl.training.schedules`)."""


@hookspec
def register_launchers(register: Register) -> None:
    """Ways to run a recipe's stages, here or on a cluster (`mmssl.Launcher`)."""


@hookspec
def register_trackers(register: Register) -> None:
    """Where metrics go beside ``log.jsonl`` (`mmssl.Tracker`)."""


@hookspec
def register_callbacks(register: Register) -> None:
    """What else happens at steps, rounds and checkpoints of pretraining (`mmssl.Callback`)."""


@hookspec
def register_commands(register: Register) -> None:
    """Verbs of the command line, named ``"group verb"``: ``mmssl group verb``.

    A target is a function as typer takes it; what it returns is the exit code, None being 0. Its
    group's ``--help`` imports it, so it imports what is slow, torch above all, when it is called.
    """


# The kinds, in the order in which a recipe is read. "modalities" is the hook register_modalities.
KINDS = (
    "modalities",
    "datasets",
    "backbones",
    "objectives",
    "evaluators",
    "optimizers",
    "schedules",
    "launchers",
    "trackers",
    "callbacks",
)

# All that can be registered; commands are not named in recipes.
REGISTERED = (*KINDS, "commands")
