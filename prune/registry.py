"""The pruning methods by name, as ``--method`` takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trtkp.errors import InputError
from trtkp.prune.channels import Channels
from trtkp.prune.dppnet import DPPNet
from trtkp.prune.kep import KEP
from trtkp.prune.l1 import L1
from trtkp.prune.method import Method
from trtkp.prune.pptkp import PPTKP
from trtkp.prune.soks import SOKS
from trtkp.prune.vskp import VSKP
from trtkp.prune.zeros import Dense, FromZeros

__all__ = ["METHODS", "make_method"]

#: What ``--allocation`` takes besides a file.
ALLOCATIONS = ("global", "uniform")

METHODS: dict[str, Callable[..., Method]] = {
    "kep": KEP,
    "vskp": VSKP,
    "pptkp": PPTKP,
    "soks": SOKS,
    "dppnet": DPPNet,
    "l1": L1,
    "channels": Channels,
    "none": Dense,
    "from-zeros": FromZeros,
}


def make_method(name: str, **settings: Any) -> Method:
    """A method with its settings; settings that are None take the method's default.

    ``allocation`` may be a file with settings for each layer (`prune.allocation`).

    Raises:
        InputError: an unknown method, a setting that it does not have, or a bad value.
    """
    if name not in METHODS:
        raise InputError(f"--method {name}: not known", remedy=f"use one of {', '.join(METHODS)}")
    given = {key: value for key, value in settings.items() if value is not None}
    known = getattr(METHODS[name], "__dataclass_fields__", {})
    for key in given:
        if key not in known:
            raise InputError(f"--{key.replace('_', '-')} means nothing to method {name}", remedy="leave it out")
    allocation = given.get("allocation")
    if allocation is None or allocation in ALLOCATIONS:
        try:
            return METHODS[name](**given)
        except TypeError as error:
            raise InputError(f"settings of method {name}: a value of the wrong kind ({error})") from None
    from trtkp.prune.allocation import Allocated, load_allocation  # needs pydantic, which nothing else here does

    del given["allocation"]
    return Allocated(load_allocation(allocation, name, **given), make_method)
