"""Training: settings, data, runs on transformers' Trainer, and evaluation."""
