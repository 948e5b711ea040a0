"""The command `compress cache-teacher`."""

from __future__ import annotations

from compress.commands.options import (
    DeviceFlag,
    JsonFlag,
    QuietFlag,
    RecipeFlag,
    SeedFlag,
    SetFlag,
    flags_of,
    overrides_of,
    print_json,
)
from compress.core.formatting import duration, file_size
from compress.core.progress import set_quiet


def cache_teacher(
    recipe: RecipeFlag,
    set_: SetFlag = None,
    device: DeviceFlag = "auto",
    seed: SeedFlag = None,
    quiet: QuietFlag = False,
    json: JsonFlag = False,
) -> None:
    """Keep what teachers give in a training on disk.

    Runs each teacher of the recipe that names a `cache` (a folder) over the batches that the training will see, and
    writes its outputs there in 16 bits; the training then reads them and does not run the teacher. Interrupted, the
    same command goes on where it was.
    """
    set_quiet(quiet)
    from compress.runs.recipe import load_recipe
    from compress.runs.teacher_caches import cache_teachers

    found = list(cache_teachers(load_recipe(recipe, overrides_of(set_, seed), flags_of(seed)), device))
    if json:
        rows = [(name, each.folder, each.epochs, each.computed, each.size, each.seconds) for name, each in found]
        keys = ("teacher", "folder", "epochs", "computed", "bytes", "seconds")
        print_json([dict(zip(keys, (row[0], str(row[1]), *row[2:]), strict=True)) for row in rows])
        return
    for name, each in found:
        print(
            f"teacher {name}: {each.epochs} epochs, {each.computed} computed in {duration(each.seconds)}, "
            f"{file_size(each.size)}  {each.folder}"
        )
