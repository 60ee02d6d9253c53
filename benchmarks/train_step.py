"""Where the time and the memory of a training step go, as JSON.

    python benchmarks/train_step.py [--size slim] [--size full] [--n 5] [--threads 2]

Each size is measured in a process of its own, on random tiles, two labelled and two unlabelled, with the whole method
after mixing has begun: forward and backward of everything (`step`), the same without losses (`networks`: the sum of all
logits as the loss), and each group of terms by itself, forward and backward, on logits and features that are already
there. "slim" is the demo model, "full" upstream's sizes with tiles of 96 x 96 x 96. float32, and bfloat16 where the
processor computes in it (--bf16 measures it anywhere).
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from measuring import Json, answer, child_request, environment, peak_memory_mb, run_child, seconds_of
from ucseg_training.demo_model import TRIO
from ucseg_training.method.config import Method, MethodConfig
from ucseg_training.method.losses import Readout, hard_parts, supervised_parts
from ucseg_training.method.objective import UcSegObjective
from ucseg_training.method.pseudo_labels import pseudo_labels
from ucseg_training.method.queues import PrototypeQueues
from ucseg_training.method.subnet_pair import SubnetPair, contrast_terms, difference_terms
from ucseg_training.method.targets import one_hot_target
from ucseg_training.nets import DualNet, SubnetOutput, TrioConfig
from ucseg_training.precision import computes_in_bfloat16
from ucseg_training.trainer import new_trio

_STEPS = 1000
_MIXING_STEP = 900
SIZES = {
    "slim": TRIO,
    "full": TrioConfig(dim=3, in_channels=1, num_classes=2, tile_shape=(96, 96, 96), activation="sigmoid"),
}


def median_seconds(work: Callable[[], object], n: int) -> float:
    """Median wall time of `work`, after one run that does not count."""
    return statistics.median(seconds_of(work, n))


def measure(size: str, n: int, bf16: bool) -> Json:
    """Figures of one size in this process."""
    torch.manual_seed(0)
    trio = SIZES[size]
    net = new_trio(trio).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # torch's stubs
    config = MethodConfig(total_steps=_STEPS, largest_component=trio.activation == "sigmoid")
    images, unlabelled = torch.randn(2, 2, 1, *trio.tile_shape).unbind(0)
    target = one_hot_target(torch.randint(0, trio.num_classes, (2, *trio.tile_shape)), trio.num_classes)
    objective = UcSegObjective(trio, config, torch.Generator().manual_seed(0))

    def step() -> None:
        net.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            terms = objective(net, images, target, unlabelled, _MIXING_STEP, torch.Generator().manual_seed(1))
        terms.total.backward()  # type: ignore[no-untyped-call]

    def networks() -> None:
        net.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            whole = net(torch.cat((images, unlabelled)))
            a, b = net.subnet_a(images), net.subnet_b(images)  # as many tiles as are mixed
        logits = (whole.logits_a, whole.logits_b, whole.fused_logits, a.logits, b.logits)
        torch.stack([z.float().sum() for z in logits]).sum().backward()  # type: ignore[no-untyped-call]

    seconds = {"step": median_seconds(step, n), "networks": median_seconds(networks, n)}
    seconds |= {name: median_seconds(work, n) for name, work in _terms(net, config, images, unlabelled).items()}
    return {
        "size": size,
        "precision": "bf16" if bf16 else "f32",
        "steps_per_second": round(1.0 / seconds["step"], 4),
        "losses_share_of_step": round(1.0 - seconds["networks"] / seconds["step"], 3),
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "peak_memory_mb": round(peak_memory_mb()),
    }


def _terms(net: DualNet, config: MethodConfig, images: Tensor, unlabelled: Tensor) -> dict[str, Callable[[], object]]:
    """Each group of terms of one step with mixing: forward, and backward to logits and features."""
    trio, method = net.config, Method(config, net.config)
    with torch.no_grad():
        output = net(torch.cat((images, unlabelled)))
    target = one_hot_target(torch.randint(0, trio.num_classes, (2, *trio.tile_shape)), trio.num_classes)
    queues = PrototypeQueues(method, torch.Generator().manual_seed(0))

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.detach().clone().requires_grad_()

    def pair() -> SubnetPair:
        a = SubnetOutput(leaf(output.logits_a), tuple(map(leaf, output.features_a)))
        b = SubnetOutput(leaf(output.logits_b), tuple(map(leaf, output.features_b)))
        return SubnetPair.of(a, b, [2, 2], trio.activation)

    def backward(*values: Tensor) -> None:
        torch.stack(values).sum().backward()  # type: ignore[no-untyped-call]

    def supervised() -> None:
        for logits in (output.logits_a, output.logits_b, output.fused_logits):
            readout = Readout.of(leaf(logits[:2]), trio.activation)
            backward(*supervised_parts(readout, target, 0.5, method.dice_rule, "zyx").values())

    def unsupervised() -> None:
        for logits in (output.logits_a, output.logits_b) * 2:  # of the unlabelled and of the mixed tiles
            readout = Readout.of(leaf(logits[2:]), trio.activation)
            backward(*hard_parts(readout, target, method.dice_rule, "zyx").values())

    def contrast() -> None:
        found = contrast_terms(pair(), queues, method)
        backward(found.patch, *(value for value in found.prototype if value.requires_grad))

    probabilities = Readout.of(output.fused_logits[2:], trio.activation).probabilities
    return {
        "supervised": supervised,
        "pseudo_labels": lambda: pseudo_labels(probabilities, method),
        "unsupervised_and_mixed": unsupervised,
        "difference": lambda: backward(*difference_terms(pair(), compat=False)),
        "ccp": contrast,
    }


def main() -> None:
    """Measure every size asked for and print one JSON document."""
    if request := child_request():
        if request["threads"]:
            torch.set_num_threads(request["threads"])
        answer(measure(request["size"], request["n"], request["precision"] == "bf16"))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", action="append", choices=list(SIZES), help="may be repeated; default slim")
    parser.add_argument("--n", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--bf16", action="store_true")
    arguments = parser.parse_args()
    precisions = ["f32", "bf16"] if arguments.bf16 or computes_in_bfloat16() else ["f32"]
    rows = [
        run_child(__file__, {"size": size, "precision": precision, "n": arguments.n, "threads": arguments.threads})
        for size in arguments.size or ["slim"]
        for precision in precisions
    ]
    machine = environment(("torch",)) | {"threads": arguments.threads or torch.get_num_threads()}
    print(json.dumps({"environment": machine, "n": arguments.n, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
