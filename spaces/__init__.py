"""Models that exist (the zoo) and spaces of models that may be built."""
