"""The conformance kit: does a plugin keep to the contracts of mmssl?

A plugin's own tests call it::

    import pytest
    from mmssl.testing import conformance

    @pytest.mark.parametrize("check", conformance("mmssl_imu"), ids=str)
    def test_conformance(check):
        check()

and so does ``mmssl check-plugin mmssl_imu`` in a terminal. A check passes, fails with a message
that says what to change, or is skipped with the reason why it does not apply.

**What is checked is built as the plugin's own recipes name it**: those in ``recipes/`` of its
package, a recipe with a ``sweep:`` standing for each of its runs. Of a component that several
recipes name, the first one counts. So a plugin has small recipes, which between them name all that
it brings; what none names fails a check that says so.

What is checked:

- **a plugin**: it imports without torch; it says which mmssl it works with
- **a recipe**: its dry run works; what a run keeps of it is the same recipe; at tiny size it
  runs to its end with its evaluations; killed and gone on with, it gives the same
- **any component**: it loads; parameters are keyword-only, typed and described; defaults are
  valid; it is of its contract's class; a recipe names it
- **a modality**: shapes and dtypes; reading is a function of seed and position, in any process;
  a short sample and one without it; `prepare` of a batch equals that of its parts
- **a dataset**: ids, labels and order are the same in any process; it opens no media
- **a backbone**: shapes, ``dim``, devices; a clip's features do not depend on its neighbours;
  its state dict holds all of it; gradients; bf16; absent rows influence nothing
- **an objective**: its loss is finite with any modality missing; no state outside of
  checkpoints; loss and gradients of 1 and 2 ranks are equal; bf16; embeddings
- **an evaluator**: figures, tables; asked again it finds the same; it works on ranks
- **others**: optimizers and trackers go on from their state; schedules are factors; callbacks
  leave ranks equal; launchers launch the same run; a command's help comes at once

Modules of this package are named after what they check, and their functions after the claims.
Ranks and other processes are two, started when first needed and kept (`mmssl.testing.crew`): a
script that calls checks itself, outside of pytest, does so below ``if __name__ == "__main__":``.
"""

from mmssl.testing.check import Check, Nonconforming
from mmssl.testing.collect import conformance

__all__ = ["Check", "Nonconforming", "conformance"]
