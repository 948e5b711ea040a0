"""What a candidate of a search is worth: one file per kind of evaluator."""
