"""The bundles of the tests of serving."""

from tests.serving.conftest import bundles

__all__ = ["bundles"]
