"""The `data` section of a recipe: one config class for each kind of data set."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from compress.core.config import Config

Unit = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class _Images(Config):
    """What every set of images takes."""

    image_size: int | None = Field(
        None, ge=4, le=4096, description="pixels a side; null: the model's where it is fixed, else the images' own"
    )
    channels: Literal[1, 3] | None = Field(None, description="1 grey, 3 colour; null: the model's")
    batch_size: int = Field(128, ge=1, description="images in a training batch")
    eval_batch_size: int = Field(256, ge=1, description="images in an evaluation batch")
    mean: tuple[Unit, ...] | None = Field(
        None, min_length=1, max_length=3, description="subtracted, per channel, from pixels in 0..1; null: the model's"
    )
    std: tuple[Positive, ...] | None = Field(
        None, min_length=1, max_length=3, description="divides, per channel; null: the model's, else the data's"
    )
    interpolation: Literal["bilinear", "bicubic"] | None = Field(
        None, description="how images are resized; null: the model's"
    )
    limit_train: int | None = Field(None, ge=1, description="use that many training images, balanced over classes")
    limit_test: int | None = Field(None, ge=1, description="use that many test images, balanced over classes")


class _Arrays(_Images):
    """Sets that lie in memory as bytes; augmented a batch at a time."""

    augment: Literal["none", "flip", "shift", "crop_flip"] = Field(
        "crop_flip", description="shift and crop move the image by up to an eighth of its side; flip mirrors it"
    )


class _Files(_Images):
    """Sets of image files; read, cropped and augmented one by one with timm's transforms."""

    augment: Literal["none", "timm"] = Field("timm", description="timm: random resized crop, flip and what follows")
    crop_scale: Annotated[float, Field(gt=0, le=1)] = Field(0.08, description="least area of the random crop")
    color_jitter: float = Field(0.4, ge=0, description="strength of colour jitter; not used with auto_augment")
    auto_augment: str | None = Field(None, description="timm's policy, such as rand-m9-mstd0.5-inc1")
    random_erase: Unit = Field(0.0, description="probability of random erasing")
    crop_pct: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="share of the resized image that evaluation crops; null: the model's"
    )
    workers: int = Field(2, ge=0, description="processes that read images; 0 reads in this one")


class DigitsConfig(_Arrays):
    """The 1,797 handwritten digits that come with scikit-learn: 8x8 pixels, 16 grey levels, always at hand."""

    name: Literal["digits"]
    image_size: int | None = Field(
        32, ge=8, le=4096, description="pixels a side that the 8x8 images are enlarged to; null: the model's"
    )
    channels: Literal[1, 3] = Field(3, description="1 grey, 3 the same thrice")
    augment: Literal["none", "flip", "shift", "crop_flip"] = Field(
        "shift", description="shift and crop move the image by up to an eighth of its side; flip mirrors it"
    )


class NpzConfig(_Arrays):
    """A NumPy archive with x_train, y_train, x_test, y_test; images uint8, (N, H, W, C) or (N, H, W)."""

    name: Literal["npz"]
    path: str = Field(min_length=1, description="the .npz file")
    num_classes: int | None = Field(None, ge=2, description="classes; null: counted from the labels")


class TorchvisionConfig(_Arrays):
    """CIFAR-10, CIFAR-100 or Fashion-MNIST through torchvision, which checks the sums of files that it unpickles."""

    name: Literal["torchvision"]
    dataset: Literal["CIFAR10", "CIFAR100", "FashionMNIST"] = Field(description="name of the torchvision class")
    path: str = Field(min_length=1, description="directory that torchvision keeps the data in")
    download: bool = Field(False, description="fetch the data when it is not there")


class ImageFolderConfig(_Files):
    """A directory with train/CLASS/*.jpg and val/CLASS/*.jpg (or test/).

    Grey images of more than 8 bits keep their levels: 16-bit PNG, TIFF and PGM are taken as 0 (black) to 65535 (white),
    float TIFF and PFM as 0 to 1; levels outside are refused. Hidden folders and files are left out, and so are files
    that are no images by their ending. Of an animation the first frame counts; transparency is dropped.
    """

    name: Literal["imagefolder"]
    path: str = Field(min_length=1, description="the directory that holds train/ and val/ or test/")


class HuggingFaceConfig(_Files):
    """A data set of the Hugging Face hub, or in its format, through timm."""

    name: Literal["huggingface"]
    dataset: str = Field(min_length=1, description="name on the hub, or a directory")
    path: str | None = Field(None, description="cache directory; null: the hub's default")
    train_split: str | None = Field("train", description="split to train on; null: none")
    test_split: str | None = Field("test", description="split to evaluate on; null: none")
    image_key: str = Field("image", description="column of the images")
    label_key: str = Field("label", description="column of the labels")


class NoneConfig(Config):
    """No data: prune, export and measure; accuracies are null."""

    name: Literal["none"]
    image_size: int | None = Field(None, ge=4, le=4096, description="pixels a side; null: the model's own")


DataConfig = Annotated[
    DigitsConfig | NpzConfig | TorchvisionConfig | ImageFolderConfig | HuggingFaceConfig | NoneConfig,
    Field(discriminator="name"),
]
