"""Pre-training of sparse LLaMA models on DeepSpeed."""
