"""Figures of the volume model for Prometheus, beside Triton's own. No label says anything of a patient."""

from __future__ import annotations

from typing import Literal

import numpy as np

from ucseg_runtime.segmentation import Segmentation
from ucseg_serving.server_arrays import ServerObject

_QUANTILES = (0.5, 0.95)


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
            utils.MetricFamily(name="ucseg_empty_masks_total", description="Volumes without any label", kind=counter),
            utils.MetricFamily(
                name="ucseg_uncertainty",
                description="Quantiles over the labelled voxels of the last volume",
                kind=gauge,
            ),
        ]
        volumes, empty, uncertainty = self._families
        outcomes = ("segmented", "refused", "failed")
        self._outcomes = {outcome: volumes.Metric(labels={"outcome": outcome}) for outcome in outcomes}
        self._empty = empty.Metric(labels={})
        self._quantiles = {share: uncertainty.Metric(labels={"quantile": str(share)}) for share in _QUANTILES}

    def count(self, outcome: Literal["segmented", "refused", "failed"]) -> None:
        """Count one volume."""
        self._outcomes[outcome].increment(1)

    def observe(self, result: Segmentation) -> None:
        """Count a segmented volume and say how uncertain it is."""
        self.count("segmented")
        labelled = result.uncertainty[result.label_map > 0]
        if not labelled.size:
            self._empty.increment(1)
            return
        for share, metric in self._quantiles.items():
            metric.set(float(np.quantile(labelled, share)))
