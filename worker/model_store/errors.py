"""Errors of installing a base model.

InstallError             the message says what is wrong and how to fix it
└── RefusedModelError    the files arrived, but they are not a model that may be used
"""


class InstallError(Exception):
    """A base model cannot be installed."""


class RefusedModelError(InstallError):
    """The files of a base model are incomplete, damaged, or could make a program run code."""
