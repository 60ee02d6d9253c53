"""``ucseg models``."""

from __future__ import annotations

from ucseg_runtime.cli.options import JsonOption, ModelOption
from ucseg_runtime.cli.reporting import print_json, print_table, reported


def models(model: ModelOption = None, as_json: JsonOption = False) -> None:
    """List the shipped models, or the given one: classes, digest, measured quality."""
    with reported(as_json):
        from ucseg_runtime.model_folder import available_models, load_model

        folders = [model] if model is not None else list(available_models().values())
        loaded = [load_model(folder, whoever_made_it=True) for folder in folders]
        if as_json:
            print_json(
                {
                    "models": [
                        {
                            "digest": item.digest,
                            **item.manifest.model_dump(mode="json", exclude={"artifacts", "parity"}),
                        }
                        for item in loaded
                    ]
                }
            )
            return
        for item in loaded:
            spec = item.manifest
            scores = {row.segment: row for row in spec.quality if row.output == "fused"}
            title = f"{spec.name} {spec.version}, {spec.modality}, fusion {spec.fusion}, digest {item.digest[:12]}"
            title += f"\n{spec.intended_use}"
            rows = [
                (str(part.label), part.name, f"{scores[part.name].dice:.3f}" if part.name in scores else "–")
                for part in spec.classes
            ]
            data_sets = ", ".join(sorted({row.data_set for row in scores.values()})) or "not measured"
            print_table(title, ("label", "class", f"Dice ({data_sets})"), rows)
