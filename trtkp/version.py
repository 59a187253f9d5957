"""The version of trtkp, written once."""

__version__ = "0.2.0"
