"""Runs of recipes: the recipe, its stages in order, the run directory."""
