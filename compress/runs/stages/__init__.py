"""The stages of a run, one file each; what a stage is says `compress.runs.stage`."""
