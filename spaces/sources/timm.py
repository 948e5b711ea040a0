"""The models of timm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from compress.core.errors import did_you_mean
from evaluators.tasks import Task
from spaces.checkpoint import LoadReport, classifier_names
from spaces.shapes import as_argument, pair, sides_of, wished
from spaces.sources.construct import downloading, merged, refused, reserved, resolved
from spaces.zoo import BuiltModel, ModelConfig, Source, sources, unknown_name


@sources.register("timm")
class TimmSource(Source):
    """PyTorch image models; the part of a name after a dot says which published weights are meant."""

    published = sized = True

    def names(self) -> Sequence[str]:
        """Return timm's list, which leaves old names out."""
        import timm

        return list(timm.list_models())

    def problems(self, config: ModelConfig) -> Iterator[tuple[str, str]]:
        """Yield what is wrong with the name, its tag, and arguments that other keys stand for."""
        import timm

        base = config.name.partition(".")[0]
        if not timm.is_model(base):
            yield "name", unknown_name("timm", config.name, self.names(), base)
        elif problem := _tag_problem(config.name):
            yield "name", problem
        yield from reserved(config)

    def build(self, config: ModelConfig, task: Task) -> BuiltModel:
        """Build it with `num_classes` and `in_chans`, and `img_size` where its input size is fixed."""
        import timm

        published = timm.models.get_pretrained_cfg(config.name)
        kwargs = merged(config, num_classes=wished(task.num_outputs), in_chans=wished(task.in_chans))
        fixed = bool(published and published.fixed_input_size)
        if fixed:
            kwargs = merged(config, kwargs, img_size=as_argument(sides_of(task)))
        with refused(config, kwargs):
            module = timm.create_model(config.name, pretrained=False, **kwargs)
        cfg: dict[str, Any] = dict(vars(module)["pretrained_cfg"])
        sides = pair(kwargs.get("img_size") or sides_of(task) or cfg["input_size"][1:])
        channels = int(kwargs.get("in_chans", cfg["input_size"][0]))
        num_classes = kwargs.get("num_classes", getattr(module, "num_classes", None))
        kwargs |= {"in_chans": channels} | ({} if num_classes is None else {"num_classes": num_classes})
        if fixed:
            kwargs["img_size"] = as_argument(sides)
        report = None
        if config.pretrained:
            with downloading(config):
                module = timm.create_model(config.name, pretrained=True, **kwargs)
            heads = classifier_names(module) if cfg["num_classes"] != num_classes else ()
            replaced = [name for name in module.state_dict() if name.rpartition(".")[0] in heads]
            report = LoadReport(f"timm {config.name}", len(module.state_dict()) - len(replaced), replaced=replaced)
        shape = (channels, *sides)
        cfg |= {"input_size": shape, "fixed_input_size": fixed or config.input_size is not None}
        return resolved(config, kwargs, module, task.config.of_model(num_classes, shape), report, cfg)


def _tag_problem(name: str) -> str:
    """Return what is wrong with the part of a name after the dot, which names published weights."""
    import timm

    base, _, tag = name.partition(".")
    tags = [full.partition(".")[2] for full in timm.list_models(f"{base}.*", pretrained=True)]
    if not tag or tag in tags:
        return ""
    allowed = f"allowed: {', '.join(tags)}" if tags else "it has none"
    return f"timm has no weights {tag!r} of {base!r}; {allowed}{did_you_mean(tag, tags)}"
