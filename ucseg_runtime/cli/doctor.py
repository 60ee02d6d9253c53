"""``ucseg doctor``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import typer

from ucseg_runtime.cli.options import JsonOption
from ucseg_runtime.cli.reporting import print_json, print_table, reported
from ucseg_runtime.errors import EXIT_OK, BackendError, BackendUnavailableError, ModelError, UcsegError
from ucseg_runtime.version import __version__

if TYPE_CHECKING:
    from ucseg_runtime.backends.choice import Verdict
    from ucseg_runtime.backends.engines import EngineStatus
    from ucseg_runtime.selftest import SelfTestResult


def doctor(as_json: JsonOption = False) -> None:
    """Say what this machine can run, and segment a phantom on every engine to check the answer."""
    with reported(as_json):
        from ucseg_runtime.backends.choice import verdicts
        from ucseg_runtime.backends.engines import engine_status
        from ucseg_runtime.model_folder import available_models, load_model
        from ucseg_runtime.selftest import run_self_test

        engines, checks = engine_status(), run_self_test()
        loaded = {name: load_model(folder, whoever_made_it=True) for name, folder in available_models().items()}
        models = {name: model.digest for name, model in loaded.items()}
        gates = {name: verdicts(model) for name, model in loaded.items()}
        found = _Findings(engines, checks, models, gates)
        problem = found.problem()
        if as_json:
            print_json(found.as_json())
        else:
            found.show()
        if problem is not None and not as_json:
            raise problem
        raise typer.Exit(problem.exit_code if problem else EXIT_OK)


@dataclass(frozen=True)
class _Findings:
    """What was found of an installation.

    Attributes:
        engines: Every engine, whether it can be used or not.
        checks: The self-test on each that can.
        models: Digest of every shipped model by its name.
        gates: What the accuracy gate says of every engine, by the name of the model.
    """

    engines: Sequence[EngineStatus]
    checks: Sequence[SelfTestResult]
    models: Mapping[str, str]
    gates: Mapping[str, Sequence[Verdict]]

    def problem(self) -> UcsegError | None:
        """What makes this installation unfit, the gravest first."""
        if not self.checks:
            return BackendUnavailableError(
                "no engine can be used here.", hint="Install ucseg again: pip install ucseg."
            )
        if not all(check.passed for check in self.checks):
            return BackendError("the self-test failed; results of this machine cannot be trusted.")
        if not self.models:
            return ModelError("the shipped model is missing.", hint="Install ucseg again: pip install ucseg.")
        return None

    def as_json(self) -> dict[str, object]:
        """One document."""
        problem = self.problem()
        return {
            "ucseg": __version__,
            "engines": [asdict(engine) for engine in self.engines],
            "self_test": [asdict(check) for check in self.checks],
            "models": self.models,
            "accuracy_gate": {name: [asdict(item) for item in items] for name, items in self.gates.items()},
            "passed": problem is None,
            "error": problem.as_json() if problem else None,
        }

    def show(self) -> None:
        """Print one table for each subject."""
        rows = [
            (item.name, item.version or "–", ", ".join(item.precisions) or "–", item.reason) for item in self.engines
        ]
        print_table("Engines", ("engine", "version", "precisions", "why not"), rows)
        results = [(c.engine, c.precision, "passed" if c.passed else "FAILED", c.detail) for c in self.checks]
        print_table("Self-test: a phantom with a known answer", ("engine", "precision", "result", "detail"), results)
        print_table("Models, every file verified", ("model", "digest"), [(n, d[:12]) for n, d in self.models.items()])
        print_table(
            "Accuracy gate; auto takes the fastest that passed",
            ("model", "engine", "precision", "s per tile", "result"),
            [_gate_row(name, verdict) for name, items in self.gates.items() for verdict in items],
        )


def _gate_row(model: str, verdict: Verdict) -> tuple[str, ...]:
    time = "–" if verdict.seconds_per_tile is None else f"{verdict.seconds_per_tile:.3f}"
    result = f"REFUSED: {verdict.objection}" if verdict.objection else "passed"
    return model, f"{verdict.engine} {verdict.version}", verdict.precision, time, result
