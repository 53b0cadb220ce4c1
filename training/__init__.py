"""How a model is made: train, export, calibrate, evaluate, release."""
