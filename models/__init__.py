"""What training and serving must agree on: images, cards, predictions. No torch outside ``models.networks``."""

__version__ = "0.1.0"
