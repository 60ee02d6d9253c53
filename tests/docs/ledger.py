"""Which test runs which command of the documentation, and why the others are not run here.

Patterns are searched for in ``page: command``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from tests.docs.documents import PAGES, commands

PLAIN = "tests/docs/test_guides.py"
PROVENANCE = "tests/docs/test_provenance_guide.py"
SERVED = "tests/serving/test_service_guide.py"

RUN_BY: Mapping[str, tuple[str, ...]] = {
    PLAIN: (
        r"README.md: ucseg (inspect|segment(?!.*(triton|--fail-on))|batch|plan|verify|models|doctor)\b",
        r"docs/(guide-one-study|inputs|report).md: ",
        r"docs/decision.md: ucseg segment STUDY --out RESULTS$",
        r"docs/batch.md: ucseg batch (?!.*--runner)",
        r"docs/memory.md: ucseg ",
    ),
    SERVED: (
        r"docs/guide-service.md: ",
        r"README.md: ucseg segment .*triton",
        r"docs/serving.md: ucseg segment (?!.*grpcs)",
        r"docs/deploy.md: ucseg-serve verify models$",
    ),
    PROVENANCE: (r"docs/provenance.md: ",),
    "tests/packaging/test_bare_install.py": (r"docs/install.md: ",),
    "tests/pacs/test_archive_guide.py": (r"docs/guide-archive.md: ",),
    "tests/pacs/test_guide.py": (r"docs/pacs.md: ",),
    "tests/serving/test_serving_guide.py": (r"docs/serving.md: curl ",),
    "tests/end_to_end/test_training_guide.py": (r"docs/training.md: .*(example|runs/liver|models/liver)",),
}
"""Tests that take commands from the pages and run them with files, ports and models of their own."""

NOT_RUN: Mapping[str, tuple[str, ...]] = {
    "sets up, fetches and tests everything; its parts are what the tests are": (
        r": make (demo|test)$",
        r"docs/reliability.md: .*python -m (pytest|tests\.)",
    ),
    "an install for a purpose of its own; tests/packaging installs from nothing": (r": pip (?!.*constraints)",),
    "a measurement of minutes to days; tests/benchmarks runs scripts at small sizes": (
        r": (PYTHONPATH=. )?python bench",
    ),
    "training of minutes to hours; tests/training runs these commands on small data": (
        r": ucseg-train (run DATA|demo|study|evaluate runs/(la|demo))",
        r": ucseg-train (import|emit) ",
    ),
    "needs the result of such a training; tests/export runs these commands on a small model": (
        r": ucseg-export (onnx (trio|runs/(demo|la))|all|int8|prove (MODEL|MODEL_DIR|OUT_DIR|OTHER_DIR)\b)",
        r": ucseg-export (calibrate|ranges|fusion) ",
    ),
    "needs a GPU, or builds for one; tests/export builds what can be built without": (
        r": ucseg-export tensorrt ",
        r": ucseg segment .*--engine (tensorrt|onnxruntime-cuda)",
        r": ucseg-serve repository .*--target tensorrt",
        r": ucseg batch .*--actor-gpus",
    ),
    "needs an engine for containers or a cluster; tests/deploy checks and runs the parts": (
        r"docs/deploy.md: (docker|helm|export) ",
        r"docs/batch.md: (export|sbatch) ",
    ),
    "starts or needs a cluster of Ray under a fixed port; tests/batch/test_ray_cluster.py has one of its own": (
        r"docs/batch.md: (ray start|ucseg batch .*--ray-address)",
    ),
    "needs the digest of a repository; tests/serving/test_repository_digest.py gives it": (r": .* --digest ",),
    "serves the demo model under fixed ports; tests/end_to_end/test_serving_commands.py takes free ones": (
        r"README.md: ucseg-serve local$",
        r"docs/serving.md: (ucseg-serve|ucseg demo) ",
    ),
    "needs certificates of a site; tests/serving/test_tls.py makes some": (r"docs/serving.md: ucseg segment .*grpcs",),
    "its exit code is the decision; tests/end_to_end/test_decision.py has one of each": (
        r": ucseg segment .*--fail-on ",
    ),
    "needs a collector of traces; tests/serving/test_tracing.py has one": (r"docs/serving.md: tritonserver ",),
    "needs a caller's AE title; tests/pacs/test_guide.py runs it with one": (r"README.md: ucseg pacs listen",),
}
"""Reasons, and the commands that they hold for."""


def commands_for(test: str, page: str) -> list[str]:
    """Commands of a page that a test runs, in their order."""
    return [command for command in commands(page) if _fits(RUN_BY[test], page, command)]


def pages_for(test: str) -> list[str]:
    """Pages of which a test runs a command."""
    return [page for page in PAGES if commands_for(test, page)]


def places_of(page: str, command: str) -> list[str]:
    """Tests that run a command, and reasons why it is not run."""
    return [place for place, patterns in {**RUN_BY, **NOT_RUN}.items() if _fits(patterns, page, command)]


def _fits(patterns: tuple[str, ...], page: str, command: str) -> bool:
    return any(re.search(pattern, f"{page}: {command}") for pattern in patterns)
