"""One check: what it claims of which component, and how it says that the claim is false."""

import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from unittest import SkipTest

from mmssl.errors import UserError
from mmssl.training.interruption import Interrupted

Case = TypeVar("Case")

_KIT = Path(__file__).parent


class Nonconforming(AssertionError):
    """A component does not keep to its contract; the message says what its author should change."""


@dataclass(frozen=True)
class Check:
    """A claim that is put to the test when it is called.

    Attributes:
        subject: of whom, such as ``modality imu``.
        claim: what, such as ``prepare of a batch equals prepare of its parts``.
    """

    subject: str
    claim: str
    _test: Callable[[], None] = field(repr=False, compare=False)
    _first: "Check | None" = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.subject}: {self.claim}"

    def __call__(self) -> None:
        """Pass in silence.

        Raises:
            Nonconforming: the claim is false; the message says what to change.
            unittest.SkipTest: it does not apply, with the reason.
        """
        if self._first is not None:
            try:
                self._first()
            except Nonconforming as error:
                reason = f"it cannot be tried: {error}"
                raise SkipTest(reason) from error
        try:
            self._test()
        except (Nonconforming, SkipTest):
            raise
        except Interrupted:  # by a signal that the loop noted: it was meant for the kit
            raise KeyboardInterrupt from None
        except UserError as error:
            raise Nonconforming(f"{self.subject}: {error}") from error
        except Exception as error:
            raise Nonconforming(f"{self.subject}: {_raised(error)}") from error


def checks_of(
    subject: str,
    case: Case,
    tests: Iterable[Callable[[Case], None]],
    first: Check | None = None,
) -> list[Check]:
    """A check for each function; what it claims is the first line of its docstring.

    Args:
        subject: of whom.
        case: what the functions are called with.
        tests: the functions.
        first: a quick check without which these cannot be tried, and are left out.
    """
    return [Check(subject, claim_of(test), _bound(test, case), first) for test in tests]


def claim_of(test: Callable[..., None]) -> str:
    """``Prepare keeps the device.`` as ``prepare keeps the device``."""
    line = (test.__doc__ or "").strip().partition("\n")[0].rstrip(".")
    return line[:1].lower() + line[1:]


def _bound(test: Callable[[Case], None], case: Case) -> Callable[[], None]:
    return lambda: test(case)


def _raised(error: Exception) -> str:
    """What was raised, and the line outside of the kit that it came from."""
    places = [f for f in traceback.extract_tb(error.__traceback__) if not _own(f.filename)]
    where = f" ({places[-1].filename}:{places[-1].lineno})" if places else ""
    return f"raised {type(error).__name__}{where}: {error}"


def _own(file: str) -> bool:
    return _KIT in Path(file).parents


def fail(message: str) -> NoReturn:
    """Say what is wrong and what to change."""
    raise Nonconforming(message)


def require(holds: bool, message: str) -> None:
    """Fail with a message, unless it holds."""
    if not holds:
        raise Nonconforming(message)


def not_applicable(reason: str) -> NoReturn:
    """The claim is none that could be made of this component."""
    raise SkipTest(reason)


def shown(value: Any) -> str:
    """``float32 [8, 3]`` of a tensor, the class of anything else."""
    import torch

    if not isinstance(value, torch.Tensor):
        return f"a {type(value).__name__}"
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
