"""Network families, each defined once: to be searched, built, weight-shared, cut out, exported and drawn."""
