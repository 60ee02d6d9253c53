"""Figures of the volume model for Prometheus, beside Triton's own. No label says anything of a patient."""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np

from ucseg_runtime.decision import OUTCOMES, Decision
from ucseg_runtime.segmentation import Segmentation
from ucseg_serving.server_arrays import ServerObject

_QUANTILES = (0.5, 0.95)

VolumeOutcome = Literal["segmented", "canary", "refused", "failed", "cancelled"]
"""What became of a volume; ``canary``: segmented, but it was sent to see whether the server works."""


class VolumeMetrics:
    """Counters and gauges of the volume model.

    Args:
        utils: The module ``triton_python_backend_utils``.
    """

    def __init__(self, utils: ServerObject) -> None:
        counter, gauge = utils.MetricFamily.COUNTER, utils.MetricFamily.GAUGE
        # The families must outlive their metrics.
        self._families = [
            utils.MetricFamily(name="ucseg_volumes_total", description="Volumes by outcome", kind=counter),
            utils.MetricFamily(
                name="ucseg_decisions_total", description="Decisions upon segmented volumes", kind=counter
            ),
            utils.MetricFamily(name="ucseg_empty_masks_total", description="Volumes without any label", kind=counter),
            utils.MetricFamily(
                name="ucseg_uncertainty",
                description="Quantiles over the labelled voxels of the last volume",
                kind=gauge,
            ),
            utils.MetricFamily(
                name="ucseg_between_subnet_dice",
                description="Dice of the subnets' own masks in the last volume in which either found the segment",
                kind=gauge,
            ),
        ]
        volumes, decisions, empty, uncertainty, self._dice_family = self._families
        self._outcomes = {outcome: volumes.Metric(labels={"outcome": outcome}) for outcome in get_args(VolumeOutcome)}
        self._decisions = {outcome: decisions.Metric(labels={"outcome": outcome}) for outcome in OUTCOMES}
        self._empty = empty.Metric(labels={})
        self._quantiles = {share: uncertainty.Metric(labels={"quantile": str(share)}) for share in _QUANTILES}
        self._dice: dict[str, ServerObject] = {}

    def count(self, outcome: VolumeOutcome) -> None:
        """Count one volume."""
        self._outcomes[outcome].increment(1)

    def observe(self, result: Segmentation, decision: Decision) -> None:
        """Count a segmented volume and say how uncertain it is, and how far the subnets agree if that was counted.

        Args:
            result: Uncertainty in float32.
            decision: Upon the same volume.
        """
        self._decisions[decision.outcome].increment(1)
        for item in result.agreement:
            if not math.isnan(item.dice):
                self._dice_of(item.name).set(item.dice)
        labelled = result.uncertainty[result.label_map > 0]
        if labelled.size:
            for share, metric in self._quantiles.items():
                metric.set(float(np.quantile(labelled, share)))
        else:
            self._empty.increment(1)
        self.count("segmented")  # at last: who sees it counted sees the rest

    def _dice_of(self, segment: str) -> ServerObject:
        """The gauge of one segment; before it was found there is none, for a new gauge says 0."""
        if segment not in self._dice:
            self._dice[segment] = self._dice_family.Metric(labels={"segment": segment})
        return self._dice[segment]
