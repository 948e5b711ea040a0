"""What the builders of one task have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from evaluators.tasks import Task
from spaces.checkpoint import LoadReport, load_weights
from spaces.sources.construct import downloading
from spaces.zoo import BuiltModel, ModelConfig

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "interpolation": "bilinear"}
"""How most of the published weights want their images."""


@dataclass(frozen=True)
class Kind:
    """Builders of one task.

    Attributes:
        task: that their models are for.
        module: of torchvision that lists them.
        build: makes one of them, as `Source.build` does.
        without: names in that list that are for something else.
    """

    task: str
    module: str
    build: Callable[[ModelConfig, Task], BuiltModel]
    without: Sequence[str] = ()

    def names(self) -> Sequence[str]:
        """Return torchvision's list of them."""
        from importlib import import_module

        import torchvision

        names = torchvision.models.list_models(module=import_module(self.module))
        return [name for name in names if name not in self.without]


def published(
    module: nn.Module, config: ModelConfig, leave_out: str = "", other_widths: tuple[str, ...] = ()
) -> LoadReport | None:
    """Load the weights that torchvision publishes, where the recipe asks for them; None where it does not.

    Args:
        module: gets the weights.
        config: of the model.
        leave_out: where the names begin of what `module` may lack.
        other_widths: where the names begin of what keeps its initial values if it has another shape in `module`.
    """
    if not config.pretrained:
        return None
    import torchvision

    with downloading(config):
        state: Mapping[str, Any] = torchvision.models.get_model_weights(config.name).DEFAULT.get_state_dict(
            progress=False
        )
    own = module.state_dict()
    kept: dict[str, Tensor] = {
        name: value
        for name, value in state.items()
        if (name in own or not leave_out or not name.startswith(leave_out))
        and not (name.startswith(other_widths) and name in own and own[name].shape != value.shape)
    }
    return load_weights(module, kept, f"torchvision {config.name}", "model.pretrained")
