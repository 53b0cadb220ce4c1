"""Torch networks. The only part of ``models`` that may import torch."""
