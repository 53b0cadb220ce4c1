"""How a hospital runs it: the HTTP service around :mod:`models.predictor`."""
