"""The outer search: choices that spoil least when they meet, not only one by one.

Errors of single layers do not simply add up: early layers spoil what later ones see, and a net forgives some stages
more than others. So the errors that `choices.choose` adds up are bent,

    e_lk  ->  w_s(l) · e_lk^p,

with a weight w for every stage of consecutive layers and one exponent p. Optuna's tree-structured Parzen estimator
(Bergstra et al. 2011) looks for the weights and the exponent whose choice, which keeps to the budget by construction,
gives the whole net the smallest loss. The first trial is the unbent sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trtkp.budget.choices import Choice, pick

if TYPE_CHECKING:
    import optuna
    from optuna.storages import BaseStorage

__all__ = ["Outcome", "search"]

#: Stages that get a weight of their own.
MAX_STAGES = 8
_EXPONENT, _LOG_WEIGHT = (0.25, 1.5), (-2.0, 2.0)


@dataclass(frozen=True)
class Outcome:
    """A choice for every layer, and the loss of the whole net with it."""

    chosen: dict[str, Choice]
    loss: float
    trials: int


def search(
    choices: Mapping[str, Sequence[Choice]],
    budget: float,
    *,
    by: str,
    loss: Callable[[Mapping[str, Choice]], float],
    trials: int,
    seed: int = 0,
    storage: Path | None = None,
    name: str = "search",
    progress: Callable[[int, int, float], None] | None = None,
) -> Outcome | None:
    """The best choice found for all layers within a budget; None where even the cheapest is beyond it.

    Args:
        choices: layer to its levels, in graph order.
        budget: of all layers together, in the unit of ``by``.
        by: ``latency_ms`` or ``macs``.
        loss: of the whole net; asked once for every different choice.
        trials: choices to try, those of an earlier run in ``storage`` included.
        seed: of the sampler.
        storage: journal file that keeps the trials of a search that is killed.
        name: of this search in the journal.
        progress: called with the trials done, the trials in all and the smallest loss so far.
    """
    import optuna

    layers = list(choices)
    stages = np.arange(len(layers)) * min(MAX_STAGES, len(layers)) // max(1, len(layers))
    known: dict[tuple[int, ...], float] = {}

    def bent(exponent: float, log_weights: Sequence[float]) -> dict[str, Choice] | None:
        return pick(choices, budget, by=by, bend=lambda i, errors: exp(log_weights[stages[i]]) * errors**exponent)

    def evaluate(chosen: Mapping[str, Choice]) -> float:
        key = tuple(choices[layer].index(chosen[layer]) for layer in layers)
        if key not in known:
            known[key] = loss(chosen)
        return known[key]

    def objective(trial: optuna.Trial) -> float:
        exponent = trial.suggest_float("exponent", *_EXPONENT)
        chosen = bent(exponent, [trial.suggest_float(f"stage_{s}", *_LOG_WEIGHT) for s in range(stages.max() + 1)])
        assert chosen is not None
        return evaluate(chosen)

    if not layers or pick(choices, budget, by=by) is None:
        return None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        study_name=name,
        storage=_journal(storage),
        load_if_exists=True,
    )
    # a search that goes on must not draw again what it drew at first
    study.sampler = optuna.samplers.TPESampler(seed=seed + _finished(study), multivariate=True)
    if not _finished(study):
        study.enqueue_trial({"exponent": 1.0, **{f"stage_{s}": 0.0 for s in range(stages.max() + 1)}})

    def report(study: optuna.Study, _: optuna.trial.FrozenTrial) -> None:
        if progress is not None:
            progress(_finished(study), trials, study.best_value)

    study.optimize(objective, n_trials=max(0, trials - _finished(study)), callbacks=[report])
    parameters = study.best_params
    chosen = bent(parameters["exponent"], [parameters[f"stage_{s}"] for s in range(stages.max() + 1)])
    assert chosen is not None
    return Outcome(chosen, study.best_value, _finished(study))


def _finished(study: optuna.Study) -> int:
    from optuna.trial import TrialState

    return len(study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]))


def _journal(path: Path | None) -> BaseStorage | None:
    if path is None:
        return None
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(path)))
