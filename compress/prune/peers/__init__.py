"""Other libraries' pruners as citizens: what they remove becomes a `Plan` of ours, checked like any other."""
