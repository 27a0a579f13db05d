"""The version of the package, which this file alone says."""

__version__ = "0.1.0"
