from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from compress.bundle import open_model
from compress.core.errors import InputError
from compress.testing.sources import check_source
from evaluators.datasets.batch import Batch
from evaluators.datasets.digits import DigitsConfig
from evaluators.tasks import DEFAULT, tasks
from spaces.sources.huggingface.wrapped import Detector
from spaces.zoo import ModelConfig, build_model

transformers = pytest.importorskip(
    "transformers", reason="needs the extra huggingface: pip install 'compress[huggingface]'"
)

VIT = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 8,
}  # fmt: skip
RESNET = {
    "model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1],
    "layer_type": "basic", "out_features": ["stage4"],
}  # fmt: skip
DETR = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_queries": 6, "backbone_config": RESNET,
}  # fmt: skip
SWIN = {"model_type": "swin", "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 2}
MASKS = {
    "backbone_config": {**SWIN, "out_features": ["stage1", "stage2", "stage3", "stage4"]}, "feature_size": 32,
    "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 32, "dim_feedforward": 32,
    "encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2, "num_queries": 5,
}  # fmt: skip
SEGFORMER = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 2, 2]}


def config(name: str, **kwargs: Any) -> ModelConfig:
    return ModelConfig(source="huggingface", name=name, kwargs=kwargs)


@pytest.mark.parametrize(
    ("name", "task", "kwargs"),
    [
        ("vit", "classification", VIT),
        ("deit", "classification", VIT),
        ("segformer", "classification", SEGFORMER),
        ("segformer", "segmentation", SEGFORMER),
        ("mask2former", "segmentation", MASKS),
        ("detr", "detection", DETR),
        ("vit", "embedding", VIT),
    ],
)
def test_it_is_a_source(name: str, task: str, kwargs: dict[str, Any]) -> None:
    options: dict[str, Any] = {"width": 5} if task == "embedding" else {}
    check_source(config(name, **kwargs), tasks.get(task)(**options).bind(5, (3, 64, 64)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small classifier of ten classes and 32 pixels, as transformers saves it."""
    place = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    made = transformers.AutoConfig.for_model("vit", num_labels=10, image_size=32, **VIT)
    transformers.AutoModelForImageClassification.from_config(made).save_pretrained(place)
    (place / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1]}')
    return place


def test_a_directory_is_opened_with_its_weights_and_preprocessing(folder: Path) -> None:
    given = ModelConfig(source="huggingface", name=str(folder), pretrained=True)
    opened = open_model(given, DigitsConfig(name="digits"))
    theirs = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(opened.bundle.model(images), theirs(images).logits)
    assert opened.bundle.preprocessing.mean == (0.1, 0.2, 0.3)
    assert opened.load_report is not None and not opened.load_report.replaced
    assert opened.bundle.base.name == "vit" and not opened.bundle.base.pretrained  # needs the directory no more


def test_another_number_of_classes_replaces_the_head_alone(folder: Path) -> None:
    given = ModelConfig(source="huggingface", name=str(folder), pretrained=True)
    built = build_model(given, DEFAULT.bind(3, (3, 32, 32)))
    assert built.load_report is not None and len(built.load_report.replaced) == 2  # weight and bias
    assert all("classifier" in name for name in built.load_report.replaced) and built.task.num_outputs == 3


def test_what_cannot_be_opened_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model\.name: huggingface has no model 'vitt'; .*did you mean.*vit"):
        build_model(config("vitt"))
    with pytest.raises(InputError, match=r"holds no config\.json"):
        build_model(config(str(tmp_path)))
    with pytest.raises(InputError, match=r"model\.pretrained: 'vit' is a type of models"):
        build_model(config("vit").model_copy(update={"pretrained": True}))
    with pytest.raises(InputError, match=r"no such model for task detection; it has 'vit' for task classification"):
        build_model(config("vit"), tasks.get("detection")())
    (tmp_path / "config.json").write_text((folder / "config.json").read_text(encoding="utf-8"), encoding="utf-8")
    torch.save({"a": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    pickled = ModelConfig(source="huggingface", name=str(tmp_path), pretrained=True)
    with pytest.raises(InputError, match=r"model\.pretrained: .* no weights in safetensors .*pickles are not opened"):
        build_model(pickled)
    given = ModelConfig(source="huggingface", name=str(folder), pretrained=True)
    with pytest.raises(InputError, match=r"model\.name: got 32; the data needs 64"):
        build_model(given, DEFAULT.bind(10, (3, 64, 64)))


def detector() -> Detector:
    task = tasks.get("detection")().bind(4, (3, 64, 64))
    module = build_model(config("detr", **DETR), task).module
    assert isinstance(module, Detector)
    module.score_thresh = 0.0
    return module


def test_what_a_detector_finds_is_what_transformers_makes_of_its_outputs() -> None:
    module, images = detector(), [torch.randn(3, 64, 48), torch.randn(3, 32, 64)]
    pixels, mask = torch.zeros(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.long)
    for place, image in enumerate(images):
        pixels[place, :, : image.shape[1], : image.shape[2]] = image
        mask[place, : image.shape[1], : image.shape[2]] = 1
    with torch.no_grad():
        outputs = module.model(pixel_values=pixels, pixel_mask=mask)
        outputs.logits[..., 0] = -1e4  # class 0 is nobody's
        processor = transformers.DetrImageProcessor()
        theirs = processor.post_process_object_detection(outputs, threshold=-1.0, target_sizes=[(64, 48), (32, 64)])
        ours = module(images)
    for found, expected in zip(ours, theirs, strict=True):
        order = expected["scores"].argsort(descending=True)
        share = found["scores"] / expected["scores"][order]  # theirs are in parts of what class 0 leaves
        assert torch.equal(found["labels"], expected["labels"][order]) and bool((share <= 1).all())
        assert torch.allclose(found["boxes"], expected["boxes"][order], atol=1e-4)


def test_a_detector_gives_the_loss_of_transformers_in_training() -> None:
    module = detector().train()
    for layer in module.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    module.model.config.dropout = 0.0
    module.eval()
    module.training = True
    images = list(torch.randn(2, 3, 64, 64).unbind())
    targets = [
        {"boxes": torch.tensor([[8.0, 16.0, 24.0, 48.0]]), "labels": torch.tensor([2])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)},
    ]
    task = tasks.get("detection")().bind(4, (3, 64, 64))
    batch = Batch(images, targets)
    loss = task.loss(task.forward(module, batch), batch, module)
    wanted = [
        {"class_labels": torch.tensor([2]), "boxes": torch.tensor([[0.25, 0.5, 0.25, 0.5]])},
        {"class_labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0, 4)},
    ]
    expected = module.model(pixel_values=torch.stack(images), labels=wanted).loss
    assert torch.allclose(loss, expected) and loss.requires_grad


def test_masks_of_queries_are_the_class_map_that_transformers_makes() -> None:
    task = tasks.get("segmentation")().bind(5, (3, 64, 64))
    module: Any = build_model(config("mask2former", **MASKS), task).module
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        outputs, logits = module.model(pixel_values=images), module(images)
    classes, masks = outputs.class_queries_logits.softmax(-1)[..., :-1], outputs.masks_queries_logits.sigmoid()
    scores = torch.einsum("bqc,bqhw->bchw", classes, masks)
    assert torch.allclose(logits.softmax(1), scores / scores.sum(1, keepdim=True), atol=1e-5)
