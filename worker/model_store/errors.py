"""What can go wrong when a base model is installed.

InstallError             the message says what is wrong and how to mend it
└── RefusedModelError    its files came whole, and are not those of a model that may be used
"""


class InstallError(Exception):
    """A base model cannot be installed."""


class RefusedModelError(InstallError):
    """The files of a base model are incomplete, damaged, or could have code run."""
