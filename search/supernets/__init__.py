"""Supernets: the weights of a space trained once, for any search; one file per method of training them."""
