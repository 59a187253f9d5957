"""`METHODS`, all pruning methods by the name that ``--method`` takes, and functions that make one."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike, fspath
from typing import Any

from trtkp.errors import InputError
from trtkp.pruning.method import Method
from trtkp.pruning.methods.channels import Channels
from trtkp.pruning.methods.dppnet import DPPNet
from trtkp.pruning.methods.fixed import Dense, FromZeros
from trtkp.pruning.methods.kep import KEP
from trtkp.pruning.methods.l1 import L1
from trtkp.pruning.methods.pptkp import PPTKP
from trtkp.pruning.methods.soks import SOKS
from trtkp.pruning.methods.vskp import VSKP
from trtkp.pruning.options import ALLOCATIONS
from trtkp.settings import check_types, settings_of

__all__ = ["DEFAULT", "METHODS", "check_settings", "given_method", "made_before", "make_method"]

METHODS: dict[str, type[Method]] = {
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

#: The method where none is chosen.
DEFAULT = KEP.name


def given_method(method: Method, settings: Mapping[str, Any]) -> Method:
    """Return the method object that a caller gave, which has its settings already.

    Raises:
        InputError: settings that are not None were given beside it; they would have no effect.
    """
    given = [name for name, value in settings.items() if value is not None]
    if given:
        raise InputError(
            f"{type(method).__name__} was given with its settings, so {', '.join(given)} would have no effect",
            remedy="set them on the object, or give the method by name",
        )
    return method


def make_method(name: str, **settings: Any) -> Method:
    """Make a method from its name and settings. Settings that are None get the method's default.

    ``allocation`` may be a file with settings for each layer (`trtkp.pruning.methods.allocation`).

    Raises:
        InputError: the method is unknown, it has no such setting, or a value is bad.

    Example:
        >>> make_method("kep", n=3, share="per-layer").settings()["n"]
        3
    """
    given = {key: value for key, value in settings.items() if value is not None}
    if isinstance(given.get("allocation"), PathLike):
        given["allocation"] = fspath(given["allocation"])
    check_settings(name, given)
    allocation = given.get("allocation")
    if allocation is None or allocation in ALLOCATIONS:
        return METHODS[name](**given)
    if METHODS[name].converts:
        raise InputError(
            f"--allocation {allocation}: method {name} makes another net, and takes no settings by layers",
            remedy=f"use {' or '.join(ALLOCATIONS)}, and --skip for layers that are to stay",
        )
    from trtkp.pruning.methods.allocation import Allocated, load_allocation

    del given["allocation"]
    read = load_allocation(allocation, name, **given)
    try:
        check_settings(name, read.settings)
        return Allocated(read, make_method)
    except InputError as error:
        raise error.in_file(allocation) from None


def made_before(name: str, settings: Mapping[str, Any]) -> Method | None:
    """The method that a manifest names, with the recorded settings where possible; None if it is unknown.

    It is asked for its notes and for its paper's counting of index sets that it made earlier. Settings per layer are
    left out, and so is an allocation file: a manifest may come from anywhere and must not make us read files.
    """
    if name not in METHODS:
        return None
    shared = {key: value for key, value in settings.items() if key != "allocation" or value in ALLOCATIONS}
    try:
        return make_method(name, **shared)
    except InputError:
        return make_method(name)


def check_settings(name: str, settings: Mapping[str, Any]) -> None:
    """Check that a method has the given settings and that their types are right. Values are checked by the method.

    Raises:
        InputError: the method or a setting is unknown, or a value has another type.
    """
    if name not in METHODS:
        raise InputError(f"--method {name}: not known", remedy=f"use one of {', '.join(METHODS)}")
    known = METHODS[name].setting_names()
    for key in settings:
        if key not in known:
            raise _foreign(name, key)
    check_types(METHODS[name], settings)


def _foreign(name: str, setting: str) -> InputError:
    """The error of a setting that a method does not have: it names the methods that do."""
    flag = f"--{setting.replace('_', '-')}"
    owners = [each for each, method in METHODS.items() if setting in settings_of(method)]
    if not owners:
        return InputError(f"{flag} is a setting of no method", remedy="leave it out")
    *others, last = owners
    listed = f"{', '.join(others)} and {last}" if others else last
    return InputError(
        f"{flag} is a setting of {listed}, not of {name}", remedy=f"leave it out, or use --method {owners[0]}"
    )
