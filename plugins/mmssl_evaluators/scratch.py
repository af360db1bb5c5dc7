"""Training nothing: the lower baseline of the papers' tables."""

from mmssl.contracts import Objective


class Scratch(Objective):
    """No pretraining: evaluations measure the encoders as they are initialised.

    With a backbone's ``weights`` they measure those.
    """

    rounds = 0
