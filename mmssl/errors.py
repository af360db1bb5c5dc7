"""The three errors that have a meaning of their own. Everything else is a defect."""


class UserError(Exception):
    """A mistake that its user can mend: the command line prints it in one line and exits with 2.

    The message says where the mistake is and what to do about it, for instance
    ``recipes/my.yaml:14: objective.clusterz: unknown key; did you mean 'clusters'?``
    """


class BadMedia(Exception):
    """A sample cannot be read. It is skipped, counted, and named with this reason."""


class MissingModality(Exception):
    """A sample is sound but lacks the modality asked for: its presence mask becomes false."""
