"""The flow result: numbers, controls, faces, files, refusals."""

import math
from types import SimpleNamespace as Space

import matplotlib as mpl
import pytest
import torch

import dynprune.core
from dynprune import rgflow
from dynprune.core import InvalidInputError, load_tensors, save_tensors

D = torch.tensor([1.0, 0.7, 0.4, 0.2], dtype=torch.float64)


def flow_of(sigma, first=(0.5, 0.3, 0.2)):
    """Sums with exponents sigma (S, G)."""
    sigma = torch.tensor(sigma, dtype=torch.float64)
    return (
        torch.tensor(first).double()
        * (sigma[:, None, :] * -D.log()[None, :, None]).exp()
    )


def absolute(sigma, **options):
    return rgflow.fit_shares(
        flow_of(sigma),
        D,
        groups=("a", "b", "c"),
        normalisation="absolute",
        **options,
    )


SIGMA = [[1.0, -0.5, 0.1], [1.2, -0.7, -0.1], [0.8, -0.6, 0.0]]
BASE = [[0.5, -0.5, 0.3], [0.9, -0.4, 0.3], [0.1, -0.6, 0.3]]


def test_means_errors_and_classes_of_known_exponents():
    flow = absolute(SIGMA)
    assert flow.exponents.tolist() == pytest.approx([1.0, -0.6, 0.0], abs=1e-12)
    errors = [0.2 / math.sqrt(3), 0.1 / math.sqrt(3), 0.1 / math.sqrt(3)]
    assert flow.standard_errors.tolist() == pytest.approx(errors)
    assert flow.classes == ("relevant", "irrelevant", "marginal")
    assert flow.quadratic.tolist() == pytest.approx([0.0] * 3, abs=1e-10)
    assert flow.r2[:2].tolist() == pytest.approx([1.0, 1.0])
    assert (flow.excess, flow.random_exponents, flow.excess_classes) == (None,) * 3


def test_excess_is_the_paired_difference():
    flow = absolute(
        SIGMA, no_retraining=flow_of(BASE), random=flow_of([[-1.0] * 3] * 3)
    )
    # differences .5 .3 .7 | 0 -.3 0 | -.2 -.4 -.3
    assert flow.excess.tolist() == pytest.approx([0.5, -0.1, -0.3])
    root = math.sqrt(3)
    errors = [0.2 / root, math.sqrt(0.03) / root, 0.1 / root]
    assert flow.excess_standard_errors.tolist() == pytest.approx(errors)
    assert flow.excess_classes == ("relevant", "marginal", "irrelevant")
    assert flow.random_exponents.flatten().tolist() == pytest.approx([-1.0] * 9)
    own = [math.sqrt(0.5 * a**2 + 0.3 * b**2 + 0.2 * c**2) for a, b, c in SIGMA]
    other = [math.sqrt(0.5 * a**2 + 0.3 * b**2 + 0.2 * c**2) for a, b, c in BASE]
    assert flow.fixed_point_distances.tolist() == pytest.approx(own)
    gaps = [a - b for a, b in zip(own, other, strict=True)]
    assert flow.excess_fixed_point_distances.tolist() == pytest.approx(gaps)
    assert flow.random_fixed_point_distances.tolist() == pytest.approx([1.0] * 3)


def test_one_seed_is_not_testable():
    flow = absolute(SIGMA[:1], no_retraining=flow_of(BASE[:1]))
    assert flow.exponents.tolist() == pytest.approx([1.0, -0.5, 0.1])
    assert flow.standard_errors.isnan().all()
    assert flow.quadratic_standard_errors.isnan().all()
    assert flow.classes == flow.excess_classes == ("not testable",) * 3
    assert "one seed has no standard error" in flow.summary()


def test_pure_power_law_shares_exist_only_at_a_fixed_point():
    shares = flow_of([[0.3, -0.4, 0.0]])
    shares = shares / shares.sum(-1, keepdim=True)
    flow = rgflow.fit_shares(shares, D, groups=("a", "b", "c"))
    # normalising bends every group by one common, non-zero coefficient
    assert float(flow.quadratic.std()) < 1e-12
    assert float(flow.quadratic.abs().min()) > 1e-3


def imp_runs(seeds):
    """Runs in which layer a grows by retraining and b does not."""
    runs = []
    for seed in range(seeds):
        draw = torch.Generator().manual_seed(seed)
        dense = {n: torch.randn(60, generator=draw) for n in ("a", "b")}
        order = torch.randperm(120, generator=draw)
        tickets, levels = [], []
        for n, d in enumerate((1.0, 0.7, 0.5, 0.3)):
            keep = torch.zeros(120, dtype=torch.bool)
            keep[order[: int(d * 120)]] = True
            tickets.append(Space(masks={"a": keep[:60], "b": keep[60:]}))
            levels.append(Space(state={"a": 2.0**n * dense["a"], "b": dense["b"]}))
        runs.append(Space(tickets=tickets, levels=levels))
    return runs


