"""The outer search: it scores the whole net, and so corrects the assumption that the errors of layers add up.

Errors of single layers do not simply add up. Early layers change the inputs of later ones, and some stages of a net
tolerate more than others. The errors that `trtkp.budget.choices.choose` adds up are therefore changed to

    e_lk  ->  w_s(l) · e_lk^p,

with a weight w for every stage of consecutive layers and one exponent p. Optuna's tree-structured Parzen estimator
(Bergstra et al. 2011) looks for the weights and the exponent that give the whole net the smallest loss. Every trial
solves the knapsack problem with its values, so every trial keeps to the budget. The first trial is the plain sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trtkp.budget.choices import Choice, pick
from trtkp.errors import JobError
from trtkp.files import writing

if TYPE_CHECKING:
    import optuna
    from optuna.storages import BaseStorage

__all__ = ["Outcome", "search"]

#: Stages that get a weight of their own. A weight per layer would be too many parameters for the usual 40 trials.
MAX_STAGES = 8
#: Bounds of the search: the exponent p, and the natural logarithm of a weight (a factor of 7.4 either way).
_EXPONENT, _LOG_WEIGHT = (0.25, 1.5), (-2.0, 2.0)


@dataclass(frozen=True)
class Outcome:
    """The best choice of a search.

    Attributes:
        chosen: parameter name of a layer to its choice.
        loss: loss of the whole net with it.
        trials: trials that were made, those of an interrupted run included.
    """

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
    """Search the best choice for all layers within a budget; None if even the cheapest levels exceed it.

    Args:
        choices: parameter name of a layer to its levels, in graph order.
        budget: largest sum of the costs, in the unit of ``by``.
        by: the cost, ``latency_ms`` or ``macs``.
        loss: gives the loss of the whole net with a choice; called once for each different choice.
        trials: number of trials, those of an interrupted run in ``storage`` included.
        seed: seed of the sampler.
        storage: journal file that keeps the trials of a search that is killed; None for none.
        name: name of this search in the journal.
        progress: called with the trials done, the trials in all and the smallest loss so far.

    Raises:
        JobError: the journal cannot be written.
    """
    import optuna

    layers = list(choices)
    stages = np.arange(len(layers)) * min(MAX_STAGES, len(layers)) // max(1, len(layers))
    known: dict[tuple[int, ...], float] = {}

    def solution(exponent: float, log_weights: Sequence[float]) -> dict[str, Choice] | None:
        return pick(choices, budget, by=by, transform=lambda i, errors: exp(log_weights[stages[i]]) * errors**exponent)

    def evaluate(chosen: Mapping[str, Choice]) -> float:
        key = tuple(choices[layer].index(chosen[layer]) for layer in layers)
        if key not in known:
            known[key] = loss(chosen)
        return known[key]

    def objective(trial: optuna.Trial) -> float:
        exponent = trial.suggest_float("exponent", *_EXPONENT)
        chosen = solution(exponent, [trial.suggest_float(f"stage_{s}", *_LOG_WEIGHT) for s in range(stages.max() + 1)])
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
    # the number of trials is part of the seed, so that a resumed search does not repeat its first trials
    study.sampler = optuna.samplers.TPESampler(seed=seed + _finished(study), multivariate=True)
    if not _finished(study):
        study.enqueue_trial({"exponent": 1.0, **{f"stage_{s}": 0.0 for s in range(stages.max() + 1)}})

    def report(study: optuna.Study, _: optuna.trial.FrozenTrial) -> None:
        if progress is not None:
            progress(_finished(study), trials, study.best_value)

    try:
        study.optimize(objective, n_trials=max(0, trials - _finished(study)), callbacks=[report])
    except AssertionError as error:  # Optuna hides an error of the journal behind an assertion of its own
        if isinstance(error.__context__, JobError):
            raise error.__context__ from None
        raise
    parameters = study.best_params
    chosen = solution(parameters["exponent"], [parameters[f"stage_{s}"] for s in range(stages.max() + 1)])
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

    journal = path

    class Journal(JournalFileBackend):
        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            with writing(journal):
                super().append_logs(logs)

    return JournalStorage(Journal(str(path)))
