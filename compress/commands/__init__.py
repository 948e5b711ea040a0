"""The commands of `compress`, one file per kind; heavy imports happen when a command runs."""
