"""Models of several sizes on disk, whichever method made them, and the best of them within a budget."""
