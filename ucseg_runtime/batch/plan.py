"""Which series of an export are a runner's, where their results belong, and which of them are done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeAlias

from ucseg_runtime.batch.export_index import ExportIndex, ExportSeries
from ucseg_runtime.batch.ledger import Expected, input_sha256_of, why_not_done
from ucseg_runtime.batch.places import Naming, Places
from ucseg_runtime.config import WHATEVER_FITS, InferenceOptions, InputOptions, OutputOptions
from ucseg_runtime.dicom.reader import files_sha256
from ucseg_runtime.errors import InputError, OutputError
from ucseg_runtime.inputs import FoundSeries, found_in
from ucseg_runtime.manifest import Manifest
from ucseg_runtime.model_folder import Model
from ucseg_runtime.publish import check_output_folder
from ucseg_runtime.run_identity import run_identity, settings_of
from ucseg_runtime.segmentation import EngineInfo
from ucseg_runtime.site_secret import site_secret
from ucseg_runtime.version import __version__


@dataclass(frozen=True)
class Shard:
    """Every `count`-th series, by a digest of its UIDs: shard `index` of 1 … `count`."""

    index: int = 1
    count: int = 1

    def holds(self, key: str) -> bool:
        """Whether the series with this key belongs to it."""
        return int(key, 16) % self.count == self.index - 1


Belief: TypeAlias = Literal["records", "bytes", "nothing"]
"""What is taken as proof that a series is done. ``records``: a record whose results are whole. ``bytes``: the input
must still have the very same bytes, too, and every file is read for that. ``nothing``: all are segmented again."""


@dataclass(frozen=True)
class BatchOptions:
    """What a caller may choose of a batch.

    Attributes:
        naming: How folders of results are called.
        shard: Which series are this runner's.
        believed: What proves that a series is done; see `Belief`.
        settle_s: Series with a file younger than this are left for the next run, in seconds.
        lease_s: How long the lease of a runner on another machine counts after its last sign of life, in seconds.
        wanted: What the caller insists on for every series, and allows.
    """

    naming: Naming = "pseudonym"
    shard: Shard = Shard()
    believed: Belief = "records"
    settle_s: float = 0.0
    lease_s: float = 300.0
    wanted: InputOptions = WHATEVER_FITS


State: TypeAlias = Literal["done", "segmented", "unsuitable", "failed", "unsettled"]


@dataclass(frozen=True, slots=True)
class SeriesOutcome:
    """What became of one series.

    Attributes:
        series: Which one.
        folder: Where its results are or would be.
        state: ``done``: by an earlier run or another runner; ``segmented``: now; ``unsuitable``: it does not fit the
            model; ``failed``: it should have worked; ``unsettled``: it may still be growing.
        code: Stable identifier of why not; empty where there are results.
        reason: For people.
    """

    series: ExportSeries
    folder: Path
    state: State
    code: str = ""
    reason: str = ""


@dataclass(frozen=True)
class BatchPlan:
    """Which series of an export are this runner's, and where their results belong.

    Attributes:
        index: The export.
        series: Those of the model's modality in the shard, in the order of the index.
        unsuitable: The others of the shard, with the reason.
        places: Where results belong.
        expected: What records must say, the input left out.
        manifest: Of the model.
        options: What the caller chose.
    """

    index: ExportIndex
    series: tuple[ExportSeries, ...]
    unsuitable: tuple[SeriesOutcome, ...]
    places: Places
    expected: Mapping[str, object] = field(repr=False)
    manifest: Manifest = field(repr=False)
    options: BatchOptions

    def why_not_done(self, series: ExportSeries) -> str:
        """Why a series has to be segmented; empty where it is done."""
        if self.options.believed == "nothing":
            return "redo"
        folder = self.places.folder_of(series)
        why = why_not_done(folder, Expected(self.expected, series.content))
        if not why and self.options.believed == "bytes" and self._input_sha256(series) != input_sha256_of(folder):
            return "bytes of the input changed"
        return why

    def wanted(self, series: ExportSeries) -> InputOptions:
        """What is insisted on when a series is read."""
        wanted = self.options.wanted
        return replace(wanted, series_uid=series.series_uid) if series.series_uid else wanted

    def _input_sha256(self, series: ExportSeries) -> str:
        """See `files_sha256`; empty where the series cannot be read now."""
        try:
            with found_in(self.index.source_of(series), self.manifest, self.wanted(series)) as found:
                return files_sha256(found.selection.chosen) if isinstance(found, FoundSeries) else ""
        except InputError:
            return ""


def check_folders(export: Path, out: Path) -> None:
    """Check before any work that results can be written, and that they do not become a part of the export.

    Args:
        export: Folder of the export, or one zip archive.
        out: Folder for the results.

    Raises:
        OutputError: They cannot.
    """
    if out.resolve().is_relative_to(export.resolve()):
        raise OutputError("the folder of results lies in the export.", hint="Give an --out beside the export.")
    check_output_folder(out, overwrite=True)


def plan_batch(
    index: ExportIndex,
    out: Path,
    model: Model,
    inference: InferenceOptions,
    outputs: OutputOptions,
    options: BatchOptions,
    engine: EngineInfo | None,
) -> BatchPlan:
    """Say which series of an export are this runner's.

    Args:
        index: The export.
        out: Folder for the results.
        model: Verified model folder.
        inference: What the caller chose of the network.
        outputs: Which objects are written.
        options: What the caller chose of the batch.
        engine: What will compute, see `Runner.engine`.
    """
    places = Places(out, options.naming, site_secret())
    own = [series for series in index.series if options.shard.holds(places.key_of(series))]
    modality = model.manifest.modality
    unsuitable = tuple(
        SeriesOutcome(
            series,
            places.folder_of(series),
            "unsuitable",
            "UCSEG-E121",
            f"The modality is {series.modality or 'missing'} (the model needs {modality}).",
        )
        for series in own
        if series.modality != modality
    )
    fitting = tuple(series for series in own if series.modality == modality)
    expected = _expected(model, inference, outputs, engine)
    return BatchPlan(index, fitting, unsuitable, places, expected, model.manifest, options)


def _expected(
    model: Model, inference: InferenceOptions, outputs: OutputOptions, engine: EngineInfo | None
) -> dict[str, object]:
    """What the record of a finished series says of the run; of a server's engine nothing is known beforehand."""
    common: dict[str, object] = {
        "settings": settings_of(inference, outputs),
        "calibration": model.calibration.digest or None,
    }
    if model.manifest.image_kind == "slices":
        common["decision"] = {}  # any decision: who relies on them shall not find results without
    if engine is None:
        manifest = model.manifest
        known = {"model_name": manifest.name, "model_version": manifest.version, "model_digest": model.digest}
        return {"identity": {**known, "ucseg_version": __version__}, **common}
    identity = run_identity(model, engine, inference, outputs).as_json()
    return {"identity": identity, **common}
