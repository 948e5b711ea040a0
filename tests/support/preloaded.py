"""What most processes that tests start would make anew: they are forked from one that has imported this."""

from compress.runs.catalog import REGISTRIES, registries
from compress.runs.recipe import recipe_schema
from compress.training.engine import Engine
from evaluators.datasets.digits import digits

NAMES = {kind: [registry.names() for registry in registries(kind)] for kind in REGISTRIES}

recipe_schema()
digits()
Engine("cpu")  # imports Lightning Fabric
