from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from compress.core import svg
from compress.report.bars import kept_chart, width_charts
from compress.report.curves import training_curves
from compress.report.details import Kept, Layer, Samples
from compress.report.histogram import latency_chart
from compress.report.plot import Plot
from compress.report.schema import Latency
from evaluators.tasks import DEFAULT

MAIN = DEFAULT.metrics[0]


def _rects(chart: str, style: str) -> list[dict[str, str]]:
    return [e.attrib for e in ElementTree.fromstring(chart).iter("rect") if e.get("class") == style]


def _texts(chart: str) -> list[str]:
    return [e.text or "" for e in ElementTree.fromstring(chart).iter("text")]


def test_bar_lengths_are_proportional_to_widths_on_one_scale() -> None:
    layers = [Layer(name=f"conv{i}", before=b, after=a) for i, (b, a) in enumerate([(64, 32), (128, 128), (256, 16)])]
    (chart,) = width_charts(layers)[0].charts
    whole = [float(r["width"]) for r in _rects(chart, "whole")]
    part = [float(r["width"]) for r in _rects(chart, "part")]
    assert np.allclose(np.array(whole) / whole[2], [0.25, 0.5, 1.0], atol=2e-3)
    assert np.allclose(np.array(part) / whole[2], [0.125, 0.5, 0.0625], atol=2e-3)


@pytest.mark.parametrize("count", [1, 17, 60, 333])
def test_every_layer_is_drawn_once_however_many_there_are(count: int) -> None:
    layers = [Layer(name=f"layer.{i}", before=8, after=4) for i in range(count)]
    charts = width_charts(layers)[0].charts
    names = [text for chart in charts for text in _texts(chart) if text.startswith("layer.")]
    assert names == [layer.name for layer in layers]
    assert max(len(_rects(chart, "whole")) for chart in charts) <= 32


def test_kinds_of_units_do_not_share_a_scale() -> None:
    layers = [Layer(name="a", kind="heads", before=3, after=2), Layer(name="b", kind="mlp", before=3072, after=1024)]
    widths = [float(_rects(found.charts[0], "whole")[0]["width"]) for found in width_charts(layers)]
    assert widths[0] == widths[1]


def test_a_layer_cut_to_nothing_and_an_empty_module_draw_without_error() -> None:
    (chart,) = width_charts([Layer(name="gone", before=8, after=0)])[0].charts
    assert not _rects(chart, "part") and "0 %" in _texts(chart)
    assert "0.0 %" in _texts(kept_chart("By module", [Kept(name="none", kept=0, total=0)]).charts[0])


def test_long_names_are_shortened_but_stay_distinct_and_whole_in_the_title() -> None:
    names = [f"neck.lateral_convolutions.{i}.depthwise_separable.pointwise" for i in range(12)]
    short = {svg.elided(name, 31) for name in names}
    assert len(short) == 12 and max(map(len, short)) <= 31
    (chart,) = width_charts([Layer(name=names[0], before=4, after=2)])[0].charts
    assert names[0] in (ElementTree.fromstring(chart).findtext(".//title") or "")
    assert [svg.elided(name, 31) for name in ("a", "c1", "head.fc")] == ["a", "c1", "head.fc"]


def test_names_are_escaped_in_drawings() -> None:
    (chart,) = width_charts([Layer(name="<b>&", before=4, after=2)])[0].charts
    assert "<b>" not in chart and "&lt;b&gt;&amp;" in chart


@pytest.mark.parametrize(("low", "high"), [(0, 1), (37.2, 64.0), (0.0019, 0.0021), (1, 2000)])
def test_ticks_are_round_few_and_inside(low: float, high: float) -> None:
    found = svg.ticks(low, high)
    assert 2 <= len(found) <= 13 and low <= found[0] and found[-1] <= high


def test_histogram_marks_both_medians_and_counts_what_lies_beyond_the_axis() -> None:
    final = [2.0 + i / 1000 for i in range(200)]
    chart = latency_chart(Samples(baseline_ms=[*[4.0 + i / 1000 for i in range(200)], 90.0], final_ms=final))
    texts = _texts(chart)
    assert "p50 4.10 ms" in texts and "p50 2.10 ms" in texts and "1 slower, up to 90.0 ms →" in texts


@pytest.mark.parametrize("final", [[], [1.5], [1.5] * 50])
def test_histogram_draws_one_model_and_constant_times(final: list[float]) -> None:
    chart = latency_chart(Samples(baseline_ms=[1.5] * 50, final_ms=final))
    assert len(_rects(chart, "whole-strong")) == 1 and "nan" not in chart


def test_histogram_of_a_sample_marks_the_percentiles_of_all_runs_and_says_how_many_there_were() -> None:
    all_runs = Latency(p10=1.4, p50=1.52, p90=1.7, p99=1.9, runs=1480)
    texts = _texts(latency_chart(Samples(final_ms=[1.5, 1.6] * 370), final=all_runs))
    assert "740 of 1480 runs" in texts and "p50 1.52 ms" in texts


def test_histogram_of_one_model_does_not_call_it_final() -> None:
    texts = _texts(latency_chart(Samples(final_ms=[1.5] * 50)))
    assert "Model" in texts and "Final" not in texts


def test_axes_mark_large_values_with_a_prefix() -> None:
    drawing = Plot([(2e5, 0.0), (1.2e6, 5000.0)], "top1", "macs", "top1 by macs", whole_ticks=False).drawing
    texts = _texts(svg.markup(drawing))
    assert {"200 K", "1 M", "4000"} <= set(texts)


def test_histogram_is_absent_without_samples() -> None:
    assert latency_chart(Samples()) == ""


def _event(epoch: int, **values: Any) -> dict[str, Any]:
    return {"event": "epoch", "stage": "finetune", "number": 3, "epoch": epoch, **values}


def test_curves_take_the_last_of_an_epoch_run_twice_and_skip_what_was_not_evaluated() -> None:
    events = [_event(1, loss=2.0, top1=50.0), _event(2, loss=9.0), _event(2, loss=1.0), _event(3, loss=float("nan"))]
    (found,) = training_curves(events, MAIN)
    loss, top1 = found.charts
    assert found.stage == "03-finetune" and "polyline" in top1
    line = ElementTree.fromstring(loss).find("polyline")
    assert line is not None and len(line.attrib["points"].split()) == 2
    ys = [float(point.split(",")[1]) for point in line.attrib["points"].split()]
    assert ys[1] > ys[0]


def test_each_stage_has_curves_of_its_own() -> None:
    events = [{**_event(1, loss=9.0), "number": 5}, _event(1, loss=2.0), {**_event(1, loss=1.0), "stage": "dense"}]
    assert [found.stage for found in training_curves(events, MAIN)] == [
        "05-finetune",
        "03-finetune",
        "03-dense",
    ]


def test_curves_are_absent_for_a_log_without_epochs() -> None:
    assert training_curves([{"event": "start"}, {"event": "epoch", "epoch": None}, {"epoch": 3}], MAIN) == []