def controls_of(runs):
    system = Space(prunable=("a", "b"), dtype=torch.float32, device="cpu")
    return rgflow.controls(system, runs)


@pytest.mark.parametrize("stage", ["before", "after"])
@pytest.mark.parametrize("normalisation", ["share", "absolute"])
@pytest.mark.parametrize("magnitude", ["L1", "L2"])
def test_fit_equals_fit_shares_of_its_parts(stage, normalisation, magnitude):
    runs = imp_runs(3)
    options = {"stage": stage, "normalisation": normalisation, "magnitude": magnitude}
    made = controls_of(runs)
    flow = rgflow.fit(runs, controls=made, **options)
    parts = [rgflow.observables(run, **options) for run in runs]
    again = rgflow.fit_shares(
        torch.stack([part.values for part in parts]),
        parts[0].densities,
        groups=parts[0].groups,
        no_retraining=made.observables("no-retraining", **options),
        random=made.observables("random", **options),
        **options,
    )
    for name in ("exponents", "excess", "densities", "random_exponents"):
        assert torch.equal(getattr(flow, name), getattr(again, name))
    assert len(flow.densities) == (4 if stage == "before" else 3)
    assert flow.shares.shape == (3, len(flow.densities), 2)
    gap = float(flow.exponents[0] - flow.exponents[1])
    assert gap > 0.5  # a doubles every level


def test_retraining_shows_as_excess_and_as_difference():
    runs = imp_runs(6)
    flow = rgflow.fit(runs, controls=controls_of(runs))
    assert flow.classes == ("relevant", "irrelevant")
    assert flow.excess_classes == ("relevant", "irrelevant")
    _, p = rgflow.differs(flow.seed_exponents, flow.no_retraining_exponents)
    assert p == 1 / 32
    total = (flow.shares[:, :-1] * flow.eigenvalues).sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total))


def test_results_own_copies():
    shares = flow_of(SIGMA)
    flow = rgflow.fit_shares(
        shares, D, groups=("a", "b", "c"), normalisation="absolute"
    )
    before = flow.shares.clone()
    shares.zero_()
    assert torch.equal(flow.shares, before)


@pytest.mark.parametrize("controlled", [True, False], ids=["controls", "bare"])
def test_file_round_trip(tmp_path, controlled):
    runs = imp_runs(3)
    flow = rgflow.fit(runs, controls=controls_of(runs) if controlled else None)
    flow.save(tmp_path / "flow.safetensors")
    read = rgflow.RGFlow.load(tmp_path / "flow.safetensors")
    assert (read.groups, repr(read)) == (flow.groups, repr(flow))
    assert read.provenance == flow.provenance
    for name in ("shares", "densities", "exponents", "standard_errors", "quadratic"):
        assert torch.equal(getattr(read, name), getattr(flow, name))
    assert (read.excess is None) == (not controlled)
    read.save(tmp_path / "again.safetensors")
    files = [(tmp_path / f"{n}.safetensors").read_bytes() for n in ("flow", "again")]
    assert files[0] == files[1]


def test_files_of_another_kind_are_refused(tmp_path):
    flow = absolute(SIGMA)
    flow.save(tmp_path / "flow")
    with pytest.raises(InvalidInputError, match="not the controls"):
        rgflow.Controls.load(tmp_path / "flow")
    controls_of(imp_runs(1)).save(tmp_path / "controls")
    with pytest.raises(InvalidInputError, match="not an RG flow"):
        rgflow.RGFlow.load(tmp_path / "controls")
    for kind, name in ((rgflow.RGFlow, "flow"), (rgflow.Controls, "controls")):
        save_tensors(tmp_path / "part", {}, load_tensors(tmp_path / name)[1])
        with pytest.raises(InvalidInputError, match=r"lacks part of (an RG|the)"):
            kind.load(tmp_path / "part")


def test_faces():
    runs = imp_runs(3)
    flow = rgflow.fit(runs, controls=controls_of(runs))
    assert repr(flow) == (
        "RGFlow(3 seeds, 4 levels, 2 groups, L1 share before pruning)"
    )
    assert repr(flow.slopes) == "LogSlopes(3 seeds, 2 groups)"
    assert repr(rgflow.observables(runs[0])) == "Observables(4 levels, 2 groups)"
    text = flow.summary()
    assert len(text.splitlines()) == 5
    assert "excess over no retraining" in text
    assert "controls: none" in rgflow.fit(runs).summary()
    assert "Redman" in dynprune.core.cite(flow)
    frame = flow.to_frame()
    assert list(frame["group"]) == ["a", "b"]
    assert frame["excess"].tolist() == pytest.approx(flow.excess.tolist())
    assert frame["random"].tolist() == pytest.approx(
        flow.random_exponents.mean(0).tolist()
    )
    assert frame["levels_used"].tolist() == [4, 4]
    assert "exponent" in frame.attrs["units"]
    assert rgflow.fit(runs).to_frame()["excess"].isna().all()


