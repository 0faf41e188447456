"""How much of a fit is done, and how long the rest takes, where its passes take longer or shorter than its steps."""

import math
from types import SimpleNamespace

import pytest
import torch
from masked_cases import NOISE, RECIPE, noisy

from dip_fast import networks
from dip_fast.fitting import prepare
from dip_fast.fitting.callbacks import steps_done, steps_in_all
from dip_fast.fitting.costs import DRAWING, PARAMETERS, Forecast, parts
from dip_fast.fitting.objectives import Passes
from dip_fast.fitting.start import masked_prediction
from dip_fast.presets import PRESETS
from dip_fast.runs.progress import Progress

PIXELS = 1000


def fit_of(steps: int, *kinds: Passes, consolidation: int = 0) -> SimpleNamespace:
    """What a forecast reads of a fit, of a network as large as that of preset default."""
    objective = SimpleNamespace(
        step_size=(1, PIXELS),
        drawing_size=(1, PIXELS),
        kinds_of_passes=kinds,
        passes=sum(kind.number for kind in kinds),
        channels=3,
    )
    return SimpleNamespace(
        objective=objective,
        network=SimpleNamespace(parameters=lambda: [torch.empty(int(PARAMETERS), device="meta")]),
        options=SimpleNamespace(iterations=steps),
        consolidation_steps=consolidation,
        steps=0,
        passes=0,
        consolidated=0,
        stop_reason="",
        events=[],
        rows=[],
        estimated_psnr=lambda: None,
    )


def drawing(count: int, steps: float) -> Passes:
    """Passes that draw so many pixels that each costs so many steps."""
    return Passes(count, drawn=steps * PIXELS / DRAWING)


def foretold(fit: SimpleNamespace, seconds: tuple[float, ...]) -> list[tuple[float, float, float]]:
    """Run through a fit on a clock of its own, whose parts take so many seconds each step or pass.

    Returns
    -------
    list of tuple
        Time left in truth, that foretold, and the percentage done, after each step and pass.
    """
    counts = [part.total for part in parts(fit)]
    total = sum(count * each for count, each in zip(counts, seconds, strict=True))
    now, forecast, seen = 100.0, Forecast(fit, 100.0), []
    for number, (count, each) in enumerate(zip(counts, seconds, strict=True)):
        name = "steps" if number == 0 else "consolidated" if number == len(counts) - 1 else "passes"
        for _ in range(count):
            now += each
            setattr(fit, name, getattr(fit, name) + 1)
            if fit.steps == counts[0]:
                fit.stop_reason = "iterations"
            forecast.update(fit, now)
            seen.append((100 + total - now, forecast.seconds_left, 100 * forecast.fraction))
    return seen


@pytest.mark.parametrize("k", [0.1, 1.0, 22.0])
def test_time_left_falls_with_the_time_where_passes_cost_more_than_steps(k: float) -> None:
    """It was foretold as if all took alike: "02:33 left" where 9 minutes were, for passes of 22 steps each."""
    fit = fit_of(300, drawing(64, k), consolidation=30)
    seen = foretold(fit, (0.27, 0.27 * k, 0.27))
    total = 0.27 * (330 + 64 * k)
    for left, said, percent in seen:
        assert said == pytest.approx(left, abs=1e-6)
        assert percent == pytest.approx(100 * (1 - left / total))
    assert seen[-1][2] == pytest.approx(100)


def test_time_left_is_corrected_by_what_a_pass_takes() -> None:
    """Another machine's passes cost twice what was foretold: its time left is right from the first few on."""
    fit = fit_of(100, drawing(50, 4.0), drawing(200, 0.5))
    seen = foretold(fit, (1.0, 8.0, 1.0, 1.0))
    before = seen[99]
    assert before[1] == pytest.approx(300)
    for left, said, _ in seen[110:]:
        assert said == pytest.approx(left, rel=0.35, abs=2.0)


def test_time_left_of_a_resumed_fit_counts_from_where_it_goes_on() -> None:
    fit = fit_of(100)
    fit.steps = 60
    forecast = Forecast(fit, 5.0)
    assert forecast.seconds_left is None
    fit.steps = 70
    forecast.update(fit, 25.0)
    assert (forecast.seconds_left, forecast.fraction) == (pytest.approx(60), 0.7)


def test_costs_of_fifteen_megapixels_are_those_measured() -> None:
    """300 steps of 0.27 s, then 64 masks of 6 s each, then patches; 7 minutes after the steps."""
    recipe = PRESETS["default"].recipe
    objective = masked_prediction(noisy(), NOISE, recipe)
    objective.size, objective.step_size, objective.margin = (3168, 4736), (512, 512), 16
    fit = fit_of(300, consolidation=30)
    fit.objective, fit.network = objective, networks.build("skip", 6, 3, **recipe.network_options)
    _, masks, patches, drawn = parts(fit)
    assert 0.27 * masks.cost == pytest.approx(6, rel=0.15)
    assert 0.27 * sum(part.total * part.cost for part in (masks, patches, drawn)) == pytest.approx(420, rel=0.25)
    assert drawn.cost == pytest.approx(1)


def test_patches_take_fewer_steps_of_a_larger_network() -> None:
    """Those of preset paper take 5.5 times as long as those of default."""
    fit = fit_of(3000, Passes(8, alike=PIXELS))
    fit.network = networks.build("skip", 32, 3, **PRESETS["paper"].recipe.network_options)
    assert parts(fit)[1].cost == pytest.approx(1.5 / 5.5, rel=0.2)


def test_fit_is_done_at_its_end_and_not_before() -> None:
    fit = prepare(masked_prediction(noisy(), NOISE, RECIPE, seed=3), RECIPE, seed=3)
    forecast, shown = Forecast(fit, 0.0), []

    def look(fit) -> None:
        forecast.update(fit, float(steps_done(fit)))
        shown.append(forecast.fraction)

    fit.run([look])
    assert shown == sorted(set(shown))
    assert shown[-1] == pytest.approx(1)
    assert math.floor(100 * shown[-1]) == 100
    assert len(shown) == steps_in_all(fit)
    assert forecast.seconds_left == pytest.approx(0)


@pytest.mark.parametrize("shown", ["lines", "events", "bar"])
def test_progress_shows_the_part_of_the_work_and_the_time_left_of_all_of_it(shown: str, monkeypatch, capsys) -> None:
    """Five of ten steps are made, and four passes follow of ten steps each: a tenth, and nine times as long left."""
    clock = SimpleNamespace(monotonic=lambda: 0.0)
    monkeypatch.setattr("dip_fast.runs.progress.time", clock)
    monkeypatch.setattr("sys.stderr.isatty", lambda: shown == "bar")
    fit, said, events = fit_of(10, drawing(4, 10.0)), [], []
    with Progress(fit, said.append, "denoising", emit=events.append if shown == "events" else None) as progress:
        fit.steps, clock.monotonic = 5, lambda: 20.0
        progress(fit)
    if shown == "lines":
        assert said == ["denoising 10%, 03:00 left"]
        third = Progress(fit_of(10, drawing(4, 10.0)), said.append, "denoising", part=(2, 5))  # each takes 200 s
        clock.monotonic = lambda: 40.0
        third(fit)
        assert said[1:] == ["denoising 42%, 09:40 left"]
    elif shown == "events":
        (event,) = events
        assert (event["done"], event["total"], event["percent"], event["seconds_left"]) == (5, 14, 10.0, 180.0)
    else:
        last = capsys.readouterr().err.split("\r")[-1]
        assert "10% |" in last
        assert "| 03:00 left" in last
