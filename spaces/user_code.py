"""Modules of the user's, found in the working directory whatever other packages of the same name are installed.

A folder `search` or a file `code.py` beside a recipe is hidden by a package of ours or of the standard library. What
lies in the working directory is therefore imported below a package of our making, so that neither hides the other:
`search/net.py` becomes `_here_....search.net`, and the imports written in it look beside it first, as they do where
Python runs the file itself.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import sys
import zlib
from collections.abc import Sequence
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

_ROOT = "_here_"
_OURS = ("compress", "evaluators", "search", "spaces")


def import_module(name: str) -> ModuleType:
    """Import the module `name` from the working directory, or else from what is installed.

    Raises what the module raises, and ImportError where there is none.
    """
    here = Path.cwd()
    if str(here) not in sys.path:
        sys.path.append(str(here))
    file = _file_of(here, name)
    there = sys.modules.get(name)
    if file is None or _is(there, file) or _ours(here, name):
        return importlib.import_module(name)
    return importlib.import_module(f"{_package_of(here)}.{name}")


def is_there(name: str) -> bool:
    """Return whether there is a package or module for `import_module` to begin with, without running any."""
    top = name.partition(".")[0]
    here = Path.cwd() / top
    if here.is_dir() or here.with_name(f"{top}.py").is_file() or top in sys.modules:
        return True
    try:
        return importlib.util.find_spec(top) is not None
    except (ImportError, ValueError):  # a name that no module can have
        return False


def _file_of(here: Path, name: str) -> Path | None:
    """Return the source file of the module `name` below `here`, if there is one."""
    path = here.joinpath(*name.split("."))
    return next((file for file in (path / "__init__.py", path.with_name(f"{path.name}.py")) if file.is_file()), None)


def _is(module: ModuleType | None, file: Path) -> bool:
    found = getattr(module, "__file__", None)
    return found is not None and Path(str(found)).resolve() == file.resolve()


def _ours(here: Path, name: str) -> bool:
    """Return whether `name` is one of our own modules, run from a source tree."""
    top = name.partition(".")[0]
    file = _file_of(here, top)
    return top in _OURS and file is not None and _is(importlib.import_module(top), file)


def _package_of(here: Path) -> str:
    """Return the name of the package below which the modules of `here` are imported."""
    name = f"{_ROOT}{zlib.crc32(str(here).encode()):08x}"
    if name not in sys.modules:
        package = ModuleType(name)
        package.__path__ = [str(here)]
        sys.modules[name] = package
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    return name


class _Finder:
    """Finds the modules below our packages; everything else is left to the others."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if not name.startswith(_ROOT) or path is None:
            return None
        found = (FileFinder(folder, (_Loader, SOURCE_SUFFIXES)).find_spec(name) for folder in path)
        return next((spec for spec in found if spec is not None), None)  # None: a compiled module, found by Python


class _Loader(SourceFileLoader):
    """Runs a module whose `import` statements look in the working directory first."""

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": _import}
        super().exec_module(module)


def _import(
    name: str,
    globals: Any = None,
    locals: Any = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> Any:
    """Do what `import` does, for a statement in one of the user's files."""
    package = str((globals or {}).get("__name__", "")).partition(".")[0]
    if level or package not in sys.modules or not _meant_here(Path(sys.modules[package].__path__[0]), name, fromlist):
        return builtins.__import__(name, globals, locals, fromlist or (), level)
    module = importlib.import_module(f"{package}.{name}")
    if not fromlist:
        return sys.modules[f"{package}.{name.partition('.')[0]}"]  # `import a.b` binds `a`
    for entry in fromlist:
        if not hasattr(module, entry) and hasattr(module, "__path__"):
            _import_if_there(f"{module.__name__}.{entry}")
    return module


def _meant_here(here: Path, name: str, fromlist: Sequence[str] | None) -> bool:
    """Return whether an absolute import means a file below `here` rather than an installed module."""
    submodules = any(_file_of(here, f"{name}.{entry}") for entry in fromlist or ())
    if (_file_of(here, name) is None and not submodules) or _ours(here, name):
        return False
    if name not in sys.stdlib_module_names:
        return True
    # a file called like a module of the standard library is meant only where that lacks what is asked for
    standard = importlib.import_module(name)
    return any(not hasattr(standard, entry) and entry != "*" for entry in fromlist or ())


def _import_if_there(name: str) -> None:
    if importlib.util.find_spec(name) is not None:
        importlib.import_module(name)
