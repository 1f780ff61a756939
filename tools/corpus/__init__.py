"""Parts of the corpus tools: sources, readers, tokenizers, workers, and assembly of their output."""
