"""How the command line looks: commands under headings, and a recipe that needs no flag."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from compress.runs.catalog import KINDS

HEADINGS = {
    "Compress a model": (),  # and every command that is under no other heading
    "Find an architecture": ("search", "rank", "space", "latency-table"),
    "Look and measure": ("plan", "inspect", "latency", "eval", "export", "report", "compare"),
    "Recipes and this machine": ("ls", "cat", "cp", "validate", "schema", "doctor"),
}


class Commands(TyperGroup):
    """The commands under their headings."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each heading."""
        elsewhere = {name for names in HEADINGS.values() for name in names}
        width = max(map(len, self.commands))
        for heading, named in HEADINGS.items():
            names = named or [name for name in self.commands if name not in elsewhere]
            room = formatter.width - width - 6
            rows = [(name.ljust(width), self.commands[name].get_short_help_str(room)) for name in names]
            with formatter.section(heading):
                formatter.write_dl(rows)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command; a kind of things to list, such as recipes, is none by itself."""
        if args[0] in KINDS and args[0] not in self.commands:
            ctx.fail(f"No such command {args[0]!r}; `compress ls {args[0]}` lists them.")
        return super().resolve_command(ctx, args)


class Command(TyperCommand):
    """A command that takes its recipe with or without `--recipe`, as `validate` and `cat` do."""

    @property
    def needs_recipe(self) -> bool:
        """Whether it has to be given a recipe."""
        return any(each.name == "recipe" and each.required and "--recipe" in each.opts for each in self.params)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words of the line of usage."""
        return [*(["[-r] FILE"] if self.needs_recipe else []), *super().collect_usage_pieces(ctx)]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the flag before a recipe that stands by itself."""
        named = any(arg.startswith("-r") or arg.partition("=")[0] == "--recipe" for arg in args)
        place = self._first_alone(args) if self.needs_recipe and not named else None
        if place is not None:
            args = [*args[:place], "--recipe", *args[place:]]
        try:
            return list(super().parse_args(ctx, [*args]))
        except typer.BadParameter as error:
            told = self._told_of_number(getattr(error.param, "name", None), getattr(error.param, "opts", ()), args)
            if told is None:
                raise
            print(told, file=sys.stderr)
            raise typer.Exit(2) from error

    def _told_of_number(self, name: str | None, flags: Sequence[str], args: Sequence[str]) -> str | None:
        """Return what is wrong with the value of a flag for a number, as with a key of a recipe; None for others."""
        hint = get_type_hints(self.callback, include_extras=True).get(name or "")
        if get_origin(hint) is not Annotated:
            return None
        kinds, option = get_args(hint)[0], get_args(hint)[1]
        kind = next((each for each in (int, float) if each in (kinds, *get_args(kinds))), None)
        words = [word for arg in args for word in arg.split("=", 1)] if kind is not None else []
        given = [value for flag, value in pairwise(words) if flag in flags]
        if kind is None or not given:
            return None
        numbers = "whole numbers" if kind is int else "numbers"
        limits = [
            f"{word} {limit:g}" for word, limit in (("from", option.min), ("to", option.max)) if limit is not None
        ]
        return f"{flags[0]}  wrong value; got {given[-1]!r}; allowed {' '.join([numbers, *limits])}"

    def _first_alone(self, args: list[str]) -> int | None:
        """Return the place of the first word that is neither an option nor what one is given."""
        options = {name: each for each in self.params for name in each.opts}
        place = 0
        while place < len(args):
            if not args[place].startswith("-"):
                return place
            option = options.get(args[place])
            place += 1 if option is None or getattr(option, "is_flag", False) else 2
        return None
