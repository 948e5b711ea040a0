"""What a model takes, as a recipe says it: every input's sizes, type, range of values, and which sizes are open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import torch
from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    FiniteFloat,
    PositiveInt,
    StrictBool,
    StrictInt,
    StrictStr,
    Tag,
    model_validator,
)
from torch import Generator, Tensor
from typing_extensions import TypeAliasType

from compress.core.config import Config
from compress.core.tensors import Inputs, mapped, named_leaves

SMALL = {"uint8": (0, 256), "int8": (-128, 128), "bool": (0, 2)}
"""Types whose whole range is a sensible input, from ... up to, not including."""
BATCH = "batch"


class InputConfig(Config):
    """One input of a model: a tensor."""

    shape: tuple[PositiveInt, ...] = Field(
        description="sizes of one sample, [] for a number; where batched is false, of the whole tensor"
    )
    dtype: Literal["float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"] = Field(
        "float32", description="type of its numbers"
    )
    low: float | None = Field(None, description="least value; null: normal noise, of integers 0")
    high: float | None = Field(
        None, description="largest value; of integers the first that is too large, such as the rows of an embedding"
    )
    batched: bool = Field(True, description="whether its first dimension numbers samples; else it is the same for all")
    dynamic: dict[int, Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]] = Field(
        {}, description="names of dimensions that an exported file leaves open, such as {2: height, 3: width}"
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        self._check_range()
        sizes = len(self.shape) + self.batched
        for place, name in self.dynamic.items():
            if not self.batched <= place < sizes:
                allowed = f"{int(self.batched)} to {sizes - 1}" if sizes > self.batched else "none"
                batch = " (0 is the batch, which export.dynamic_batch leaves open)" if self.batched else ""
                raise ValueError(f"dynamic: there is no dimension {place}; allowed: {allowed}{batch}")
            if name == BATCH:
                raise ValueError(f"dynamic: {BATCH} is what files call the first dimension; choose another name")
        return self

    def _check_range(self) -> None:
        whole = not self.dtype.startswith("float")
        if whole and any(value is not None and value != int(value) for value in (self.low, self.high)):
            raise ValueError(f"low and high of {self.dtype} are whole numbers; got {self.low} and {self.high}")
        if whole and self.dtype not in SMALL and self.high is None:
            raise ValueError(f"high: {self.dtype} needs the first number that is too large, as an embedding's rows")
        if not whole and (self.low is None) != (self.high is None):
            raise ValueError("low and high belong together; leave out both for normal noise")
        low, high = self.range or (0, 1)
        if not low < high:
            raise ValueError(f"low must be below high; got {low:g} and {high:g}")

    @property
    def range(self) -> tuple[float, float] | None:
        """Least and largest value, of integers the first too large one; None: normal noise."""
        if self.dtype.startswith("float"):
            return None if self.low is None or self.high is None else (self.low, self.high)
        low, high = SMALL.get(self.dtype, (0, 0))
        return (low if self.low is None else self.low, high if self.high is None else self.high)

    def sizes(self, batch: int, open_sizes: Mapping[str, int] | None = None) -> tuple[int, ...]:
        """Return the shape of the tensor, where `open_sizes` says how large named dimensions are."""
        sizes = [*((batch,) if self.batched else ()), *self.shape]
        for place, name in self.dynamic.items():
            sizes[place] = (open_sizes or {}).get(name, sizes[place])
        return tuple(sizes)

    def draw(self, generator: Generator, batch: int, open_sizes: Mapping[str, int] | None = None) -> Tensor:
        """Return such an input: normal noise, or values drawn evenly from the range.

        The last of several integers is the largest that may be, so that tables of too few rows are found out.
        """
        sizes, kind = self.sizes(batch, open_sizes), getattr(torch, self.dtype)
        if self.range is None:
            return torch.randn(sizes, generator=generator).to(kind)
        low, high = self.range
        if kind.is_floating_point:
            return (low + (high - low) * torch.rand(sizes, generator=generator)).to(kind)
        drawn = torch.randint(int(low), int(high), sizes, generator=generator)
        if drawn.numel() > 1:
            drawn.view(-1)[-1] = int(high) - 1
        return drawn.to(kind)

    def __str__(self) -> str:
        """Return sizes and type as in `3x64x64` and `int64 (one number)`."""
        kind = "" if self.dtype == "float32" else f"{self.dtype} "
        return f"{kind}{_sizes(self.shape)}{'' if self.batched else ' (no batch)'}"


def _sizes(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "one number"


def _kind(value: Any) -> str | None:
    """Return how arguments are given; None for an input without a name."""
    if isinstance(value, Mapping) and isinstance(value.get("shape"), list | tuple):
        return None
    return "by name" if isinstance(value, Mapping) else "in order"


def _agreeing(value: Any) -> Any:
    """Refuse arguments of which none is a tensor, and a name that stands for dimensions of several sizes."""
    tensors = named_leaves(value, "", "", InputConfig)
    if not tensors:
        raise ValueError("none of the arguments is a tensor, which is written {shape: [3, 64, 64]}")
    known: dict[str, int] = {}
    for each in tensors.values():
        for place, name in each.dynamic.items():
            size = each.sizes(0)[place]
            if known.setdefault(name, size) != size:
                raise ValueError(f"dynamic: {name} is {known[name]} in one place and {size} in another; use two names")
    return value


def _describes(value: Any) -> bool:
    """Whether `value` is one tensor's description, or a list or dictionary of such."""
    if isinstance(value, Mapping):
        return isinstance(value.get("shape"), list | tuple) or _form(value) == "by name"
    return isinstance(value, InputConfig) or (isinstance(value, list | tuple) and any(map(_describes, value)))


