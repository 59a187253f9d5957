"""How to advise on a model, and what to search; light to import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any

from trtkp.engine.options import Threads
from trtkp.errors import InputError
from trtkp.model.options import Arch, InputShape, OptShapes, TrustPickle
from trtkp.pipeline.options import TimingCache
from trtkp.pruning.methods.registry import METHODS, check_settings
from trtkp.pruning.options import Include, Skip
from trtkp.settings import Setting, check, settings_of

if TYPE_CHECKING:
    from trtkp.budget.choices import Level

__all__ = ["AdviceOptions", "SearchOptions"]


#: The methods that a search can use.
_SEARCHED = tuple(name for name, method in METHODS.items() if method.searched_filter_group is not None)


@dataclass(frozen=True)
class AdviceOptions:
    """How to advise on a model.

    Raises:
        InputError: a value of another type or out of its bounds.
    """

    include: Include = ()
    skip: Skip = ()
    batch: Annotated[int | None, Setting("Batch size.", ge=1, default="that of --opt")] = None
    opt: OptShapes = ()
    input_shape: InputShape = ()
    seconds: Annotated[
        float, Setting("Seconds that timing may take; the layers with the most work come first.", gt=0)
    ] = 120.0
    threads: Threads = None
    timing_cache: TimingCache = True
    arch: Arch = None
    trust_pickle: TrustPickle = False

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class SearchOptions:
    """What to search: exactly one target, and what each layer may become. Every layer may also stay dense.

    Raises:
        InputError: no target or several, a method that a search cannot use or a setting of it that a search chooses,
            or a value out of range.
    """

    method: Annotated[
        str,
        Setting(f"Pruning method: {', '.join(_SEARCHED)}.", short="-m", group="Search", essential=True),
    ] = "vskp"
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the method, the same in all layers."""
    ratios: Annotated[tuple[float, ...], Setting("Ratios that a layer may have.", gt=0, lt=1, group="Search")] = (
        0.25,
        0.375,
        0.5,
        0.625,
        0.75,
        0.875,
    )
    filter_groups: Annotated[
        tuple[int, ...] | None,
        Setting("Filter groups that a layer may have.", ge=1, default="64, for kep 1", group="Search"),
    ] = None
    channel_blocks: Annotated[
        tuple[int, ...], Setting("Channel blocks that a layer may have.", ge=1, group="Search")
    ] = (1,)
    target_latency: Annotated[
        float | None,
        Setting(
            "Latency to reach, as a share of the dense net's, such as 60%.",
            gt=0,
            lt=1,
            share=True,
            group="Search",
            essential=True,
        ),
    ] = None
    target_flops: Annotated[
        float | None,
        Setting(
            "MACs to reach, as a share of the dense net's, such as 50%.",
            gt=0,
            lt=1,
            share=True,
            group="Search",
            essential=True,
        ),
    ] = None
    max_drop: Annotated[
        float | None,
        Setting(
            "Points of the untrained score that may be lost; the fastest net within them wins.",
            ge=0,
            group="Search",
            essential=True,
        ),
    ] = None
    trials: Annotated[int, Setting("Nets to try.", ge=1, group="Search")] = 40
    samples: Annotated[int, Setting("Inputs to score nets on, spread over the data.", ge=1, group="Search")] = 256
    seed: Annotated[int, Setting("Seed of the search.", group="Search")] = 0

    def __post_init__(self) -> None:
        check(self)
        self._check_method()
        targets = [self.target_latency, self.target_flops, self.max_drop]
        if sum(target is not None for target in targets) != 1:
            raise InputError("a search has one target", remedy="give --target-latency, --target-flops or --max-drop")
        for name in ("ratios", "filter_groups", "channel_blocks"):
            if not getattr(self, name):
                raise InputError(f"--{name.replace('_', '-')} is empty", remedy="give one or more numbers")

    def _check_method(self) -> None:
        check_settings(self.method, self.settings)
        usual = METHODS[self.method].searched_filter_group
        if usual is None:
            raise InputError(f"a search cannot use --method {self.method}", remedy=f"use {' or '.join(_SEARCHED)}")
        for name in self.settings:
            item = settings_of(METHODS[self.method]).get(name)
            if item is not None and item.setting.searched:
                raise InputError(f"the search chooses {item.flag}", remedy="leave it out")
        if self.filter_groups is None:
            object.__setattr__(self, "filter_groups", (usual,))

    def levels(self) -> list[Level]:
        """Dense, and every combination."""
        from trtkp.budget.choices import DENSE, Level

        groups = self.filter_groups or ()
        return [DENSE, *(Level(*each) for each in product(self.ratios, groups, self.channel_blocks))]
