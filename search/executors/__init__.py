"""Where trials run: in processes of this machine, or on a Ray cluster. One file or folder each."""
