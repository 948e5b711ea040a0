"""What stages leave in their folders for the report, as typed records: details.json and samples.json."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from compress.report.schema import Number, Quantized, Rank, Record, empty_if_null

Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class TriedWay(Record):
    """One way of quantising that was tried; `drop` is of the main metric on held-out training images."""

    way: str
    latency_ratio: Number = None
    drop: Number = None
    agreement: Number = None
    integer_layers: int
    left_float: int
    bytes: Number = None
    problem: str | None = None


class NodeError(Record):
    """A node alone in integers, and the mean square error of the outputs over their mean square."""

    name: str
    error: float


class Judged(Record):
    """Of how many images a judgement is, and its agreement."""

    images: int
    agreement: Number = None


class Trained(Record):
    """The main metric over so many images: of the float file, and of integers without and with training for them."""

    images: int
    floats: Number = None
    without: Number = None
    with_: Number = Field(None, alias="with")


class Finetuned(Record):
    """What training before quantising has given; `kept` says whether its weights were taken."""

    kept: bool
    judged: Trained
    test: Trained | None = None


class QuantizedDetails(Quantized):
    """What the stage `quantize` leaves in details.json."""

    processor: dict[str, Any] = Field(default_factory=dict)
    judged: Judged
    test: Judged | None = None
    calibration: dict[str, Any] | None = None
    max_drop: float
    finetuned: Finetuned | None = None
    candidates: list[TriedWay] = Field(default_factory=list)
    sensitivity: list[NodeError] = Field(default_factory=list)


class Layer(Record):
    """Width of one layer before and after pruning, in units of its kind."""

    name: str
    kind: str = "channels"
    before: int = Field(ge=0)
    after: int = Field(ge=0)
    stage: str | int | None = None


class Kept(Record):
    """How much of a module or stage is left, in whatever is counted (weights or units)."""

    name: str | int
    kept: float = Field(ge=0)
    total: float = Field(ge=0)


class Skipped(Record):
    """A layer left whole, and why."""

    layer: str
    reason: str


class Predicted(Record):
    """What a plan says it leaves: [before, after]."""

    macs: tuple[Number, Number] | None = None
    params: tuple[Number, Number] | None = None


class Sensitivity(Record):
    """One narrowing of a sensitivity scan: of which group, the share removed, how much worse the main metric got."""

    group: str
    kind: str
    ratio: float
    drop: float


class Evaluated(Record):
    """One trial of a search; `values` is None where it was not evaluated to the end."""

    number: int
    values: list[float] | None = None
    metrics: dict[str, float] = Field(default_factory=dict)


class Best(Record):
    """One of the architectures that a search kept."""

    trial: int
    metrics: dict[str, float] = Field(default_factory=dict)
    choices: dict[str, Any] = Field(default_factory=dict)


class Hypervolume(Record):
    """What a search with several objectives had dominated after each complete trial, up to `reference`."""

    reference: list[float]
    course: list[float]


class SearchDetails(Record):
    """What the stage `search` leaves in details.json."""

    space: str
    architectures: str
    strategy: str
    objective: list[str] = Field(default_factory=list)
    directions: list[str] = Field(default_factory=list)
    trials: dict[str, int] = Field(default_factory=dict)
    best: list[Best] = Field(default_factory=list)
    history: list[Evaluated] = Field(default_factory=list)
    importance: dict[str, float] = Field(default_factory=dict)
    hypervolume: Hypervolume | None = None


class RankedNetwork(Record):
    """One network of a ranking: its code, its score, and what is known of it."""

    name: str
    score: Number = None
    truth: Number = None
    macs: Number = None
    params: Number = None


class RankDetails(Rank):
    """What the stage `rank` leaves in details.json: `scored` of the networks now, in so many seconds."""

    scored: int
    seconds: float
    best: list[RankedNetwork] = Field(default_factory=list)
    points: list[RankedNetwork] = Field(default_factory=list)


class Refit(Record):
    """A layer that compensation refitted: the mean square of what it missed, before and after."""

    layer: str
    before: float
    after: float
    blocks: list[str] = Field(default_factory=list)


class CompensationDetails(Record):
    """What compensation did; `error` is that of the outputs on images held out, without it (`plain`) and with it."""

    kept: bool
    images: int
    held_out: int
    error: dict[str, float] = Field(default_factory=dict)
    layers: list[Refit] = Field(default_factory=list)
    left: list[Skipped] = Field(default_factory=list)


class LatencyRow(Record):
    """What pruning to one latency has given: shares of the dense model's latency, (before, after) of the cost."""

    budget: dict[str, float]
    latency: float
    ci95: tuple[float, float]
    latency_ms: Milliseconds
    macs: tuple[int, int]
    blocks_removed: list[str] = Field(default_factory=list)
    metrics: dict[str, float | None] = Field(default_factory=dict)


class Details(Record):
    """stages/<nn-name>/details.json; every part may be absent."""

    layers: list[Layer] = Field(default_factory=list)
    modules: list[Kept] = Field(default_factory=list)
    stages: list[Kept] = Field(default_factory=list)
    skipped: list[Skipped] = Field(default_factory=list)
    blocks_removed: list[str] = Field(default_factory=list)
    align: int | None = None
    predicted: Annotated[Predicted, BeforeValidator(empty_if_null)] = Predicted()
    notes: list[str] = Field(default_factory=list)
    sensitivity: list[Sensitivity] = Field(default_factory=list)
    compensation: CompensationDetails | None = None
    latencies: list[LatencyRow] = Field(default_factory=list)
    search: SearchDetails | None = None
    rank: RankDetails | None = None
    quantized: QuantizedDetails | None = None


class Samples(Record):
    """stages/<nn-latency>/samples.json: timed runs in milliseconds, of more than 1,000 an even sample."""

    baseline_ms: list[Milliseconds] = Field(default_factory=list)
    final_ms: list[Milliseconds] = Field(default_factory=list)