def test_xarray_has_named_axes():
    pytest.importorskip("xarray")
    runs = imp_runs(3)
    data = rgflow.fit(runs, controls=controls_of(runs)).to_xarray()
    assert dict(data.sizes) == {"seed": 3, "level": 4, "group": 2}
    assert data["no_retraining"].dims == ("seed", "level", "group")
    total = data["shares"].sum("group").to_numpy().ravel()
    assert total.tolist() == pytest.approx([1.0] * 12)
    assert data["random_exponent"].sel(group="a").shape == (3,)


@pytest.mark.parametrize("groups", [2, 14], ids=["few", "many"])
def test_plot_draws_every_group_on_log_axes(groups):
    mpl.use("agg")
    import matplotlib.pyplot as plt

    before = dict(mpl.rcParams)
    sigma = [[0.1 * i + 0.01 * s for i in range(groups)] for s in range(2)]
    table = flow_of(sigma, first=[1.0] * groups)
    flow = rgflow.fit_shares(
        table,
        D,
        groups=[f"g{i}" for i in range(groups)],
        normalisation="absolute",
        no_retraining=table,
        random=table,
    )
    figure, ax = plt.subplots()
    try:
        assert flow.plot(ax) is ax
        assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
        assert len(ax.containers) == 3 * groups
        styles = {bar.lines[0].get_linestyle() for bar in ax.containers}
        assert styles == {"-", "--", ":"}
        labels = [text.get_text() for text in ax.get_legend().get_texts()]
        assert labels[-3:] == ["IMP", "no retraining", "random pruning"]
        assert len(labels) == min(groups, 10) + 3
        assert ax.get_xlabel() == "1 / density"
        figure.canvas.draw()
        assert dict(mpl.rcParams) == before
    finally:
        plt.close(figure)


def test_a_group_that_dies_early_is_refused_or_not_testable():
    table = flow_of(SIGMA)
    table[1, 2:, 2] = 0.0
    kwargs = {"groups": ("a", "b", "c"), "normalisation": "absolute"}
    with pytest.raises(InvalidInputError, match=r"IMP: too few levels .* c \(2\)"):
        rgflow.fit_shares(table, D, **kwargs)
    flow = rgflow.fit_shares(table, D, throw=False, **kwargs)
    assert flow.classes == ("relevant", "irrelevant", "not testable")
    assert flow.to_frame()["levels_used"].tolist() == [4, 4, 2]
    assert "1 not testable" in flow.summary()
    assert "nan" not in flow.summary().split("exponents: ")[1].splitlines()[0]
    with pytest.raises(InvalidInputError, match=r"random: too few levels"):
        rgflow.fit_shares(flow_of(SIGMA), D, random=table, **kwargs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": ("a", "b")}, "3 groups have the names a, b"),
        ({"groups": ("a", "b", "b")}, "all different"),
        ({"normalisation": "share"}, "miss a sum of one"),
        ({"random": flow_of(SIGMA[:2])}, r"'random' has shape \(2, 4, 3\)"),
        ({"magnitude": "L0"}, "magnitude='L0'"),
        ({"stage": "x"}, "stage='x'"),
    ],
    ids=["count", "twice", "sum", "control", "magnitude", "stage"],
)
def test_refusals_of_numbers(options, message):
    given = {"groups": ("a", "b", "c"), "normalisation": "absolute"} | options
    with pytest.raises(InvalidInputError, match=message):
        rgflow.fit_shares(flow_of(SIGMA), D, **given)


def test_refusals_of_runs_and_controls():
    runs = imp_runs(3)
    made = controls_of(runs)
    with pytest.raises(InvalidInputError, match=r"controls are of 3 runs .* 2 runs"):
        rgflow.fit(runs[:2], controls=made)
    short = [Space(tickets=r.tickets[:2], levels=r.levels[:2]) for r in runs]
    with pytest.raises(InvalidInputError, match="not the same ones"):
        rgflow.fit(short, controls=made)
    with pytest.raises(InvalidInputError, match="2 levels"):
        rgflow.fit(short)
    with pytest.raises(InvalidInputError, match="No IMP run"):
        rgflow.fit([])
