"""SMET: sparse, memory-efficient training of any torch model with dynamic topology."""
