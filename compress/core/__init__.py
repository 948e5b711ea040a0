"""The ground floor: what every room uses and what knows nothing of models to compress."""
