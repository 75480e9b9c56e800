"""Products per second, share of the peak arithmetic, and memory, on one device."""

import contextlib
from collections.abc import Callable

import torch
from _models import Case, resnet50, tiny_resnet50, tiny_transformer, transformer
from _ours import Ours, chosen
from _report import Row, Table
from _rivals import AbstractProducts, installed, quiet, word
from _timing import GRADIENT, Call, alternate, peak_memory, ratios, stage
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dynprune.operators._arithmetic import Precision, arithmetic

MODELS: dict[str, Callable[[], Case]] = {
    "resnet50": resnet50,
    "transformer": transformer,
    "tiny-resnet": tiny_resnet50,
    "tiny-transformer": tiny_transformer,
}
_PLENTY = 2**40
_TINY = ("tiny-resnet", "tiny-transformer")
# name: dtype of the parameters, and the precision that products are asked for in
ARITHMETIC: dict[str, tuple[torch.dtype, Precision]] = {
    "float32": (torch.float32, "native"),
    "TF32": (torch.float32, "tf32"),
    "bf16 autocast": (torch.float32, "bf16"),
    "bf16": (torch.bfloat16, "native"),
}

# Dense peaks in TFLOP/s as the maker states them: float32, TF32, bf16.
_PEAKS = {
    "H100": (66.9, 494.7, 989.4),
    "H200": (66.9, 494.7, 989.4),
    "A100": (19.5, 156.0, 312.0),
    "L40S": (91.6, 183.0, 362.0),
}


def peak_tflops(device: torch.device, name: str, given: float | None) -> float | None:
    """Return the device's peak in an arithmetic, if it is known."""
    if given is not None or device.type != "cuda":
        return given
    chip = torch.cuda.get_device_name(device)
    for key, peaks in _PEAKS.items():
        if key in chip:
            return peaks[min(list(ARITHMETIC).index(name), 2)]
    return None


def flops(call: Call) -> int:
    """Count the floating-point operations of matrix products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def _methods(
    block: int, precision: Precision
) -> dict[str, tuple[Callable[[Case], AbstractProducts], int]]:
    def ours(case: Case) -> AbstractProducts:
        return Ours(case, precision=precision, memory_budget=_PLENTY)

    mine = {"dynprune": (ours, 1), f"dynprune, {block} at once": (ours, block)}
    return mine | {name: (kind, 1) for name, kind in installed().items()}


def _builder(
    case: Case, kind: Callable[[Case], AbstractProducts], count: int, *, rival: bool
) -> Callable[[], tuple[AbstractProducts, Call]]:
    # Attention has a second derivative in its math kernel only. dynprune sees to that
    # itself, the rivals are helped.
    def kernel() -> contextlib.AbstractContextManager[None]:
        return sdpa_kernel(SDPBackend.MATH) if rival else contextlib.nullcontext()

    vectors = case.vectors(count)

    def build() -> tuple[AbstractProducts, Call]:
        with kernel(), quiet():
            one = kind(case.copy() if rival else case)
        native = one.native(vectors if count > 1 else vectors[:, 0])

        def call() -> object:
            with kernel(), quiet():
                return one.product(native)

        call()
        return one, call

    return build


def measure(
    case: Case, name: str, *, rounds: int, seconds: float, tflops: float | None
) -> list[Row]:
    """Measure one network in one arithmetic."""
    device, rows = case.device, []
    peaks: dict[str, int] = {GRADIENT: peak_memory(case.gradient, device)}
    work = {GRADIENT: flops(case.gradient)}
    calls: dict[str, Call] = {GRADIENT: case.gradient}
    per, routes = {GRADIENT: 1.0}, {}
    for method, (kind, count) in _methods(4, ARITHMETIC[name][1]).items():
        build = _builder(case, kind, count, rival=not method.startswith("dynprune"))
        try:
            peaks[method] = peak_memory(build, device)
            one, call = build()
            routes[method] = chosen(one)
            work[method] = flops(call)
            calls[method], per[method] = call, float(count)
        except Exception as error:
            rows.append({"network": case.name, "arithmetic": name, "method": method})
            rows[-1]["route"] = word(error)
    taken = alternate(calls, rounds=rounds, seconds=seconds, device=device, warm=2)
    gradient = sorted(taken[GRADIENT])[len(taken[GRADIENT]) // 2]
    rows.insert(
        0,
        {
            "network": case.name,
            "P": case.size,
            "arithmetic": name,
            "method": GRADIENT,
            "÷ gradient": 1.0,
            "per second": 1 / gradient,
            "share of peak": _share(work[GRADIENT], gradient, tflops),
            "peak memory, GiB": peaks[GRADIENT] / 2**30,
        },
    )
    for method, line in ratios(taken, per=per).items():
        rows.append({
            "network": case.name,
            "P": case.size,
            "arithmetic": name,
            "method": method,
            "÷ gradient": line["ratio"],
            "per second": per[method] / line["seconds"],
            "share of peak": _share(work[method], line["seconds"], tflops),
            "peak memory, GiB": peaks[method] / 2**30,
            "route": routes[method],
        })
    return rows


def _share(work: int, seconds: float, tflops: float | None) -> float | None:
    return None if tflops is None else work / seconds / (1e12 * tflops)


def device_tables(
    device: torch.device,
    *,
    models: list[str] | None,
    quick: bool,
    tflops: float | None,
    rounds: int,
) -> list[Table]:
    """Measure the networks in each arithmetic on a device."""
    chosen_models = models or (list(_TINY) if quick else ["resnet50", "transformer"])
    rounds, seconds = (2, 1.0) if quick else (rounds, 30.0)
    speed: list[Row] = []
    accuracy: list[Row] = []
    for key in chosen_models:
        for name, (dtype, precision) in _known(device).items():
            stage(f"{key}, {name}")
            case = MODELS[key]().to(device).to(dtype)
            with arithmetic(device, precision):
                peak = peak_tflops(device, name, tflops)
                speed += measure(
                    case, name, rounds=rounds, seconds=seconds, tflops=peak
                )
        for tiny in _TINY:
            if tiny.split("-")[1][:6] in key:
                accuracy += _accuracy(tiny, device)
    return [
        Table(
            title="Products on one device",
            rows=speed,
            note="Share of peak counts matrix products and convolutions only. Four at "
            "once is stated per vector. Rivals are run under the math kernel of "
            "attention; dynprune chooses it itself.",
        ),
        Table(
            title="Relative error of a product against float64, small networks",
            rows=accuracy,
        ),
    ]


def _known(device: torch.device) -> dict[str, tuple[torch.dtype, Precision]]:
    return {
        name: made
        for name, made in ARITHMETIC.items()
        if name != "TF32" or device.type == "cuda"
    }


def _accuracy(key: str, device: torch.device) -> list[Row]:
    # a product in each arithmetic against the same product in float64
    rows: list[Row] = []
    for name, (dtype, precision) in _known(device).items():
        case = MODELS[key]().to(device).to(dtype)
        vector = case.vectors(1)[:, 0]
        twin = case.to(torch.float64)
        exact = Ours(twin).product(vector.double())
        try:
            fast = Ours(case, precision=precision).product(vector).double()
            error: float | str = float((fast - exact).norm() / exact.norm())
        except Exception as failure:
            error = word(failure)
        rows.append({
            "network": case.name,
            "arithmetic": name,
            "relative error": error,
        })
    return rows
