"""The version of the package, here alone: its metadata is made from it."""

__version__ = "0.2.0"
