import dataclasses

import pytest
import tomli_w

from dynprune.core import InvalidInputError
from dynprune.study import Config, configure, parse_config


def test_defaults_are_what_the_readme_says():
    config = Config()
    assert (config.task, config.seeds, config.densities[0]) == ("digits", 5, 1.0)
    assert config.densities[-1] == 0.02
    ratios = [
        b / a for a, b in zip(config.densities, config.densities[1:], strict=False)
    ]
    assert max(ratios) - min(ratios) < 1e-4
    assert config.compared == config.densities[1:]


def test_toml_round_trip():
    config = configure(task="mnist", seeds=2, learning_rate=0.03)
    assert parse_config(tomli_w.dumps(config.to_dict())) == config


def test_presets_and_choices():
    mnist = configure(task="mnist")
    assert mnist.densities[7] == pytest.approx(0.8**7, rel=1e-5)
    other = configure(task="mnist", densities=(1.0, 0.5))
    assert other.compared == (0.5,)
    assert configure(quick=True).steps < Config().steps


def test_forecast_window_and_horizons_lie_within_the_run():
    for config in (Config(), configure(task="mnist"), configure(steps=20)):
        start, stop = config.koopman_window
        assert 0 <= start < stop
        assert stop + max(config.koopman_horizons) <= config.steps
        assert (stop - start) % config.record_every == 0
        assert all(h % config.record_every == 0 for h in config.koopman_horizons)


REFUSED = {
    "density above 1": (dict(densities=(1.0, 1.5)), r"in \(0, 1\]; found: 1, 1.5"),
    "density 0": (dict(densities=(1.0, 0.0)), r"in \(0, 1\]"),
    "rising": (dict(densities=(1.0, 0.1, 0.2)), "start at 1 and decrease"),
    "no dense level": (dict(densities=(0.5, 0.2)), "start at 1 and decrease"),
    "only dense": (dict(densities=(1.0,)), "at least one density below 1"),
    "other comparison": (dict(compare_densities=(0.3,)), "no density of IMP"),
    "method": (dict(methods=("imp", "snp")), "Did you mean 'snip'"),
    "analysis": (dict(analyses=("forcast",)), "Did you mean 'forecast'"),
    "optimizer": (dict(optimizer="sdg"), "Did you mean 'sgd'"),
    "key": (dict(learning_rat=1), "Did you mean 'learning_rate'"),
    "no imp": (dict(methods=("snip",)), "lack 'imp'"),
    "lone control": (dict(methods=("imp", "manifold-shuffled")), "needs 'manifold'"),
    "no seeds": (dict(seeds=0), "seeds is 0"),
    "half a seed": (dict(seeds=1.5), "'seeds' is 1.5, expected int"),
    "a word": (dict(learning_rate="fast"), "expected float"),
    "one method": (dict(methods="imp"), "expected tuple"),
    "rate": (dict(learning_rate=0.0), "use a positive number"),
    "NaN rate": (dict(learning_rate=float("nan")), "use a positive number"),
    "rewind": (dict(rewind_step=600), "not below steps"),
    "colliding": (dict(densities=(1.0, 0.1, 0.1 - 1e-9)), "agree in six digits"),
    "mps": (dict(device="mps"), "Unknown device 'mps'"),
    "device": (dict(device="gpu"), "Unknown device 'gpu'"),
}


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_bad_config_is_refused(case):
    change, message = REFUSED[case]
    with pytest.raises(InvalidInputError, match=message):
        configure(**change)


def test_bad_toml_is_refused():
    with pytest.raises(InvalidInputError, match="not valid TOML"):
        parse_config("task = ")
    with pytest.raises(InvalidInputError, match="Unknown config key 'tusk'"):
        parse_config("tusk = 'digits'")


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seeds = 3
