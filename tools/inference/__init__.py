"""Trained models in one process: what they say, and how well they predict."""