def _form(value: Any) -> str:
    """Return what an argument is; a mapping is a dictionary of arguments where any of its values describes a tensor."""
    if isinstance(value, Mapping):
        alone = isinstance(value.get("shape"), list | tuple) and not _describes(value["shape"])
        return "by name" if not alone and any(map(_describes, value.values())) else "a tensor"
    if isinstance(value, InputConfig):
        return "a tensor"
    return "in order" if isinstance(value, list | tuple) else "as it is"


# what an argument is: a tensor, a list or a dictionary of arguments, or a value that is handed on as it is
if TYPE_CHECKING:
    Argument = InputConfig | list[Any] | dict[str, Any] | bool | int | float | str | None
else:
    Argument = TypeAliasType(
        "Argument",
        Annotated[
            Annotated[InputConfig, Tag("a tensor")]
            | Annotated[list["Argument"], Field(min_length=1), Tag("in order")]
            | Annotated[dict[str, "Argument"], Field(min_length=1), Tag("by name")]
            | Annotated[StrictBool | StrictInt | FiniteFloat | StrictStr | None, Tag("as it is")],
            Discriminator(_form),
        ],
    )
Description = Annotated[
    Annotated[Annotated[dict[str, Argument], Field(min_length=1)], Tag("by name")]
    | Annotated[Annotated[list[Argument], Field(min_length=1)], Tag("in order")],
    Discriminator(
        _kind,
        custom_error_type="unnamed",
        custom_error_message="one input is a list of one, [{shape: ...}], or has its name, {x: {shape: ...}}",
    ),
    AfterValidator(_agreeing),
]
"""The key `model.inputs`: keyword arguments by name, or positional arguments in order."""


@dataclass(frozen=True)
class ModelInputs:
    """What a model is called with: an `InputConfig` in the place of each tensor."""

    arguments: Any

    @classmethod
    def of(cls, description: Any) -> ModelInputs:
        """Return those of the key `model.inputs`; a single one in order is the whole of what the model takes."""
        if isinstance(description, list):
            alone = len(description) == 1 and not isinstance(description[0], dict)
            return cls(description[0] if alone else tuple(description))
        return cls(description)

    def named(self, whole: str = "input") -> dict[str, InputConfig]:
        """Return every tensor's description by the name that files have for it; a single one is called `whole`."""
        return named_leaves(self.arguments, whole, "input", InputConfig)

    @property
    def keywords(self) -> tuple[str, ...]:
        """The names of keyword arguments; none where the arguments are positional."""
        return tuple(self.arguments) if isinstance(self.arguments, dict) else ()

    @property
    def main(self) -> InputConfig:
        """The images, which are the first input of three sizes, else the first with any size, else the first."""
        found = list(self.named().values())
        return next((one for one in found if len(one.shape) == 3), next((one for one in found if one.shape), found[0]))

    @property
    def open_sizes(self) -> dict[str, int]:
        """The sizes, here, of the dimensions that a file leaves open, by name."""
        return {name: each.sizes(0)[place] for each in self.named().values() for place, name in each.dynamic.items()}

    def draw(self, batch: int, seed: int = 0, open_sizes: Mapping[str, int] | None = None) -> Inputs:
        """Return such inputs of `batch` samples, always the same for one seed."""
        generator = torch.Generator().manual_seed(seed)
        return mapped(self.arguments, lambda one: one.draw(generator, batch, open_sizes), InputConfig)  # type: ignore[no-any-return]

    def misfit(self, inputs: Inputs) -> str | None:
        """Return in what way `inputs` of several samples are others than described; None where they are such."""
        given = named_leaves(inputs, "input", "input", Tensor)
        wanted = self.named()
        if isinstance(inputs, dict) != bool(self.keywords) and (len(wanted), len(given)) != (1, 1):
            ways = ("by name", "in order")
            mine, theirs = ways if self.keywords else ways[::-1]
            return f"are given {mine}, and the data gives them {theirs}"
        if len(wanted) == len(given) == 1:
            given = dict(zip(wanted, given.values(), strict=True))
        if wanted.keys() != given.keys():
            return f"are {', '.join(wanted)}; the data gives {', '.join(given)}"
        for name, each in wanted.items():
            tensor = given[name]
            fits = len(tensor.shape) == len(each.shape) + 1 and all(
                own == other or place + 1 in each.dynamic
                for place, (own, other) in enumerate(zip(each.shape, tensor.shape[1:], strict=True))
            )
            if not each.batched or not fits or tensor.is_floating_point() != each.dtype.startswith("float"):
                kind = str(tensor.dtype).removeprefix("torch.")
                own = f"{each.dtype} {_sizes(each.shape)}"
                return f"have {name} of {own}; the data gives {kind} {_sizes(tensor.shape[1:])} a sample"
            if each.range is not None and not tensor.is_floating_point():  # an embedding has no other rows
                low, high = int(tensor.min()), int(tensor.max())
                if not each.range[0] <= low <= high < each.range[1]:
                    own = f"{each.range[0]:g} to {each.range[1] - 1:g}"
                    return f"have {name} from {own}; the data gives {low} to {high}"
        return None

    def __str__(self) -> str:
        """Return names, types and sizes, as in `x 3x64x64, step int64 one number`."""
        if isinstance(self.arguments, InputConfig):
            return str(self.arguments)
        return ", ".join(f"{name} {each}" for name, each in self.named().items())
