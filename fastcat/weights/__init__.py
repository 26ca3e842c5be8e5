"""Files of weights: what other projects wrote."""
