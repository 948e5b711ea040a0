"""What is said of a path that is asked for as a run, or as something in one, and is neither."""

from __future__ import annotations

from pathlib import Path

from compress.core.errors import reason_of

UNFINISHED = "holds a run that is not finished; go on with it by --resume"


def misled(path: Path) -> str | None:
    """Return what `path` is in place of a run or of what one has made, as the rest of a sentence; None for others."""
    try:
        if not path.exists():
            return "does not exist"
    except OSError as error:  # a name that is too long, a folder that may not be read
        return f"cannot be read: {reason_of(error)}"
    if path.is_file() and path.suffix in (".yaml", ".yml"):
        return "is a recipe; name the directory of a run of it"
    unfinished = (path / "recipe.yaml").is_file() and not (path / "report.json").is_file()
    return UNFINISHED if unfinished else None
