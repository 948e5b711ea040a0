"""What a given network takes on a target at any choice of widths and blocks, from a few measured copies of it."""
